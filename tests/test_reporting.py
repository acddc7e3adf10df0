"""The reporting room: real run folders on disk, real files out of them."""

from __future__ import annotations

import csv
import json
import math
import random
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from distillkit.errors import DistillkitError, UsageError
from distillkit.files import read_json, write_lines
from distillkit.records import Grade, Sample
from distillkit.reporting import compare, page, plots, tables, terminal
from distillkit.runs import Run
from distillkit.stats import mean_interval

RECIPE = """name = "quickstart"
seed = 42

[data]
source = "tales"

[teacher]
provider = "checkpoint"
model = "tales-teacher"

[[judge]]
name = "perplexity"
"""

HOSTILE = "<script>alert(1)</script>\x1b[31mred\x07 \u202egnp.exe ![x](http://evil.example/a.png) a|b `c` [bold]"


def history(steps: int = 60, shift: float = 0.0) -> list[dict]:
    rng = random.Random(1)
    rows: list[dict] = []
    for step in range(5, 5 * steps, 5):
        hard, soft = (2 + shift + 5 * math.exp(-step / 60) + rng.gauss(0, 0.05) for _ in range(2))
        rows.append(
            {
                "kind": "train",
                "step": step,
                "loss": (hard + soft) / 2,
                "terms": {"hard": hard, "soft": soft},
                "learning_rate": 3e-4,
                "tokens_per_second": 9000.0 if step > 5 else 10.0,
            }
        )
        if step % 100 == 0:
            rows.append({"kind": "validation", "step": step, "loss": hard})
    return rows


def graded(shift: float = 0.0, seed: int = 0, documents: int = 60) -> list[Grade]:
    """A loss and bits per byte for each document: the difficulty is shared, the noise is each run's own."""
    shared, own = random.Random(99), random.Random(seed)
    grades = []
    for i in range(documents):
        tokens = shared.randint(80, 200)
        size, loss = int(tokens * 4.5), shared.gauss(2.0, 0.25) + shift + own.gauss(0, 0.05)
        grades.append(Grade("loss", loss, document=f"tale-{i}", weight=tokens))
        bits = loss * tokens / size / math.log(2)
        grades.append(Grade("bits_per_byte", bits, document=f"tale-{i}", weight=size))
    return grades


def summary(grades: list[Grade]) -> dict:
    metrics = {}
    for criterion in dict.fromkeys(grade.criterion for grade in grades):
        of = [g for g in grades if g.criterion == criterion]
        keys = [str(g.cluster) for g in of]
        metrics[criterion] = mean_interval([g.score for g in of], [g.weight for g in of], keys).to_json()
    if "loss" in metrics:
        metrics["perplexity"] = {
            "value": math.exp(metrics["loss"]["value"]),
            "low": None,
            "high": None,
            "n": 9,
        }
    return metrics


def make(
    folder: Path,
    name: str = "quickstart/1",
    *,
    grades: list[Grade] | None = None,
    samples: list[Sample] | None = None,
    judge: str = "perplexity",
    **info: object,
) -> Run:
    run = Run(folder / name)
    run.path.mkdir(parents=True)
    grades = graded() if grades is None else grades
    run.recipe.write_text(RECIPE)
    write_lines(run.metrics, history())
    write_lines(run.samples, [s.to_json() for s in samples or [Sample("p#0", "Once upon", " a time.", 7)]])
    write_lines(run.grades, [{"judge": judge, **grade.to_json()} for grade in grades])
    run.record(
        **{
            "schema": 1,
            "run": name,
            "recipe": "quickstart",
            "status": "done",
            "started": "2026-11-21T10:00:00Z",
            "seconds": {"data": 1.2, "label": 8.0, "train": 120.0, "judge": 9.0},
            "versions": {"distillkit": "0.1.0", "mlx": "0.32.1"},
            "plugins": [{"name": "distillkit", "version": "0.1.0"}],
            "device": "cpu, 2 threads",
            "seed": 42,
            "data": {
                "source": "tales",
                "fingerprint": "f0",
                "train": {"documents": 3000, "tokens": 400000, "bytes": 1800000},
                "held_out": {"documents": 60, "tokens": 8000, "bytes": 36000},
                "duplicates": 3,
            },
            "tokenizer": {"kind": "bpe", "vocab_size": 2048, "fingerprint": "t0"},
            "student": {"arch": "gpt", "parameters": {"total": 1073920, "unique": 1073920}},
            "teacher": {"provider": "checkpoint", "model": "tales-teacher", "asked": 150, "cached": 50},
            "training": {"steps": 600, "tokens": 1228800, "loss": 1.9, "weights_sha256": "ab" * 32},
            "judges": {judge: summary(grades)},
            "warnings": [],
            **info,
        }
    )
    return run


