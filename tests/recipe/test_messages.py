"""Error messages for invalid recipes: file, key, value found, value expected."""

from __future__ import annotations

import pytest

from distillkit.core.errors import RecipeError
from distillkit.recipe.recipe import load
from support.recipe_files import refused, write


def test_a_missing_recipe_names_the_nearest_bundled_one_and_the_nearest_here(shipped):
    write('name = "x"', "mine.toml")
    with pytest.raises(RecipeError, match=r"there is no recipe 'quikstart'\n  Did you mean 'quickstart'"):
        load("quikstart")
    with pytest.raises(RecipeError, match=r"Did you mean 'mine.toml'"):
        load("mime.toml")


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
