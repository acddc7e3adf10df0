"""Inheritance of recipes with extends, and paths relative to the file that contains them."""

from __future__ import annotations

from pathlib import Path

import pytest

from distillkit.core.errors import RecipeError
from distillkit.recipe.recipe import load
from support.recipe_files import refused, write

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
