"""Recipes: from TOML to a Recipe, and every way in which that can fail."""

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


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str | bytes, name: str = "my.toml") -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


def refused(text: str | bytes, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(write(text), overrides)
    return str(caught.value)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A stand-in for the recipes that ship with the package."""
    folder = tmp_path / "site" / "distillkit_recipes"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "quickstart.toml").write_text('name = "quickstart"\n[train]\nsteps = 7\n')
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.delitem(sys.modules, "distillkit_recipes", raising=False)
    yield folder
    sys.modules.pop("distillkit_recipes", None)


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
        (("judge", 0), "judges", "rubric"),
        (("judge", 0, "teacher"), "teachers", "openai"),
        (("tracker", 0), "trackers", "csv"),
    ]


def test_a_byte_order_mark_and_windows_line_ends_are_read():
    assert load(write(b'\xef\xbb\xbfname = "x"\r\nseed = 3\r\n')).seed == 3


def test_a_bundled_recipe_is_found_by_its_name(shipped):
    assert load("quickstart").train.steps == 7
    assert recipes.bundled_recipes() == {"quickstart": shipped / "quickstart.toml"}


def test_a_missing_recipe_names_the_nearest_bundled_one_and_the_nearest_here(shipped):
    write('name = "x"', "mine.toml")
    with pytest.raises(RecipeError, match=r"there is no recipe 'quikstart'\n  Did you mean 'quickstart'"):
        load("quikstart")
    with pytest.raises(RecipeError, match=r"Did you mean 'mine.toml'"):
        load("mime.toml")


# -------------------------------------------------------------------------------- blame


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('steps = "many"', 'my.toml: train.steps: found "many", expected a whole number above 0'),
        ('steps = "3"', 'my.toml: train.steps: found "3", expected a whole number above 0'),
        ("steps = 3.0", "my.toml: train.steps: found 3.0, expected a whole number above 0"),
        ("steps = true", "my.toml: train.steps: found true, expected a whole number above 0"),
        ("steps = 0", "my.toml: train.steps: found 0, expected a whole number above 0"),
        ("warmup = -1", "my.toml: train.warmup: found -1, expected a whole number at least 0"),
        ("learning_rate = nan", "my.toml: train.learning_rate: found nan, expected a finite number"),
        ("clip = inf", "my.toml: train.clip: found inf, expected a finite number"),
        ("learning_rate = 0", "my.toml: train.learning_rate: found 0, expected a number above 0"),
        ("learning_rate = true", "my.toml: train.learning_rate: found true, expected a number above 0"),
        ("betas = [0.9]", "found [0.9], expected a list of 2, each a number at least 0 and below 1"),
        ("betas = [0.9, 1.0]", "my.toml: train.betas.1: found 1.0, expected a number at least 0 and below 1"),
        ('chunk = "x"', 'my.toml: train.chunk: found "x", expected a whole number above 0 or "auto"'),
        (
            '[teacher]\nprovider = "a"\nsignal = "loud"',
            'teacher.signal: found "loud", expected "text" or "top_logprobs" or "logits"',
        ),
        ("stpes = 1", "my.toml: unknown key train.stpes\n  Did you mean 'steps'?"),
        ("[trian]", "my.toml: unknown key trian\n  Did you mean 'train'?"),
        ("[data]\nheld_out = 1.0", "data.held_out: found 1.0, expected a number above 0 and below 1"),
        ("[teacher]\nmodel = 'm'", "teacher.provider: found nothing, expected text in quotes"),
        ("[tokenizer]\nsize = 1", "unknown key tokenizer.size"),
        ("[judge]\nname = 'a'", "judge: found a table, expected a list, each a table"),
        (
            "[[judge]]\nteacher = {provider = 'a', stop = 'x'}",
            'judge.0.teacher.stop: found "x", expected a list',
        ),
    ],
)
def test_a_wrong_value_says_file_key_found_and_expected(line, message):
    assert message in refused(f'name = "x"\n[train]\n{line}')


@pytest.mark.parametrize("name", ["", "..", "../up", "a/b", ".hidden", "a b", "é", "x" * 81, "a\\n"])
def test_a_name_that_is_no_safe_folder_name_is_refused(name):
    assert "my.toml: name: found" in refused(f'name = "{name}"')


def test_no_recipe_is_called_what_means_the_newest_run():
    assert "my.toml: name: found \"latest\": 'latest' is reserved for the newest run" in refused('name = "latest"')
    assert refused('name = "x"', "name=latest").startswith("--set: name: found")


def test_all_faults_are_told_at_once_but_no_more_than_ten():
    lines = refused('name = "x"\n[train]\n' + "\n".join(f"wrong{i} = 1" for i in range(14))).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "and 4 more"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("", "my.toml is empty"),
        ("# only a comment", "my.toml is empty"),
        ('name = "x"\n[train\n', "my.toml: line 2, column 7: Expected ']'"),
        ('name = "x"\n[train\n', "\n    [train"),
        ('name = "x', "line 1"),
        (b'name = "\xff"', "my.toml: line 1: not UTF-8 text"),
        ("a = " + "[" * 20_000, "nested too deeply"),
        ("a." * 500 + "a = 1", "nested too deeply"),
        ("a = 1\n" * 2_000_000, "my.toml is larger than 256 KiB"),
        ("a = 0x" + "f" * 5_000, "beyond 64 bits"),
        ("a = 1" + "0" * 5_000, "not TOML: Exceeds the limit"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_words(raw, message):
    assert message in refused(raw)


@pytest.mark.parametrize("spec", [".", "nowhere/x.toml", "\0", "a" * 5_000, ""])
def test_a_place_that_is_no_file_is_refused_in_words(spec):
    with pytest.raises(RecipeError):
        load(spec)


# -------------------------------------------------------------------------------- extends


BASE = """
name = "base"
[data]
files = ["a.txt"]
held_out = 0.2
[teacher]
provider = "groq"
model = "m"
prompts = 5
[train]
steps = 9
betas = [0.5, 0.6]
"""


def test_a_recipe_states_only_its_differences():
    write(BASE, "folder/base.toml")
    write('name = "mid"\nextends = "base.toml"\ntrain = {betas = [0.1, 0.2]}', "folder/mid.toml")
    recipe = load(write('name = "x"\nextends = "folder/mid.toml"\n[train]\nwarmup = 1'))
    assert (recipe.name, recipe.train.steps, recipe.train.warmup) == ("x", 9, 1)
    assert recipe.train.betas == [0.1, 0.2]
    assert recipe.layer_of(("train", "steps")).file == "folder/base.toml"


def test_the_name_is_inherited_too_and_a_bundled_recipe_can_be_extended(shipped):
    assert load(write('extends = "quickstart"')).name == "quickstart"


def test_another_kind_of_tokenizer_drops_what_was_said_of_the_former():
    write('name = "base"\n[tokenizer]\nvocab_size = 300', "base.toml")
    recipe = load(write('extends = "base.toml"\n[tokenizer]\nkind = "gpt2"'))
    assert (recipe.tokenizer.kind, recipe.tokenizer.vocab_size) == ("gpt2", None)
    assert load(write('extends = "base.toml"\n[tokenizer]\nkind = "bpe"')).tokenizer.vocab_size == 300
    assert load(write('extends = "base.toml"'), ("tokenizer.kind=gpt2",)).tokenizer.vocab_size is None
    both = ("tokenizer.vocab_size=400", "tokenizer.kind=sentencepiece")
    assert load(write('extends = "base.toml"'), both).tokenizer.vocab_size == 400


def test_another_plugin_does_not_inherit_the_options_of_the_former():
    write(BASE, "base.toml")
    recipe = load(write('extends = "base.toml"\n[data]\nsource = "text"\n[teacher]\nprovider = "openai"'))
    assert recipe.data.options == {}
    assert recipe.data.held_out == 0.2
    assert recipe.teacher is not None
    assert (recipe.teacher.options, recipe.teacher.prompts) == ({}, 5)


def test_the_same_plugin_inherits_its_options():
    write(BASE, "base.toml")
    recipe = load(write('extends = "base.toml"\ndata = {source = "tales"}\nteacher = {temperature = 0.5}'))
    assert recipe.data.options == {"files": ["a.txt"]}
    assert recipe.teacher is not None
    assert recipe.teacher.options == {"model": "m"}


def test_a_teacher_is_dropped_by_the_provider_none():
    write(BASE, "base.toml")
    recipe = load(write('extends = "base.toml"\n[teacher]\nprovider = "none"'))
    assert recipe.teacher is None
    assert load("base.toml", ["teacher.provider=none"]).teacher is None


def test_a_fault_is_blamed_on_the_file_that_said_it():
    write(BASE.replace("steps = 9", "steps = -9"), "base.toml")
    assert refused('extends = "base.toml"').startswith("base.toml: train.steps: found -9")


def test_a_circle_is_refused_and_named():
    write('extends = "b.toml"', "a.toml")
    write('extends = "a.toml"', "b.toml")
    with pytest.raises(RecipeError, match=r"a\.toml -> b\.toml -> a\.toml"):
        load("a.toml")


def test_a_missing_parent_is_blamed_on_the_child():
    assert refused('extends = "gone"').startswith("my.toml: extends: there is no recipe 'gone'")
    assert "extends: found 3, expected a path" in refused("extends = 3")


# -------------------------------------------------------------------------------- overrides


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


# -------------------------------------------------------------------------------- paths


def test_paths_start_from_the_file_that_says_them(here):
    for file in (
        "folder/prompts.txt",
        "folder/ranks.txt",
        "folder/words/tokenizer.json",
        "folder/other.toml",
    ):
        write("x", file)
    text = """
        name = "base"
        tokenizer = {kind = "words", ranks = "ranks.txt"}
        sampling = {prompts = "prompts.txt"}
        student = {from = "other.toml"}
    """
    write(text, "folder/base.toml")
    recipe = load(write('extends = "folder/base.toml"'))
    folder = here / "folder"
    assert recipe.tokenizer.kind == str(folder / "words")
    assert recipe.tokenizer.ranks == str(folder / "ranks.txt")
    assert recipe.sampling.prompts == str(folder / "prompts.txt")
    assert recipe.student.from_ == str(folder / "other.toml")


def test_names_that_are_no_paths_are_left_alone():
    Path("bpe").mkdir()
    Path("stories").mkdir()
    Path("held_out").mkdir()
    recipe = load(write('name = "x"\ntokenizer = {ranks = "gone.txt"}'))
    assert (recipe.tokenizer.kind, recipe.tokenizer.ranks) == ("bpe", "gone.txt")
    assert recipe.sampling.prompts == "stories"
    assert load(write('name = "x"\nsampling = {prompts = "held_out"}')).sampling.prompts == "held_out"


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
