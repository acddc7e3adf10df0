"""The comparison page in a real browser: what a reader can do with it, what it never does, and how fast it opens."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from distillkit.core.files import write_jsonl
from distillkit.core.records import Grade, Sample
from distillkit.core.run_folder import Run
from distillkit.reporting import template
from distillkit.reporting.compare import page as compare_page
from distillkit.reporting.compare.comparison import build_comparison, compare, read_runs
from support.browser import Browser, found
from support.run_folders import HOSTILE, Tags, history, make, studied, study

SECONDS = 2.0
BYTES = 5_000_000


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if found() is None:
        (pytest.fail if os.environ.get("DISTILLKIT_PEERS") == "required" else pytest.skip)("no Chromium is installed")
    with Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


def page(folder: Path, runs: list[Run], name: str = "compare.html") -> Path:
    sides = read_runs(runs)
    (folder / name).write_text(compare_page.render_html(build_comparison(sides), sides), encoding="utf-8")
    return folder / name


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twelve")
    return page(folder, study(folder, 12, prompts=8))


def silent(browser: Browser, file: Path) -> bool:
    """No complaint, and nothing asked of anyone but the file itself."""
    return browser.complaints == [] and browser.requests == [file.resolve().as_uri()]


def column(browser: Browser, table: str, place: int) -> list[str]:
    """The texts of a column, of the rows that are seen."""
    rows = f"[...document.querySelectorAll('#{table} tbody tr')].filter(row => !row.hidden)"
    return browser.js(f"{rows}.map(row => row.cells[{place}].textContent.trim())")


def click(browser: Browser, selector: str, place: int = 0) -> None:
    browser.js(f"document.querySelectorAll({json.dumps(selector)})[{place}].click()")
    browser.settle()


def choose(browser: Browser, figure: str, place: int, value: str) -> None:
    browser.js(
        f"{{const s = document.querySelectorAll('#{figure} select')[{place}];"
        f"s.value = '{value}'; s.dispatchEvent(new Event('change'))}}"
    )
    browser.settle()


def drawn(browser: Browser) -> list[str]:
    """The runs whose curves are in the picture."""
    groups = "[...document.querySelectorAll('#curves svg g.validation')].map(g => data.runs[g.dataset.run].name)"
    return sorted(browser.js(groups))


# What a reader can do


def test_heads_sort_their_columns_both_ways(browser, twelve):
    browser.open(twelve)
    ranks = column(browser, "runs", 1)
    assert ranks == [str(i) for i in range(1, 13)]
    click(browser, "#runs thead button", 1)
    assert column(browser, "runs", 1) == ranks
    click(browser, "#runs thead button", 1)
    assert column(browser, "runs", 1) == ranks[::-1]  # numbers as numbers: 10 is after 9
    assert browser.js("document.querySelectorAll('#runs thead th')[1].getAttribute('aria-sort')") == "descending"
    click(browser, "#runs thead button", 0)
    assert column(browser, "runs", 0)[:3] == ["alone/1", "taught_100/1", "taught_200/1"]
    click(browser, "#differences thead button", 5)
    values = column(browser, "differences", 5)
    numbers = [float(value.split()[0]) for value in values if value != "–"]
    assert numbers == sorted(numbers)
    assert values[len(numbers) :] == ["–"] * (len(values) - len(numbers))  # what is missing comes last
    assert silent(browser, twelve)


def test_words_filter_the_rows(browser, twelve):
    browser.open(twelve)
    browser.js(
        "{const f = document.querySelector('[data-filter=differences] input');"
        "f.value = 'taught_300 Better'; f.dispatchEvent(new Event('input'))}"
    )
    names, verdicts = column(browser, "differences", 0), column(browser, "differences", 2)
    assert names
    assert set(names) == {"taught_300/1"}
    assert all(verdict.startswith("better") for verdict in verdicts)
    told = browser.js("document.querySelector('[data-filter=differences] output').textContent")
    assert told == f"{len(names)} of 77 rows"
    assert silent(browser, twelve)


def test_runs_can_be_shown_and_hidden(browser, twelve):
    browser.open(twelve)
    browser.settle()
    first = drawn(browser)
    assert len(first) == compare_page.MAX_RUNS_SHOWN
    assert "alone/1" in first
    best = browser.js("document.querySelector('#curves .chip').textContent")
    click(browser, "#curves .chip", 0)
    assert drawn(browser) == [name for name in first if name != best]
    assert browser.js("document.querySelector('#curves .chip').getAttribute('aria-pressed')") == "false"
    seen = "[...document.querySelectorAll('.card')].filter(c => c.offsetParent)"
    assert sorted(browser.js(f"{seen}.map(c => c.querySelector('h4').textContent)")) == drawn(
        browser
    )  # one choice for curves and stories
    click(browser, "#curves .sets button", 2)  # none
    assert drawn(browser) == []
    assert "Choose runs" in browser.js("document.querySelector('#curves .picture').textContent")
    click(browser, "#curves .sets button", 1)  # all
    assert len(drawn(browser)) == 12
    click(browser, "#curves input[type=checkbox]", 0)  # no validation
    assert drawn(browser) == []
    assert browser.js("document.querySelectorAll('#curves svg g.training').length") == 12
    assert silent(browser, twelve)


def test_samples_of_one_prompt_stand_side_by_side(browser, twelve):
    browser.open(twelve)
    sections = "[...document.querySelectorAll('section.prompt')].filter(s => !s.hidden)"
    seen = f"{sections}.map(s => s.querySelector('h3').textContent)"
    (first,) = browser.js(seen)
    click(browser, "#choose button", 1)  # next
    (second,) = browser.js(seen)
    assert first != second
    click(browser, "#choose button", 0)
    click(browser, "#choose button", 0)  # before the first comes the last
    assert browser.js("document.getElementById('prompt').value") == "7"
    browser.js("{const s = document.getElementById('prompt'); s.value = '0'; s.dispatchEvent(new Event('change'))}")
    assert browser.js(seen) == [first]
    cards = "[...document.querySelectorAll('section.prompt:not([hidden]) .card')].filter(c => !c.hidden)"
    assert len(browser.js(f"{cards}.map(c => c.textContent)")) == compare_page.MAX_RUNS_SHOWN
    assert "grammar" in browser.js(f"{cards}[0].textContent")
    assert silent(browser, twelve)


def test_pictures_follow_what_is_chosen(browser, twelve):
    browser.open(twelve)
    browser.settle()
    dots = "[...document.querySelectorAll('#dots svg')].map(s => s.querySelectorAll('g[data-run]').length)"
    assert browser.js(dots) == [12]
    choose(browser, "dots", 0, "all")
    assert browser.js(dots) == [12] * 7
    before = browser.js("document.querySelector('#costs svg').textContent")
    choose(browser, "costs", 1, "3")
    after = browser.js("document.querySelector('#costs svg').textContent")
    assert before != after
    assert "dollars" in before
    assert "teacher calls" in after
    for place, want in ((0, "not distinguishable"), (1, "better")):
        label = "document.querySelectorAll('#dots svg')[0].querySelectorAll('g[data-run] title')"
        texts = browser.js(f"[...{label}].map(t => t.textContent)")
        assert any(want in text for text in texts), place
    choose(browser, "curves", 0, "tokens")
    assert "training tokens" in browser.js("document.querySelector('#curves svg').textContent")
    assert silent(browser, twelve)


def test_the_keyboard_reaches_everything(browser, twelve):
    browser.open(twelve)
    browser.js("document.querySelector('#runs thead button').focus()")
    browser.key("Enter", 13, "\r")
    assert browser.js("document.querySelector('#runs thead th').getAttribute('aria-sort')") == "ascending"
    wanted = "button, select, input, .scroll"
    unreachable = f"[...document.querySelectorAll('{wanted}')].filter(e => e.offsetParent && e.tabIndex < 0).length"
    assert browser.js(unreachable) == 0
    nameless = (
        "[...document.querySelectorAll('button, select, input')].filter(e => "
        "!(e.textContent.trim() || e.getAttribute('aria-label') || (e.labels && e.labels.length))).length"
    )
    assert browser.js(nameless) == 0
    browser.js("document.querySelector('#curves .chip').focus()")
    browser.settle()
    assert browser.js("document.querySelectorAll('#curves svg .dimmed').length") > 0  # the others step back


def test_it_fits_a_phone_at_night_and_paper(browser, twelve, tmp_path):
    browser.open(twelve)
    try:
        for width, dark in ((390, False), (1200, True)):
            browser.look(width, dark=dark)
            assert browser.js("document.documentElement.scrollWidth <= innerWidth")
            ground, ink = browser.js(
                "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
            )
            brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ground, ink)]
            assert (brightness[0] < brightness[1]) == dark
    finally:
        browser.look(1200)
    browser.printed(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert silent(browser, twelve)


# What it never does


def evil(folder: Path, number: int) -> Run:
    """A run that tries to get out of the page in every place where a run may say something."""
    tries = [
        HOSTILE,
        "</script><script>document.title = 'owned'</script>",
        "<img src=x onerror=\"document.title='owned'\">",
        '" onmouseover="document.title=\'owned\'" x="',
        "<!--<script>",
        "</style><style>body{display:none}</style>",
        "{{ 7 * 7 }} ${7 * 7}",
        "\u2028document.title='owned'\u2029",
    ]
    text = " ".join(tries)
    run = make(
        folder,
        f"<img src=x onerror=alert({number})>/{number}",
        samples=[Sample(f"{text}#0", text, text, 1)],
        judge=text,
        grades=[Grade(text, 5.0 + i % 3 + number, sample=f"{text}{i}#0") for i in range(20)],
        judges={text: {text: {"value": 5.0 + number, "low": 4.0, "high": 7.0, "n": 20}}},
        device=f"{text}{number}",
        status=text,
        teacher={"provider": text, "model": text, "asked": 5 * number, "cached": 0},
        versions={text: text},
        plugins=[{"name": text, "version": text}],
        warnings=[text],
    )
    run.recipe.write_text(f"name = 'x'\n[{json.dumps(text)}]\n{json.dumps(text)} = {json.dumps(text + str(number))}\n")
    write_jsonl(run.metrics, [{**row, "terms": {text: 1.0, "hard": 2.0}} for row in history()])
    return run


def test_nothing_that_a_run_says_does_anything(browser, tmp_path):
    file = page(tmp_path, [evil(tmp_path, number) for number in range(3)])
    browser.open(file)
    browser.settle()
    title = browser.js("document.title")
    assert "owned" not in title
    browser.js("document.querySelectorAll('button').forEach(b => b.click())")
    browser.js("document.querySelectorAll('*').forEach(e => e.dispatchEvent(new Event('mouseover')))")
    browser.settle()
    assert browser.js("document.title") == title
    assert browser.js("document.querySelectorAll('script').length") == 2
    assert browser.js("document.querySelectorAll('img, iframe, object, embed, link, base, form, a').length") == 0
    assert browser.js(
        "[...document.querySelectorAll('*')].every(e => [...e.attributes].every(a => !a.name.startsWith('on')))"
    )
    assert "<script>alert(1)</script>" in browser.js("document.querySelector('.card p').textContent")
    assert browser.js("getComputedStyle(document.body).display") != "none"
    assert silent(browser, file)


def test_the_policy_stops_what_escaping_would_let_through(browser, tmp_path, twelve):
    """The second wall, tried with the first one torn down: a script that stands in the page does not run."""
    source = twelve.read_text()
    torn = source.replace(
        "<footer>", "<script>document.title = 'owned'</script><img src='http://127.0.0.1:9/x'><footer>"
    )
    file = tmp_path / "torn.html"
    file.write_text(torn)
    browser.open(file)
    browser.settle()
    assert browser.js("document.title") != "owned"
    assert browser.complaints  # the browser says what it refused
    (policy,) = [value for name, value in Tags(source).attributes if name == "content" and "default-src" in str(value)]
    assert "style-src 'sha256-" in str(policy)
    assert "unsafe" not in str(policy)


def test_without_a_script_everything_is_there(twelve):
    seen = Tags(twelve.read_text())
    words = " ".join(seen.words)
    assert seen.tags.count("table") == 4
    assert seen.tags.count("article") == 12 * 8
    assert seen.tags.count("noscript") == 3
    assert not [name for name, _ in seen.attributes if name.startswith("on") or name in ("src", "href", "style")]
    for said in ("taught_1100/1", "not distinguishable", "train.steps", "protocol of rubric"):
        assert said in words


def test_the_same_runs_make_the_same_page(tmp_path):
    runs = study(tmp_path, 3, prompts=3)
    assert page(tmp_path, runs, "a.html").read_bytes() == page(tmp_path, runs, "b.html").read_bytes()


def test_data_in_a_page_comes_back_as_it_was():
    value = {"</script>": ["<!--", "&amp;", "\u2028", "ü", 1.5, None]}
    text = str(template.embed_json(value))
    assert json.loads(text) == value
    assert not set("<>&\u2028") & set(text)


def test_the_page_says_which_way_is_better_as_the_judge_does(tmp_path):
    def run(name: str, longest: float):
        grades = [Grade("longest", longest + i % 3, sample=f"p{i}#0") for i in range(12)]
        return make(tmp_path, name, judge="memorization", grades=grades, lower_is_better={"memorization": ["longest"]})

    told = compare([run("a/1", 9), run("b/1", 4)])
    assert [line["run"] for line in told["ranking"]["rows"]] == ["b/1", "a/1"]
    source = page(tmp_path, [Run(tmp_path / "a/1"), Run(tmp_path / "b/1")]).read_text()
    assert "Ranked by longest, lower is better." in source
    losses = page(tmp_path, [make(tmp_path, name) for name in ("c/1", "d/1")]).read_text()
    assert "Ranked by bits per byte, lower is better." in losses


# How much, how fast, how clear


@pytest.mark.parametrize(("runs", "prompts"), [(20, 50), pytest.param(50, 50, marks=pytest.mark.slow)])
def test_many_runs_open_at_once(browser, tmp_path, runs, prompts):
    file = page(tmp_path, study(tmp_path, runs, prompts))
    assert file.stat().st_size < BYTES
    before = browser.seconds() if browser.js("location.protocol") == "file:" else 0.0
    browser.open(file)
    browser.settle()
    after = browser.seconds()
    used = after - before if after > before else after  # the page may have got a process of its own
    assert used < SECONDS
    assert browser.js("document.querySelectorAll('#runs tbody tr').length") == runs
    assert silent(browser, file)


def test_more_samples_than_a_page_can_hold_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_page, "MAX_SAMPLE_CHARACTERS", 20_000)
    runs = study(tmp_path, 3, prompts=40)
    source = page(tmp_path, runs).read_text()
    cards = Tags(source).tags.count("article")
    assert 3 <= cards < 120
    assert cards % 3 == 0  # whole rounds: every run shows as many
    assert f"Showing {cards} of 120 samples" in source


def test_a_comparison_of_unfinished_runs_has_a_page(browser, tmp_path):
    empty = Run(tmp_path / "empty" / "1")
    empty.path.mkdir(parents=True)
    file = page(tmp_path, [empty, make(tmp_path, "b/1", judges={}), studied(tmp_path, 2, 3, 4)])
    browser.open(file)
    browser.settle()
    assert silent(browser, file)
    assert "stage &#39;train&#39; left no record" in file.read_text()


# Colour-blind eyes: what is left of red, green and blue (linear light) for protan, deutan and tritan eyes.
EYES = {
    "all": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritan": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def light(colour: str) -> np.ndarray:
    """Linear light of a colour."""
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(colour: np.ndarray) -> np.ndarray:
    """CIE L*a*b*, in which distances are about as large as they look."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(colour, 0, 1) / np.array([0.9505, 1.0, 1.089])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def luminance(colour: str) -> float:
    return float(np.array([0.2126, 0.7152, 0.0722]) @ light(colour))


@pytest.mark.parametrize("night", [False, True])
def test_colours_are_told_apart_by_all_eyes(night):
    style = template.read_asset("style.css")
    block = style[style.index("prefers-color-scheme: dark") :] if night else style
    colours = {
        name: re.search(rf"--{name}: (#[0-9a-f]{{6}})", block)[1]
        for name in ("card", *(f"c{i}" for i in range(compare_page.COLOURS)))
    }
    ground = luminance(colours.pop("card"))
    for colour in colours.values():
        light_, dark = sorted((luminance(colour), ground), reverse=True)
        assert (light_ + 0.05) / (dark + 0.05) >= 3  # WCAG, for graphics
    for name, eye in EYES.items():
        for one, other in itertools.combinations(colours, 2):
            apart = np.linalg.norm(lab(eye @ light(colours[one])) - lab(eye @ light(colours[other])))
            assert apart > 20, (name, one, other, apart)
