"""Recipes: from TOML to a Recipe and back; arbitrary values are accepted or refused."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distillkit.core.errors import RecipeError, UsageError
from distillkit.plugins.manager import Plugins
from distillkit.recipe import recipe as recipes
from distillkit.recipe.recipe import Recipe, host_keys, load
from support.recipe_files import refused, write

# -------------------------------------------------------------------------------- what is read


def test_a_name_is_enough():
    recipe = load(write('name = "least"'))
    assert (recipe.name, recipe.seed, recipe.data.source, recipe.student.arch) == (
        "least",
        42,
        "tales",
        "gpt",
    )
    assert recipe.teacher is None
    assert recipe.mixer.name == "hard"
    assert recipe.tokenizer.vocab_size == 2048
    assert [judge.name for judge in recipe.judge] == ["perplexity"]
    assert recipe.train.betas == [0.9, 0.95]


def test_keys_that_are_not_the_hosts_are_the_plugins_options():
    recipe = load(write('name = "x"\n[student]\nlayers = 4\nfrom = "quickstart/1"\n[[judge]]\nname = "a"\nsamples = 5'))
    assert recipe.student.options == {"layers": 4}
    assert recipe.student.from_ == "quickstart/1"
    assert recipe.judge[0].options == {"samples": 5}
    assert "from" in host_keys("students")


def test_a_judge_may_have_a_teacher_of_its_own():
    teacher = 'provider = "groq"\nmodel = "m"\nmax_tokens = 9'
    teacher = load(write(f'name = "x"\n[[judge]]\nname = "rubric"\n[judge.teacher]\n{teacher}')).judge[0].teacher
    assert teacher is not None
    assert (teacher.max_tokens, teacher.options) == (9, {"model": "m"})


def test_a_judge_that_stands_twice_is_refused_before_it_is_paid():
    twice = "[[judge]]\nname = 'rubric'\nscale = 5\n[[judge]]\nname = 'rubric'\nscale = 9"
    told = refused(f'name = "x"\n{twice}')
    assert "my.toml: judge: found [a table, a table]: 'rubric' is listed twice, expected each judge once" in told
    assert "use a second run for other options" in told
    assert "'perplexity' is listed twice" in refused('name = "x"', "judge.1.name=perplexity")


def test_parts_name_every_plugin_of_a_recipe():
    text = """
        name = "x"
        teacher = {provider = "groq"}
        judge = [{name = "rubric", teacher = {provider = "openai"}}]
        tracker = [{name = "csv", file = "a"}]
    """
    found = [(part.loc, part.role, part.name) for part in load(write(text)).plugin_uses()]
    assert found == [
        (("data",), "sources", "tales"),
        (("student",), "students", "gpt"),
        (("teacher",), "teachers", "groq"),
        (("mixer",), "mixers", "hard"),
        (("optimizer",), "optimizers", "adamw"),
        (("judge", 0), "judges", "rubric"),
        (("judge", 0, "teacher"), "teachers", "openai"),
        (("tracker", 0), "trackers", "csv"),
    ]


def test_a_byte_order_mark_and_windows_line_ends_are_read():
    assert load(write(b'\xef\xbb\xbfname = "x"\r\nseed = 3\r\n')).seed == 3


def test_a_bundled_recipe_is_found_by_its_name(shipped):
    assert load("quickstart").train.steps == 7
    assert recipes.bundled_recipes() == {"quickstart": shipped / "quickstart.toml"}


# -------------------------------------------------------------------------------- a recipe of one's own


def test_a_starter_is_the_quickstart_under_another_name():
    quickstart = load("quickstart").values()
    mine = load(write(recipes.starter_recipe("mine"), "mine.toml"))
    assert mine.name == "mine"
    assert {**mine.values(), "name": "quickstart"} == quickstart


def test_what_a_starter_suggests_can_be_done():
    write("Once upon a time.", "stories/a.txt")
    text = recipes.starter_recipe("mine")
    suggested = re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.MULTILINE)
    recipe = load(write(suggested, "mine.toml"))
    assert recipe.data.source == "text"
    assert recipe.data.options == {"path": "stories/*.txt", "separator": "---"}
    checked = Plugins.load().check(recipe)
    assert checked.mixer.options == {"alpha": 0.3, "temperature": 1.0}


@pytest.mark.parametrize("name", ["", "latest", "a b", "../up", 'x"\n', "é", "x" * 81])
def test_a_starter_needs_a_name_that_a_recipe_may_have(name):
    with pytest.raises(RecipeError, match=r"^distillkit init: name: found"):
        recipes.starter_recipe(name)


# -------------------------------------------------------------------------------- round trips

keys = st.from_regex(r"\A[a-z][a-z0-9_]{0,8}\Z").filter(
    lambda key: not any(key in host_keys(role) for role in recipes.TABLES)
)
scalars = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=12)
    | st.datetimes()
    | st.dates()
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=6,
)
options = st.dictionaries(keys, anything, max_size=3)
fine = settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def whole(draw):
    return Recipe.model_validate(
        {
            "name": draw(st.from_regex(recipes.NAME.replace("$", r"\Z"))),
            "seed": draw(st.integers(0, 2**63 - 1)),
            "data": {"held_out": draw(st.floats(0.01, 0.99)), **draw(options)},
            "student": draw(options | st.just({"from": "a/b"})),
            "teacher": draw(st.none() | options.map(lambda own: {**own, "provider": "groq", "stop": ['"\n']})),
            "mixer": draw(options),
            "train": {"steps": draw(st.integers(1, 10**9)), "chunk": draw(st.sampled_from([1, 4, "auto"]))},
            "judge": [{**own, "name": f"judge{i}"} for i, own in enumerate(draw(st.lists(options, max_size=2)))],
        }
    )


@fine
@given(whole())
def test_what_a_recipe_writes_loads_back_equal(recipe):
    again = load(write(recipe.to_toml()))
    assert again == recipe
    assert again.digest == recipe.digest


nasty = st.text(st.characters(codec="utf-8"), max_size=40)
places = st.sampled_from(
    [
        "name",
        "seed",
        "plugins",
        "data",
        "data.source",
        "tokenizer",
        "tokenizer.kind",
        "student.from",
        "teacher",
        "teacher.provider",
        "teacher.signal",
        "mixer",
        "train.steps",
        "train.betas",
        "judge",
        "judge.0",
        "judge.0.name",
        "judge.0.teacher",
        "tracker",
        "extends",
        "x",
        "sampling.prompts",
        "train.chunk",
        "teacher.stop",
    ]
)


@fine
@given(st.dictionaries(places, anything, max_size=4))
def test_nasty_values_never_end_in_anything_but_a_refusal(values):
    tree = {"name": "x"}
    for place, value in values.items():
        *parents, key = place.split(".")
        here = tree
        for parent in parents:
            here[parent] = here = here.get(parent) if isinstance(here.get(parent), dict) else {}
        here[key] = value
    import tomli_w

    with contextlib.suppress(RecipeError):
        load(write(tomli_w.dumps(tree))).to_toml()


@fine
@given(
    nasty | st.binary(max_size=60),
    st.lists(st.builds("{}={}".format, places | nasty, nasty) | nasty, max_size=3),
)
def test_nasty_files_and_overrides_never_end_in_anything_but_a_refusal(raw, overrides):
    with contextlib.suppress(UsageError):
        load(write(raw), overrides)
    with contextlib.suppress(UsageError):
        load(write('name = "x"', "plain.toml"), overrides).to_toml()
    with contextlib.suppress(UsageError):
        load(raw if isinstance(raw, str) else repr(raw))


def test_recipes_and_plugins_load_nothing_heavy():
    code = "import sys, distillkit.recipe.recipe, distillkit.plugins.manager\n"
    code += "print([m for m in sys.modules if m in {heavy}])"
    heavy = {"mlx", "mlx.core", "pandas", "openai", "groq", "numpy", "tiktoken", "click"}
    root = str(Path(recipes.__file__).parent.parent)
    ran = subprocess.run(
        [sys.executable, "-c", code.format(heavy=heavy)], capture_output=True, text=True, cwd=root, check=True
    )
    assert ran.stdout.strip() == "[]"
