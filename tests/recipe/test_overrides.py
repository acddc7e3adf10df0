"""Overrides with --set."""

from __future__ import annotations

import pytest

from distillkit.core.errors import UsageError
from distillkit.recipe.recipe import load
from support.recipe_files import refused, write


def test_overrides_are_toml_or_else_plain_text():
    sets = ["train.steps=5", "data.source=text", "train.betas=[0.1, 0.2]", "name=a-b", "judge.0.samples=50"]
    recipe = load(write('name = "x"'), sets)
    assert (recipe.train.steps, recipe.data.source, recipe.name) == (5, "text", "a-b")
    assert recipe.judge[0].options == {"samples": 50}
    assert recipe.judge[0].name == "perplexity"


def test_overrides_reach_lists_and_may_add_to_them():
    sets = ["judge.1.name=rubric", "judge.1.teacher.provider=groq", "tracker.0.name=csv"]
    recipe = load(write('name = "x"'), sets)
    assert [judge.name for judge in recipe.judge] == ["perplexity", "rubric"]
    assert recipe.judge[1].teacher is not None
    assert recipe.tracker[0].name == "csv"


@pytest.mark.parametrize("order", [1, -1])
def test_naming_another_plugin_drops_the_former_options_but_not_those_of_the_same_command(order):
    judge = '[[judge]]\nname = "r"\nold = 1\nteacher = {provider = "p"}'
    text = f'name = "x"\n[mixer]\nname = "a"\nalpha = 0.5\n{judge}'
    sets = ["mixer.name=b", "mixer.beta=1", "judge.0.name=q"][::order]
    recipe = load(write(text), sets)
    assert recipe.mixer.options == {"beta": 1}
    assert recipe.judge[0].options == {}
    assert recipe.judge[0].teacher is not None
    assert load("my.toml", ["mixer.name=a"]).mixer.options == {"alpha": 0.5}


@pytest.mark.parametrize(
    "override",
    ["x", "=1", ".=1", "a..b=1", "judge.9.x=1", "judge.name=1", "name.x=1", "a b=1", "name=\udce4"],
)
def test_an_override_that_is_none_is_refused_with_an_example(override):
    with pytest.raises(UsageError, match="--set"):
        load(write('name = "x"'), [override])


def test_a_wrong_override_is_blamed_on_the_command_line():
    assert refused('name = "x"', "train.steps=abc").startswith('--set: train.steps: found "abc"')
    assert refused('name = "x"', "train.stpes=1").startswith("--set: unknown key train.stpes")
