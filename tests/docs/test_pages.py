"""The pages beside the guide: a reader who types what they show. Judges ask a server on this machine."""

from __future__ import annotations

import csv
import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from distillkit.testing import check_judge
from support.chat_provider import serving
from support.judge_provider import Judge
from support.paths import ROOT
from support.scripts import script

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS = {"export": ("gguf", "mlx_lm")}  # packages
ELSEWHERE = {"plugins": "tests/docs/test_docs.py walks it", "api": "docs/generate.py writes it"}


walk = script("docs/walk.py")
WALKED = [page for page in PAGES if page.stem not in ELSEWHERE and any(block.run for block in walk.blocks(page))]


SNIPPETS = [
    block
    for page in [*PAGES, *sorted(ROOT.glob("plugins/*/README.md"))]
    for block in walk.blocks(page)
    if block.language == "toml"
]


@pytest.mark.parametrize("block", SNIPPETS, ids=lambda block: block.where)
def test_a_piece_of_a_recipe_on_a_page_makes_the_quickstart_another_recipe(block: Any, tmp_path: Path) -> None:
    from distillkit.recipe.recipe import load

    said = tomllib.loads(block.text)
    added = {"extends": "quickstart", "name": "mine"}
    given = "".join(f'{key} = "{value}"\n' for key, value in added.items() if key not in said)
    (tmp_path / "mine.toml").write_text(given + block.text)
    assert load(str(tmp_path / "mine.toml")).values() != load("quickstart").values()


def test_every_command_on_a_page_is_run_or_says_why_not() -> None:
    for page in PAGES:
        for block in walk.blocks(page):
            assert block.language not in ("bash", "shell"), f"{block.where}: say sh, so that it is run"
    assert {page.stem for page in WALKED} >= {"README", "export", "distillation", "judging", "reports", "serving"}


def test_the_judge_on_the_page_keeps_every_promise(tmp_path: Path) -> None:
    (block,) = (one for one in walk.blocks(ROOT / "docs/judging.md") if one.language == "python")
    page: dict[str, Any] = {}
    exec(block.text, page)
    (judge,) = page["register_judges"]()
    assert "handles refused requests" in check_judge(judge, teacher=lambda request: "Yes.")


# What the pages take for granted: runs of the quickstart, as small as can be, whose judges ask a server here.
RECIPE = """
extends = "quickstart"
name = "{name}"
[data]
stories = 300
[student]
layers = 1
heads = 2
width = 32
activation = "gelu_tanh"
[teacher]
prompts = 4
max_tokens = 16
[train]
steps = 8
warmup = 2
evaluate_every = 8
checkpoint_every = 8
[sampling]
max_tokens = 24
[[judge]]
name = "perplexity"
[[judge]]
name = "rubric"
teacher = {{ provider = "compatible", model = "some", base_url = "{url}" }}
[[judge]]
name = "pairwise"
teacher = {{ provider = "compatible", model = "some", base_url = "{url}" }}
"""
RUNS = ("quickstart_alone", "quickstart", "quickstart", "tiny")


def bash(folder: Any, script: str) -> None:
    """Run commands where the page's will run."""
    block = walk.Block(Path("before.md"), 0, 0, "sh", script)
    for ran in folder.run_console(block):
        assert ran.code == 0, ran.printed


def prepare(folder: Any, url: str) -> None:
    """The runs, a text of one's own, beginnings of stories, and what two people think of a student's samples."""
    for number, name in enumerate(RUNS):
        recipe = folder.state / f"{number}.toml"
        recipe.write_text(RECIPE.format(name=name, url=url))
        bash(folder, f"distillkit run {recipe} --set seed={number}")
    (folder.path / "stories").mkdir()
    for page in [*ROOT.rglob("docs/**/*.md"), *ROOT.glob("distillkit/**/*.py")]:  # English and Python: many words
        shutil.copy(page, folder.path / "stories" / f"{page.parent.name}_{page.stem}.txt")
    (folder.path / "beginnings.txt").write_text("One day, a little fox\nThe moon was\n")
    samples = [json.loads(line)["id"] for line in (folder.path / "reports/quickstart/2/samples.jsonl").open()]
    with (folder.path / "people.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["person", "sample", "grammar", "creativity"])
        writer.writerows([person, one, 1 + i % 9, 9 - i % 7] for person in "ab" for i, one in enumerate(samples))


@pytest.mark.slow
@pytest.mark.parametrize("page", WALKED, ids=lambda page: page.stem)
def test_a_page_typed_by_a_reader(page: Path, tmp_path: Path, peer: Callable[[str], ModuleType]) -> None:
    for name in NEEDS.get(page.stem, ()):
        peer(name)
    with serving() as provider:
        provider.rule = Judge()
        folder = walk.Workspace(tmp_path, steps=60)
        if any(block.run and block.language == "sh" for block in walk.blocks(page)):
            prepare(folder, provider.url)
        found = walk.walk(page, folder, write=False, compare=True)
        assert not found, "\n".join(map(str, found))
