"""Bad input: whatever recipes, texts and answers hold, the program ends by itself and says what is wrong."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distillkit.core import text as visible
from distillkit.core.errors import DistillkitError, UsageError
from distillkit.core.files import read_jsonl, write_jsonl
from distillkit.core.records import Grade, Sample
from distillkit.core.run_folder import Run
from distillkit.data.corpus import prepare
from distillkit.plugins.manager import Plugins
from distillkit.recipe.recipe import load
from distillkit.reporting.compare import page as compare_page
from distillkit.reporting.compare.comparison import build_comparison, read_runs
from distillkit.reporting.run.report import write_report
from distillkit.teachers.answers.disk import DiskAnswerStore
from support.bad_input import (
    ANSWERS,
    EMOJI,
    ESCAPES,
    FORMULA,
    HALF,
    KEYS,
    MARKUP,
    NAMES,
    ROWS,
    TINY,
    TURNED,
    VALUES,
    base,
    recipes,
    texts,
    write_bases,
    write_recipes,
)
from support.browser import Browser, found
from support.chat_provider import Act, Call, Provider, error, serving
from support.limited_commands import Outcome, faults, outcomes, shown
from support.run_folders import graded, history, make
from support.trust_ledger import held, lacking, size

pytestmark = pytest.mark.trust


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder inside another, so that there is an outside."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("DISTILLKIT_HOME", str(home))
    monkeypatch.chdir(home)
    return home


# ------------------------------------------------------------------------------------------------ recipes


@cache
def plugins() -> Plugins:
    return Plugins.load()


def refusal(recipe: str, *overrides: str) -> str:
    """What is wrong with a recipe, or nothing; anything but a refusal in words is raised."""
    try:
        plugins().check(load(recipe, overrides))
    except UsageError as error:
        return str(error)
    return ""


def test_nasty_files_are_refused_in_words(home: Path) -> None:
    names = write_recipes(home)
    before = time.process_time()
    told = [refusal(name) for name in names]
    assert time.process_time() - before < 20
    assert all(len(text) < 2500 for text in told)
    fine = [name for name, text in zip(names, told, strict=True) if not text]
    assert len(fine) <= 8, fine  # such as are only strange
    held("Bad input: a nasty recipe is refused in words", len(told), len(told), f"{len(recipes(home))} files, links")


def test_nasty_values_of_every_key_are_refused_in_words_or_taken(home: Path) -> None:
    write_bases(home)
    every = [(key, value) for key in KEYS for value in VALUES]
    tried = random.Random(9).sample(every, size(100, full=len(every)))
    before = time.process_time()
    told = [refusal(base(key), f"{key}={value}") for key, value in tried]
    assert time.process_time() - before < 0.2 * len(tried)
    assert all(len(text) < 2500 for text in told)
    assert sum(map(bool, told)) > len(told) / 2
    held("Bad input: a nasty value of any key is refused in words, or taken", len(told), len(told))


def quoted(value: object) -> str:
    import tomli_w

    return tomli_w.dumps({"v": value}).removeprefix("v = ").strip()


leaves = (
    st.sampled_from([value for value in VALUES if len(value) < 1000])
    | st.text(st.characters(codec="utf-8"), max_size=20).map(quoted)
    | st.integers(-(2**70), 2**70).map(str)
    | st.floats().map(lambda value: "nan" if math.isnan(value) else str(value))
)


EXAMPLES = size(25, full=1_000)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.dictionaries(st.sampled_from(KEYS), leaves, max_size=5), st.binary(max_size=20))
def _no_drawn_recipe_ends_in_a_traceback(home: Path, values: dict[str, str], tail: bytes) -> None:
    write_bases(home)
    for name in ("tiny.toml", "taught.toml"):
        refusal(name, *(f"{key}={value}" for key, value in values.items()))
    lines = [f"{key} = {value}\n" for key, value in values.items() if ".0" not in key]
    (home / "drawn.toml").write_bytes("".join(lines).encode("utf-8", "replace") + tail)
    refusal("drawn.toml")


def test_no_recipe_that_anybody_thinks_of_ends_in_a_traceback(home: Path) -> None:
    _no_drawn_recipe_ends_in_a_traceback(home)  # which fails at the first that does
    held("Bad input: no recipe that Hypothesis thinks of ends in a traceback", EXAMPLES, EXAMPLES)


@pytest.mark.slow
def test_no_command_falls_over_a_recipe(home: Path) -> None:
    names = write_recipes(home)
    write_bases(home)
    every = [(key, value) for key in KEYS for value in VALUES if len(value) < 1000]
    every = [pair for pair in every if pair[0] != "data.stories" or pair[1][0] != "9"]  # so many can be had, in an age
    sets = random.Random(4).sample(every, size(20, full=len(every)))
    checks = [["recipe", "check", name] for name in (names if size(0, 1) else names[::3])]
    plans = [["plan", base(key), "--json", "--set", f"{key}={value}"] for key, value in sets]
    shows = [["recipe", "show", name] for name in names[1::9]]
    strange = ["circle a.toml", "its own.toml", "link out.toml", "nothing.toml", *NAMES[:3]]
    runs = [["run", name, "--yes"] for name in strange] + [["-p", name, "plugins"] for name in strange[:2]]
    ended = outcomes([*checks, *plans, *shows, *runs], home, at_once=4)
    wrong = faults(ended)
    assert not wrong, json.dumps(wrong, indent=2)
    assert all(len(one.err.splitlines()) <= 14 for one in ended)
    held("Bad input: no command falls over a recipe, or hangs", len(ended), len(ended) - len(wrong))


def test_a_recipe_cannot_have_a_device_read_for_ever(home: Path) -> None:
    teacher = '[teacher]\nprovider = "groq"\nprompts_file = "/dev/zero"\n'
    (home / "a.toml").write_text(TINY + teacher)
    (home / "b.toml").write_text(TINY.replace("[tokenizer]", '[tokenizer]\nkind = "gpt2"\nranks = "/dev/zero"\n#'))
    for name in ("a.toml", "b.toml"):
        assert "expected a file that exists" in str(next(iter(load(name).missing_files())))
    held("Bad input: a recipe cannot have a device read for ever", 2, 2)


# ------------------------------------------------------------------------------------------------ texts


def prepared(path: Path, folder: Path, **options: Any) -> str:
    """What becomes of a file as a corpus: what is wrong with it, or nothing."""
    table = {"path": str(path), **({"separator": "\n\n"} if path.suffix == ".txt" else {})}
    try:
        source = plugins().build("sources", "text", table)
        bpe = {"kind": "bpe", "vocab_size": 258}
        prepare(source, tokenizer=bpe, options={"held_out": 0.3, **options}, folder=folder)  # type: ignore[arg-type]
    except DistillkitError as error:
        return str(error)
    return ""


def test_nasty_texts_are_read_or_refused_in_words(home: Path, tmp_path: Path) -> None:
    files = [(f"{name}.txt", content) for name, content in texts(0.1)]
    files += [(f"{name}.jsonl", content) for name, content in ROWS.items()]
    for name, content in files:
        (home / name).write_bytes(content)
        before = time.process_time()
        whole, cut = (prepared(home / name, tmp_path / "c", **more) for more in ({}, {"block_chars": 40}))
        assert time.process_time() - before < 5, name
        for text in (whole, cut):
            assert len(text) < 1000, name
            assert all(map(shown, visible.printable(text)))
        assert "held out" in whole or whole, name  # one document cannot be split
    held("Bad input: a nasty text is read, or refused with its place", 2 * len(files), 2 * len(files))


@pytest.mark.slow
def test_one_long_line_neither_hangs_nor_bursts(home: Path, tmp_path: Path) -> None:
    megabytes = size(4, full=50)
    large = [(name, content) for name, content in texts(megabytes) if len(content) > 1_000_000]
    (home / "other.txt").write_text("Once upon a time there was a fox.\n" * 50)
    seconds = 10 + 3 * megabytes
    commands = []
    for name, content in large:
        (home / f"{name}.txt").write_bytes(content)
        words = ["run", "tiny.toml", "--until", "label", "--set", "data.source=text", "--set", "data.held_out=0.5"]
        paths = json.dumps([str(home / f"{name}.txt"), str(home / "other.txt")])
        commands += [[*words, "--set", f"data.path={paths}"], [*words, "--set", f"data.path={name}.txt"]]
    (home / "tiny.toml").write_text(TINY.replace("stories = 60\n", "").replace("vocab_size = 300", "vocab_size = 258"))
    ended = outcomes(commands, home, seconds=seconds)
    assert not faults(ended), json.dumps(faults(ended), indent=2)
    held("Bad input: one long line neither hangs nor bursts", len(ended), len(ended), f"{megabytes} MB a line")


# ------------------------------------------------------------------------------------------------ answers

STRANGE = "<img src=x onerror=document.title='owned'> 🦊\nline \u202e"
WIRED = """
extends = "tiny.toml"
name = "wired"
[data]
source = "text"
path = PATH
separator = "<end>"
[tokenizer]
vocab_size = 258
[teacher]
provider = "compatible"
model = "m"
base_url = "URL"
prompts_file = "prompts.txt"
max_tokens = 40
attempts = 2
[mixer]
name = "hard"
"""


def answering(call: Call) -> Act:
    """Each prompt by the answer that it names, and hostile in every other place as well."""
    kind = call.prompt.removeprefix("tell me ").removesuffix(".")

    def change(body: dict[str, Any]) -> None:
        body["choices"][0]["message"]["content"] = ANSWERS.get(kind, "well")
        body |= {"model": MARKUP + ESCAPES, "id": ESCAPES, "system_fingerprint": TURNED, MARKUP: [ESCAPES] * 3}

    return Act(change=change)


def wired(home: Path, provider: Provider) -> None:
    """A home with a recipe whose teacher says nasty things, and a corpus of a strange name."""
    story = home / f"{STRANGE}.txt"
    story.write_text("<end>".join(f"Once upon a time there were {i} foxes. {MARKUP} {EMOJI}" for i in range(40)))
    (home / "tiny.toml").write_text(TINY.replace("stories = 60\n", ""))
    text = WIRED.replace("PATH", json.dumps(str(story), ensure_ascii=False)).replace("URL", provider.url)
    (home / "wired.toml").write_text(text)
    (home / "prompts.txt").write_text("".join(f"tell me {name}.\n" for name in ANSWERS))
    (home / "bad.toml").write_text(text.replace("prompts.txt", "bad.txt").replace('"wired"', '"bad"'))
    (home / "bad.txt").write_text("be bad\n")


@pytest.mark.slow
def test_nasty_answers_are_kept_as_they_are_and_do_nothing(tmp_path: Path) -> None:
    home = tmp_path / STRANGE
    home.mkdir()
    with serving() as provider:
        provider.rule = answering
        wired(home, provider)
        first = outcomes([["run", "wired.toml", "--yes"]], home)
        assert first[0].code == 0, first[0].err
        kept(home)
        ended = [*first, *outcomes(looks(home), home), *refused(home, provider)]
    wrong = faults(ended)
    assert not wrong, json.dumps(wrong, indent=2)
    assert [one.words for one in ended if one.code not in (0, 1, 3)] == []
    held("Bad input: a nasty answer is kept as it is, and does nothing", len(ANSWERS), len(ANSWERS), "1 MB the longest")
    held("Bad input: no command shows what moves a cursor", len(ended), len(ended) - len(wrong))


def kept(home: Path) -> None:
    """Every answer is in the cache, letter by letter; half an emoji is none."""
    with DiskAnswerStore(home / "cache" / "teachers") as cache:
        rows = [
            cache.row(row["key"]) for row in read_jsonl(home / "reports" / "wired" / "1" / "answers" / "index.jsonl")
        ]
    texts = {row["answer"]["text"] for row in rows}
    assert len(rows) == len([text for text in ANSWERS.values() if text.strip()])
    assert texts == {text.replace(HALF, "\ufffd") for text in ANSWERS.values()}


def looks(home: Path) -> list[list[str]]:
    """Every way to look at what came of it."""
    (home / "again").mkdir()
    return [
        *(["report", "wired"], ["report", "wired", "--json"], ["runs"], ["runs", "--json"], ["plan", "wired.toml"]),
        *(["cache", "stats"], ["cache", "stats", "--json"], ["cache", "verify"], ["cache", "export", "a.jsonl"]),
        *(["cache", "import", "a.jsonl"], ["cache", "explain", "wired.toml"], ["cache", "explain", "bad.toml"]),
        ["cache", "prune", "--model", MARKUP, "--dry-run"],
        ["compare", "wired", "wired", "--html", "c.html", "--markdown", "c.md", "--csv", "tables"],
        ["generate", "wired", "--prompt", "Once", "--max-tokens", "5", "--samples", "2"],
        ["recipe", "show", "wired.toml"],
    ]


def refused(home: Path, provider: Provider) -> list[Outcome]:
    """What is shown of a provider that refuses with nasty words, and in no words at all."""
    found = []
    page = Act(502, {"Content-Type": "text/html"}, f"<html>{ESCAPES}{MARKUP}".encode())
    deep = Act(body=b'{"choices": ' + b"[" * 50_000 + b"]" * 50_000 + b"}")
    bodies = [error(400, ESCAPES + MARKUP), error(429, TURNED, "insufficient_quota"), page, deep]
    bodies += [Act(body=ESCAPES.encode("latin-1")), Act(body=b'{"choices": [{"finish_reason": []}]}')]
    for act in bodies:
        provider.rule = lambda call, act=act: act
        found += outcomes([["run", "bad.toml", "--yes"]], home)
        assert found[-1].code in (1, 3), found[-1]
    return found


# ------------------------------------------------------------------------------------------------ pages


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if found() is None:
        assert os.environ.get("DISTILLKIT_PEERS") != "required", "no Chromium is installed"
        lacking("no Chromium is installed")
    with Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


HOSTILE = [MARKUP, ESCAPES, TURNED, FORMULA, *(part + ">" for part in MARKUP.split(">") if part)]
ALL = " ".join(HOSTILE)


def hostile(folder: Path, number: int) -> tuple[Run, int]:
    """A run that tries to get out of a page wherever a run may say something, and in how many places that is."""
    text = f"{ALL} {number}"
    samples = [Sample(f"{text}{i}#0", f"{one} {i}", f"{one}\n{text}", i) for i, one in enumerate(HOSTILE)]
    grades = [Grade(text, 5.0 + i % 3 + number, sample=sample.id, note=text) for i, sample in enumerate(samples)]
    said: dict[str, Any] = {
        "recipe": text,
        "status": text,
        "started": text,
        "device": f"{text}{number}",
        "error": text,
        "warnings": HOSTILE,
        "versions": {text: text},
        "plugins": [{"name": text, "version": text}, text],
        "data": {"source": text, "train": {"documents": text, "tokens": 3}, text: text},
        "tokenizer": {"kind": text, "vocab_size": text},
        "student": {"arch": text, "parameters": {"total": 5, "unique": 5}, text: text},
        "teacher": {"provider": text, "model": text, "asked": 5 * number, "cached": 0, text: text},
        "training": {"steps": 3, "loss": 2.0, text: text, "gradient_norms": {text: 1.0}},
        "judges": {text: {text: {"value": 5.0 + number, "low": 4.0, "high": 7.0, "n": 20}}},
        "judges_protocol": {text: {"hash": text, "facts": {text: text}}},
    }
    name = "<img src=x onerror=document.title='owned'>"
    run = make(folder, f"{name}/{number}", samples=samples, judge=text, grades=[*grades, *graded()], **said)
    run.recipe.write_bytes(f"name = {json.dumps(text)}\n# {text} ```` \n".encode())
    write_jsonl(run.metrics, [{**row, "terms": {ALL: 1.0, "$x$": 2.0}} for row in history() if "terms" in row])
    return run, len(said) + 5


def does_nothing(browser: Browser, page: Path, scripts: int) -> None:
    """Open a page, touch everything in it, and see that nothing came of it."""
    browser.open(page)
    browser.settle()
    title = browser.js("document.title")
    browser.js("document.querySelectorAll('button, summary').forEach(b => b.click())")
    browser.js(
        "document.querySelectorAll('*').forEach(e => ['mouseover', 'focus', 'error', 'load'].forEach("
        "n => e.dispatchEvent(new Event(n))))"
    )
    browser.settle()
    time.sleep(0.2)  # for what would come later
    assert browser.js("document.title") == title
    assert "owned" not in title.replace("document.title='owned'", "")
    assert browser.js("document.querySelectorAll('script').length") == scripts
    dangerous = "img, iframe, object, embed, link, base, form, a[href], meta[http-equiv=refresh], input[autofocus]"
    assert browser.js(f"document.querySelectorAll(`{dangerous}`).length") == 0
    assert browser.js(
        "[...document.querySelectorAll('*')].every(e => [...e.attributes].every(a => !a.name.startsWith('on')))"
    )
    assert browser.js("getComputedStyle(document.body).display") != "none"
    assert "onerror=" in browser.js("document.body.textContent")  # it stands there, to be read
    assert browser.complaints == []
    assert browser.requests == [page.resolve().as_uri()]


@pytest.mark.slow
def test_no_page_does_what_a_run_says(browser: Browser, tmp_path: Path) -> None:
    runs, places = zip(*(hostile(tmp_path, number) for number in range(3)), strict=True)
    for run in runs:
        write_report(run)
        does_nothing(browser, run.path / "report.html", scripts=0)
    sides = read_runs(list(runs))
    page = tmp_path / "compare.html"
    page.write_text(compare_page.render_html(build_comparison(sides, anyway=True), sides), encoding="utf-8")
    does_nothing(browser, page, scripts=2)
    tried = len(HOSTILE) * sum(places)
    held(
        "Bad input: no page does what a run says",
        tried,
        tried,
        f"{len(HOSTILE)} tries in {sum(places)} places, Chromium",
    )


TORN = [
    "<script>document.title = 'owned'</script>",
    "<img src='http://127.0.0.1:9/x' onerror=\"document.title='owned'\">",
    "<svg onload=\"document.title='owned'\"></svg>",
    "<iframe src='http://127.0.0.1:9/'></iframe>",
    "<link rel=stylesheet href='http://127.0.0.1:9/x.css'>",
    "<style>@import 'http://127.0.0.1:9/x.css'; body { background: url(http://127.0.0.1:9/y) }</style>",
    "<form id=f action='http://127.0.0.1:9/'></form><script>f.submit()</script>",
    "<base href='http://127.0.0.1:9/'><object data='x'></object><embed src='x'>",
]


@pytest.mark.slow
def test_the_policy_of_a_page_stops_what_escaping_would_let_through(browser: Browser, tmp_path: Path) -> None:
    """The second wall, tried with the first one torn down."""
    runs = [make(tmp_path / "reports", f"one/{number}", seed=number) for number in (1, 2)]
    write_report(runs[0])
    sides = read_runs(runs)
    comparison = compare_page.render_html(build_comparison(sides, anyway=True), sides)
    for whole in ((runs[0].path / "report.html").read_text(), comparison):
        assert whole.count("<footer>") == 1
        for attempt in TORN:
            torn = tmp_path / "torn.html"
            torn.write_text(whole.replace("<footer>", f"{attempt}<footer>"))
            browser.open(torn)
            browser.settle()
            assert browser.js("document.title") != "owned", attempt
            asked = [url for url in browser.requests if not url.startswith(("file:", "data:"))]
            blocked = " ".join(browser.complaints)
            assert not asked or "blocked" in blocked or "violates" in blocked, attempt
            assert browser.js("location.protocol") == "file:"
    held(
        "Bad input: a page's policy stops what escaping would let through",
        2 * len(TORN),
        2 * len(TORN),
        "report and comparison, Chromium",
    )