class Tags(HTMLParser):
    """Every tag and attribute of a page, and the text of it."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def row(comparison: dict, metric: str) -> dict:
    (found,) = [row for row in comparison["rows"] if row["metric"] == metric]
    return found


# The report


def test_report_holds_what_machines_rely_on(tmp_path):
    run = make(tmp_path)
    report = tables.write(run)

    assert read_json(run.report) == report
    assert (report["schema"], report["run"], report["recipe"], report["status"]) == (
        1,
        "quickstart/1",
        "quickstart",
        "done",
    )
    assert report["student"]["parameters"] == {"total": 1073920, "unique": 1073920}
    assert set(report["judges"]["perplexity"]["bits_per_byte"]) == {"value", "low", "high", "n"}
    assert report["speed"]["training_tokens_per_second"] == 9000.0  # the slow first step does not count
    assert report["speed"]["seconds"]["train"] == 120.0
    assert report["missing"] == []
    assert (report["device"], report["seed"]) == ("cpu, 2 threads", 42)
    assert report["recipe_text"] == RECIPE


def test_report_can_be_made_again_byte_for_byte(tmp_path):
    run = make(tmp_path)
    tables.write(run)
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    assert {"report.json", "report.md", "report.html"} <= {file.name for file in before}
    tables.write(run)
    assert {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("lost", "missing"),
    [
        ((), []),
        (("judges",), ["judge"]),
        (("judges", "training"), ["train", "judge"]),
        (("judges", "training", "teacher", "data"), ["data", "label", "train", "judge"]),
    ],
)
def test_unfinished_runs_say_what_is_missing(tmp_path, lost, missing):
    run = make(tmp_path, status="running")
    info = {key: value for key, value in run.info.items() if key not in lost}
    (run.path / "run.json").write_text(json.dumps(info))
    report = tables.write(run)
    assert report["missing"] == missing
    for stage in missing:
        assert f"stage '{stage}' left no record" in tables.text(report)
        assert f"stage &#39;{stage}&#39; left no record" in (run.path / "report.html").read_text()
        assert "left no record" in (run.path / "report.md").read_text()


def test_an_empty_folder_has_a_report(tmp_path):
    run = Run(tmp_path / "quickstart" / "1")
    run.path.mkdir(parents=True)
    report = tables.write(run)
    assert report["status"] == "not known"
    assert report["missing"] == ["data", "train", "judge"]
    assert "No training step was recorded" in (run.path / "report.html").read_text()
    assert tables.listing([run])[0]["steps"] is None
    assert (run.path / "tables" / "grades.csv").read_text().startswith("judge,criterion,score")


def test_no_teacher_is_not_a_missing_stage(tmp_path):
    run = make(tmp_path, teacher=None)
    run.recipe.write_text('name = "quickstart"\n')
    report = tables.build(run)
    assert report["missing"] == []
    assert "learned from the documents alone" in tables.text(report)


def test_not_a_number_never_reaches_json(tmp_path):
    run = make(tmp_path)
    nan = {
        "kind": "train",
        "step": 900,
        "loss": math.nan,
        "terms": {"hard": math.inf},
        "tokens_per_second": 1,
    }
    write_lines(run.metrics, [*history(), nan])
    run.metrics.write_text(run.metrics.read_text() + '{"kind": "train", "st')  # and a torn last line
    (run.path / "run.json").write_text(json.dumps({**run.info, "training": {"loss": math.nan, "steps": 3}}))
    report = tables.write(run)
    assert report["training"] == {"loss": None, "steps": 3}
    assert "nan" not in (run.path / "report.html").read_text().lower()


def test_a_broken_file_is_named(tmp_path):
    run = make(tmp_path)
    run.grades.write_text("not json\n{}\n")
    with pytest.raises(DistillkitError, match=r"grades\.jsonl"):
        tables.write(run)


def test_a_resumed_run_shows_each_step_once(tmp_path):
    run = make(tmp_path)
    again = {"kind": "train", "step": 10, "loss": 9.0}
    write_lines(run.metrics, [*history(), again])
    (found,) = [r for r in tables.history(run) if r["step"] == 10 and r["kind"] == "train"]
    assert found["loss"] == 9.0


def test_tables_for_spreadsheets(tmp_path):
    samples = [Sample("p#0", "A, b", 'line one\nline "two"', 7)]
    run = make(tmp_path, samples=samples)
    found = tables.csvs(run, tables.write(run))
    assert list(found) == [f"tables/{n}.csv" for n in ("judges", "training", "grades", "samples")]
    read = {}
    for name, table in found.items():
        with (run.path / name).open(newline="", encoding="utf-8") as stream:
            read[name] = list(csv.DictReader(stream))
        assert len(read[name]) == len(table)
    assert read["tables/samples.csv"] == [{k: str(v) for k, v in samples[0].to_json().items()}]
    assert float(read["tables/training.csv"][0]["term_hard"]) == history()[0]["terms"]["hard"]
    assert float(read["tables/grades.csv"][0]["score"]) == graded()[0].score
    assert read["tables/judges.csv"][1]["metric"] == "bits_per_byte"


def test_how_long_the_gradients_of_terms_are_is_shown_and_tabled(tmp_path):
    run, norms = make(tmp_path), {"hard": 0.04, "soft": 0.0005}
    look = {"kind": "validation", "step": 400, "loss": 2.0, "gradient_norms": norms}
    write_lines(run.metrics, [*history(), look])
    run.record(training={**(run.info.get("training") or {}), "gradient_norms": norms})
    report = tables.write(run)
    assert report["training"]["gradient_norms"] == norms
    for shown in (tables.text(report), (run.path / "report.html").read_text(), (run.path / "report.md").read_text()):
        assert "hard 0.04" in shown
        assert "soft 0.0005" in shown
    with (run.path / "tables/training.csv").open(newline="", encoding="utf-8") as stream:
        assert list(csv.DictReader(stream))[-1]["gradient_norm_soft"] == "0.0005"


# Words


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ({"value": 2.0123, "low": 1.9812, "high": 2.0511}, "2.01 [1.98, 2.05]"),
        ({"value": 0.6422, "low": 0.6291, "high": 0.6564}, "0.642 [0.629, 0.656]"),
        ({"value": 1234.5, "low": 1200.2, "high": 1270.9}, "1,234 [1,200, 1,271]"),
        ({"value": 2.0, "low": 2.0, "high": 2.0}, "2.000 [2.000, 2.000]"),
        ({"value": 0.25}, "0.2500"),
        ({"value": None}, "not known"),
        ({"value": 1e30, "low": 1e29, "high": 1e31}, "1e+30 [1e+29, 1e+31]"),
    ],
)
def test_intervals_are_no_more_precise_than_they_are(metric, said):
    assert page.interval(metric) == said


def test_differences_carry_their_sign():
    assert page.interval({"value": 0.05, "low": 0.01, "high": 0.09}, signed=True) == "+0.05 [0.01, 0.09]"
    assert page.interval({"value": -0.001, "low": -0.9, "high": 0.9}, signed=True) == "0.00 [-0.90, 0.90]"


def test_what_is_printed_is_compact_and_aligned(tmp_path):
    printed = tables.text(tables.build(make(tmp_path)))
    rows = printed.splitlines()
    assert max(map(len, rows)) <= terminal.WIDTH
    assert len(rows) < 40
    assert "\x1b" not in printed
    places = {line.index("bits a byte") - line.index("0.6") for line in rows if "bits a byte" in line}
    assert len(places) == 1
    assert "150 asked for, 50 from the cache" in printed
    assert "9,000 tokens a second  the median while training" in printed
    assert "\x1b[" in tables.text(tables.build(make(tmp_path, "quickstart/2")), colour=True)


# Hostile names and samples


def hostile(folder: Path) -> Run:
    samples = [Sample("p#0", HOSTILE, "</blockquote>" + HOSTILE + "\n# not a heading\n- nor a list", 1)]
    run = make(
        folder,
        samples=samples,
        run=HOSTILE,
        device=HOSTILE,
        warnings=[HOSTILE],
        plugins=[{"name": HOSTILE, "version": None}],
        teacher={"provider": HOSTILE, "model": HOSTILE, HOSTILE: HOSTILE},
        judges={HOSTILE: {HOSTILE: {"value": 1.0, "low": 0.9, "high": 1.1, "n": 3}}},
    )
    run.recipe.write_text(f'name = "x" # {HOSTILE} ````\n')
    write_lines(run.metrics, [{**r, "terms": {HOSTILE: 1.0, "$x$": 2.0}} for r in history() if "terms" in r])
    return run


def test_the_page_does_nothing_but_show(tmp_path):
    run = hostile(tmp_path)
    tables.write(run)
    source = (run.path / "report.html").read_text()
    seen = Tags(source)
    assert not {"script", "iframe", "img", "link", "object", "a", "base"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name.startswith("on") or name in ("src", "href")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in seen.attributes
    assert seen.tags.count("blockquote") == 1
    assert "<script>alert(1)</script>" in "".join(seen.words)
    assert "\x1b" not in source
    assert "\u202e" not in source
    assert "\\u202egnp.exe" in source


def test_the_terminal_is_safe_from_names(tmp_path):
    run = hostile(tmp_path)
    (comparison, report) = (compare.compare([run, run]), tables.build(run))
    for printed in (
        tables.text(report),
        compare.text(comparison),
        tables.listing_text(tables.listing([run])),
    ):
        assert not [letter for letter in printed if letter != "\n" and not letter.isprintable()]
    assert "[bold]" in tables.text(report)  # nobody's markup is ours


def test_markdown_is_safe_from_samples(tmp_path):
    run = hostile(tmp_path)
    tables.write(run)
    source = (run.path / "report.md").read_text()
    assert (
        "<script>"
        not in source.replace(tables.build(run)["recipe_text"].replace("\x1b", "\\u001b"), "")[
            : source.index("## The recipe")
        ]
    )
    assert "![x]" not in source[: source.index("## The recipe")]
    assert "> \\# not a heading" in source
    assert "> &#45; nor a list" in source
    assert "\x1b" not in source
    assert "\n`````toml\n" in source  # a fence longer than any inside


def test_half_a_character_is_written_all_the_same(tmp_path):
    run = make(tmp_path)
    run.samples.write_text('{"id": "p#0", "prompt": "a \\ud800", "completion": "b", "seed": 1}\n')
    tables.write(run)
    assert "a ?" in (run.path / "report.html").read_text()


def test_letters_of_every_script_stay():
    assert page.clean("שלום 👩\u200d🚀 नमस्\u200dते\nnext") == "שלום 👩\u200d🚀 नमस्\u200dते\nnext"
    assert page.line("a\n b\x9b") == "a b\\u009b"


# Pictures


def test_curves_are_wellformed_and_always_the_same():
    picture = plots.losses(history())
    assert picture == plots.losses(history())
    root = ET.fromstring(picture)
    words = {"".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"step", "nats a token", "training, smoothed", "term: hard", "term: soft", "validation"} <= words
    assert "<script" not in picture
    assert "href" not in picture.replace('xlink:href="#', "")
    assert "Matplotlib" not in picture


def test_curves_of_nothing_and_of_little():
    assert plots.losses([]) == ""
    assert plots.compare_losses({"a/1": []}) == ""
    for rows in (
        history()[:1],
        [{"kind": "validation", "step": 1, "loss": 2.0}],
        [{"kind": "train", "step": 1}],
    ):
        ET.fromstring(plots.losses(rows))


def test_curves_take_hostile_names():
    rows = [{**r, "terms": {"$\\frac{$": 1.0, "_<b>\x1b": 2.0}} for r in history() if "terms" in r]
    words = "".join(ET.fromstring(plots.losses(rows)).itertext())
    assert "term: $\\frac{$" in words
    assert "term: _<b>\ufffd" in words
    assert "_hidden/1" in "".join(ET.fromstring(plots.compare_losses({"_hidden/1": history()})).itertext())


def test_smoothing_neither_lags_nor_bends_a_line():
    line = np.linspace(5, 1, 200)
    assert np.allclose(plots.smooth(line), line)
    assert len(plots.smooth(np.array([3.0]))) == 1
    assert len(plots.smooth(np.array([]))) == 0


# Comparisons


def by_hand(ours: list[Grade], theirs: list[Grade], criterion: str) -> tuple[float, float, float]:
    """The paired difference and its interval, by the formula for a ratio of sums instead of resampling."""
    first = {g.document: g for g in ours if g.criterion == criterion}
    other = {g.document: g for g in theirs if g.criterion == criterion}
    weights = np.array([first[name].weight for name in first])
    gaps = np.array([other[name].score - first[name].score for name in first])
    mean = (weights * gaps).sum() / weights.sum()
    error = math.sqrt(((weights * (gaps - mean)) ** 2).sum()) / weights.sum()
    return float(mean), float(mean - 1.96 * error), float(mean + 1.96 * error)


@pytest.mark.parametrize(("shift", "verdict"), [(-0.05, "better"), (0.05, "worse"), (0.0, "no difference seen")])
def test_paired_interval_against_an_independent_computation(tmp_path, shift, verdict):
    ours, theirs = graded(seed=1), graded(shift, seed=3)  # 1 and 2 are the one in twenty
    runs = [make(tmp_path, "a/1", grades=ours), make(tmp_path, "b/1", grades=theirs)]
    comparison = compare.compare(runs)
    assert comparison["runs"] == ["a/1", "b/1"]
    for metric in ("loss", "bits_per_byte"):
        found = row(comparison, metric)
        mean, low, high = by_hand(ours, theirs, metric)
        assert found["difference"] == pytest.approx(mean)
        assert found["low"] == pytest.approx(low, abs=0.15 * (high - low))
        assert found["high"] == pytest.approx(high, abs=0.15 * (high - low))
        assert (found["verdict"], found["n"], found["note"]) == (verdict, 60, "")
        assert (found["baseline"], found["versus"]) == ("a/1", "b/1")
        assert found["values"]["b/1"] == summary(theirs)[metric]
    assert row(comparison, "perplexity")["verdict"] == verdict
    assert row(comparison, "perplexity")["difference"] is None


def test_pairing_sees_what_intervals_side_by_side_do_not(tmp_path):
    runs = [make(tmp_path, "a/1", grades=graded(seed=1)), make(tmp_path, "b/1", grades=graded(-0.05, seed=2))]
    found = row(compare.compare(runs), "loss")
    assert found["values"]["a/1"]["low"] < found["values"]["b/1"]["high"]  # they overlap
    assert found["verdict"] == "better"


def test_more_is_better_for_other_metrics_and_samples_pair_by_prompt(tmp_path):
    def words(score: float, seed: int) -> list[Grade]:
        rng = random.Random(seed)
        return [Grade("words", score + rng.random(), sample=f"p{i}#{k}") for i in range(20) for k in range(3)]

    def wrote(prompt: str) -> list[Sample]:
        return [Sample(f"p{i}#{k}", f"{prompt} {i}", " x", 0) for i in range(20) for k in range(3)]

    a = make(tmp_path, "a/1", judge="length", grades=words(5, 1), samples=wrote("Once"))
    b = make(tmp_path, "b/1", judge="length", grades=words(8, 2), samples=wrote("Once"))
    c = make(tmp_path, "c/1", judge="length", grades=words(8, 2), samples=wrote("Twice"))
    better, other = (row(compare.compare([a, run]), "words") for run in (b, c))
    assert (better["verdict"], better["n"]) == ("better", 20)  # clusters are prompts, not samples
    assert (other["verdict"], other["difference"]) == ("not comparable", None)


def test_repeated_grades_of_one_sample_are_one_pair(tmp_path):
    def grades(score: float) -> list[Grade]:
        return [Grade("plot", score + k, sample=f"p{i}#0") for i in range(5) for k in range(3)]

    runs = [make(tmp_path, f"{n}/1", judge="rubric", grades=grades(s)) for n, s in (("a", 5), ("b", 6))]
    found = row(compare.compare(runs), "plot")
    assert (found["difference"], found["n"], found["verdict"]) == (1.0, 5, "better")


def test_tokens_compare_only_within_one_tokenizer(tmp_path):
    a = make(tmp_path, "a/1")
    b = make(tmp_path, "b/1", grades=graded(-0.1), tokenizer={"kind": "bpe", "fingerprint": "t1"})
    comparison = compare.compare([a, b])
    for metric in ("loss", "perplexity"):
        found = row(comparison, metric)
        assert (found["verdict"], found["difference"]) == ("not comparable", None)
        assert "tokenizer" in found["note"]
    assert row(comparison, "bits_per_byte")["verdict"] == "better"


def test_other_held_out_documents_are_not_comparable(tmp_path):
    a = make(tmp_path, "a/1")
    elsewhere = [Grade(g.criterion, g.score, document=f"x{g.document}", weight=g.weight) for g in graded()]
    data = {**a.info["data"], "fingerprint": "f1"}
    heavier = [Grade(g.criterion, g.score, document=g.document, weight=g.weight + 1) for g in graded()]
    runs = [
        make(tmp_path, "b/1", grades=elsewhere),
        make(tmp_path, "c/1", grades=heavier, data=data),
        make(tmp_path, "d/1", data={**data, "held_out": {"documents": 60, "bytes": 1}}),
    ]
    for run in runs:
        found = row(compare.compare([a, run]), "bits_per_byte")
        assert (found["verdict"], found["note"]) == ("not comparable", "different held-out documents")
    same = make(tmp_path, "e/1", grades=graded(-0.1), data=data)  # other training text, same held-out text
    assert row(compare.compare([a, same]), "bits_per_byte")["verdict"] == "better"


def test_what_the_reader_must_know_stands_in_notes(tmp_path):
    heavier = [Grade(g.criterion, g.score - 0.1, document=g.document, weight=g.weight * 2) for g in graded()]
    a, b = make(tmp_path, "a/1"), make(tmp_path, "b/1", grades=heavier[:80], training={"tokens": 5})
    comparison = compare.compare([a, b])
    assert (
        row(comparison, "loss")["note"] == "40 of 60 were graded in both; weighted as in a/1, since the weights differ"
    )
    assert any("1,228,800 tokens and b/1 on 5" in note for note in comparison["notes"])
    assert any("2 differences were tested" in note for note in comparison["notes"])


def test_what_cannot_be_paired_is_said(tmp_path):
    whole = [Grade("distinct", 0.5)]
    a = make(tmp_path, "a/1", judge="diversity", grades=whole, judges={"diversity": {"distinct": {"value": 0.5}}})
    b = make(tmp_path, "b/1", judges={})
    c = make(tmp_path, "c/1", judge="diversity", grades=whole, judges={"diversity": {"distinct": {"value": 0.4}}})
    first, second = compare.compare([a, b, c])["rows"][0], compare.compare([a, c])["rows"][0]
    assert (first["verdict"], first["note"]) == ("not comparable", "b/1 has no such figure")
    assert (second["verdict"], second["difference"]) == ("not comparable", None)
    one = [make(tmp_path, f"{n}/2", grades=graded(documents=1)) for n in "ab"]
    assert "fewer than two" in row(compare.compare(one), "loss")["note"]


def test_a_comparison_reads_well_and_serves_machines(tmp_path):
    runs = [make(tmp_path, "a/1"), make(tmp_path, "b/1", grades=graded(-0.05, 2)), make(tmp_path, "c/1")]
    comparison = compare.compare(runs)
    assert json.loads(json.dumps(comparison, allow_nan=False)) == comparison
    printed = compare.text(comparison)
    assert max(map(len, printed.splitlines())) <= terminal.WIDTH
    assert "b/1 against a/1" in printed
    assert "c/1 against a/1" in printed
    source = page.compare_html(comparison, {run.name: tables.history(run) for run in runs})
    assert source == page.compare_html(comparison, {run.name: tables.history(run) for run in runs})
    assert {"script", "img", "link"}.isdisjoint(Tags(source).tags)
    assert 'class="verdict better"' in source


def test_two_runs_are_needed_and_may_share_a_name(tmp_path):
    a, b = make(tmp_path / "here", "a/1"), make(tmp_path / "there", "a/1")
    with pytest.raises(UsageError):
        compare.compare([a])
    comparison = compare.compare([a, b])
    assert comparison["runs"] == ["a/1", "a/1 (2)"]
    assert row(comparison, "loss")["verdict"] == "no difference seen"


# Many runs


def test_listing_shows_broken_runs_too(tmp_path):
    good, broken = make(tmp_path, "a/1"), make(tmp_path, "a/2")
    (broken.path / "run.json").write_text("{")
    first, second = tables.listing([good, broken])
    assert (first["metric"], first["parameters"], first["steps"]) == ("bits_per_byte", 1073920, 600)
    assert first["value"] == summary(graded())["bits_per_byte"]["value"]
    assert second["status"] == "unreadable"
    printed = tables.listing_text([first, second])
    assert "a/1" in printed
    assert "bits per byte 0.6" in printed
    assert "unreadable" in printed
    assert "no runs yet" in tables.listing_text([])


def test_importing_the_room_is_light():
    import subprocess
    import sys

    code = (
        "import sys, distillkit.reporting.tables; "
        "print([m for m in ('mlx', 'pandas', 'matplotlib', 'jinja2', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
