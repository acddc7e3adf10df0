"""Recipe versions: recipes of older versions keep their defaults, newer ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from distillkit.core.errors import RecipeError
from distillkit.recipe import versions
from distillkit.recipe.recipe import Recipe, load, starter_recipe
from distillkit.recipe.versions import FormerDefault


def recipe(folder: Path, text: str, name: str = "a") -> Recipe:
    file = folder / f"{name}.toml"
    file.write_text(f'name = "{name}"\n{text}')
    return load(str(file))


@pytest.fixture
def changed_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2 changed the number of steps; version 3 an option of the student gpt."""
    monkeypatch.setattr(versions, "CURRENT_VERSION", 3)
    monkeypatch.setattr(
        versions,
        "FORMER_DEFAULTS",
        (
            FormerDefault(1, ("train", "steps"), 77),
            FormerDefault(2, ("student", "norm"), "layernorm", (("student", "arch"), "gpt", "gpt")),
        ),
    )


def test_a_recipe_without_a_version_has_the_first_and_the_resolved_recipe_says_so(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, "")
    assert loaded.recipe_version == 1
    assert loaded.values()["recipe_version"] == 1
    again = tmp_path / "again.toml"
    again.write_text(loaded.to_toml())
    assert load(str(again)) == loaded


@pytest.mark.usefixtures("changed_defaults")
@pytest.mark.parametrize(
    ("text", "steps", "norm"),
    [
        ("", 77, "layernorm"),
        ("recipe_version = 1", 77, "layernorm"),
        ("recipe_version = 2", 600, "layernorm"),
        ("recipe_version = 3", 600, None),
        ("train = { steps = 5 }\nstudent = { norm = 'rmsnorm' }", 5, "rmsnorm"),
        ("student = { arch = 'other' }", 77, None),
    ],
)
def test_an_old_recipe_keeps_the_defaults_of_its_version(
    tmp_path: Path, text: str, steps: int, norm: str | None
) -> None:
    loaded = recipe(tmp_path, text)
    assert loaded.train.steps == steps
    assert loaded.student.options.get("norm") == norm


@pytest.mark.usefixtures("changed_defaults")
def test_a_recipe_has_the_version_of_the_one_it_extends_unless_it_names_its_own(tmp_path: Path) -> None:
    recipe(tmp_path, "recipe_version = 2", "base")
    assert recipe(tmp_path, f'extends = "{tmp_path}/base.toml"', "child").train.steps == 600
    assert recipe(tmp_path, f'extends = "{tmp_path}/base.toml"\nrecipe_version = 1', "old").train.steps == 77


def test_a_newer_version_is_refused_by_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('name = "base"\nrecipe_version = 99')
    with pytest.raises(RecipeError, match=r"base\.toml: recipe_version = 99, and this version") as caught:
        recipe(tmp_path, f'extends = "{tmp_path}/base.toml"')
    assert "pip install --upgrade distillkit" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["recipe_version = 0", 'recipe_version = "2"', "recipe_version = true"])
def test_what_is_no_version_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match="recipe_version"):
        recipe(tmp_path, text)


def test_a_new_recipe_names_the_current_version() -> None:
    assert f"recipe_version = {versions.CURRENT_VERSION}" in starter_recipe("mine")
