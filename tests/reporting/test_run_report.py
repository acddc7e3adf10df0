"""The reporting room: real run folders on disk, real files out of them."""

from __future__ import annotations

import csv
import json
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from distillkit.core.errors import DistillkitError, UsageError
from distillkit.core.files import read_json, write_jsonl
from distillkit.core.records import Sample
from distillkit.core.run_folder import Run
from distillkit.pipeline.judge_subject import compared_subject
from distillkit.reporting import formatting, plots, terminal
from distillkit.reporting.compare import compared_run, provenance
from distillkit.reporting.run.listing import format_listing, list_runs
from distillkit.reporting.run.report import build_report, build_tables, read_grades, read_metrics, write_report
from distillkit.reporting.run.text import format_report
from support.run_folders import RECIPE, Tags, graded, history, hostile, make, summary

# The report


def test_report_holds_what_machines_rely_on(tmp_path):
    run = make(tmp_path)
    report = write_report(run)

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
    write_report(run)
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    assert {"report.json", "report.md", "report.html"} <= {file.name for file in before}
    write_report(run)
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
    report = write_report(run)
    assert report["missing"] == missing
    for stage in missing:
        assert f"stage '{stage}' left no record" in format_report(report)
        assert f"stage &#39;{stage}&#39; left no record" in (run.path / "report.html").read_text()
        assert "left no record" in (run.path / "report.md").read_text()


@pytest.mark.parametrize(
    ("training", "imported", "missing"),
    [
        ({"steps": 600}, None, []),
        ({"steps": 30, "loss": 5.0}, None, ["train"]),
        ({"seconds": 4.0}, None, ["train"]),  # of a run from before steps were kept of what was interrupted
        ({"steps": "many"}, None, ["train"]),
        ({}, {"from": "model.npz"}, []),
    ],
)
def test_a_student_is_trained_when_it_has_all_steps_of_its_recipe_or_came_from_elsewhere(
    tmp_path, training, imported, missing
):
    run = make(tmp_path, training=training, imported=imported)
    run.recipe.write_text(RECIPE + "[train]\nsteps = 600\n")
    assert build_report(run)["missing"] == missing


def test_verdicts_on_other_weights_are_none_of_the_student(tmp_path):
    run = make(tmp_path, judges_protocol={"perplexity": {"hash": "ab12"}}, judged_weights="ab" * 32)
    assert (build_report(run)["missing"], list_runs([run])[0]["metric"]) == ([], "bits_per_byte")
    run.record(judged_weights="cd" * 32)
    report = build_report(run)
    assert (report["judges"], report["judges_protocol"], report["missing"]) == ({}, {}, ["judge"])
    assert list_runs([run])[0]["metric"] is None


def test_what_was_written_and_graded_in_the_middle_of_a_training_is_not_shown_at_its_end(tmp_path):
    run = make(tmp_path, judged_weights="ab" * 32)
    assert " a time." in shown(run)
    assert (len(compared_run.read_run(run, "one").samples), len(compared_run.read_run(run, "one").grades)) == (1, 2)
    run.record(judged_weights="cd" * 32)
    assert " a time." not in shown(run)
    assert (compared_run.read_run(run, "one").samples, compared_run.read_run(run, "one").grades) == ([], {})
    with pytest.raises(UsageError, match="the samples of quickstart/1 were not written yet"):
        compared_subject(run)
    run.record(sampling={"weights": "ab" * 32})  # they were written again, and the judge did not come to its end
    assert " a time." in shown(run)
    assert read_grades(run) == []
    run.record(judged_weights=None, sampling={"weights": "cd" * 32})
    assert " a time." not in shown(run)


def shown(run: Run) -> str:
    """All that a report shows of samples."""
    write_report(run)
    return "".join((run.path / name).read_text() for name in ("report.md", "report.html", "tables/samples.csv"))


def test_an_empty_folder_has_a_report(tmp_path):
    run = Run(tmp_path / "quickstart" / "1")
    run.path.mkdir(parents=True)
    report = write_report(run)
    assert report["status"] == "not known"
    assert report["missing"] == ["data", "train", "judge"]
    assert "No training steps were recorded" in (run.path / "report.html").read_text()
    assert list_runs([run])[0]["steps"] is None
    assert (run.path / "tables" / "grades.csv").read_text().startswith("judge,criterion,score")


def test_what_a_teacher_cost_is_what_all_sittings_spent_on_it_training_too(tmp_path):
    run = make(tmp_path, teacher={"provider": "groq", "usd": 0.25}, spent={"usd": 1.5, "requests": 9, "tokens": 99})
    report = write_report(run)
    assert report["teacher"]["usd"] == 1.5
    assert "$1.5000" in (run.path / "report.html").read_text()
    assert provenance.describe_run(compared_run.read_run(run, run.name))["usd"] == 1.5


def test_no_teacher_is_not_a_missing_stage(tmp_path):
    run = make(tmp_path, teacher=None)
    run.recipe.write_text('name = "quickstart"\n')
    report = build_report(run)
    assert report["missing"] == []
    assert "trained on the documents only" in format_report(report)


def test_whether_a_student_had_a_teacher_elsewhere_nobody_knows(tmp_path):
    run = make(tmp_path, teacher=None, imported={"from": "model.pt", "kind": "nanoGPT", "sha256": None})
    run.recipe.write_text('name = "quickstart"\n')
    said = format_report(build_report(run))
    assert "imported from" in said
    assert "model.pt" in said
    assert "trained on the documents only" not in said


def test_not_a_number_never_reaches_json(tmp_path):
    run = make(tmp_path)
    nan = {
        "kind": "train",
        "step": 900,
        "loss": math.nan,
        "terms": {"hard": math.inf},
        "tokens_per_second": 1,
    }
    write_jsonl(run.metrics, [*history(), nan])
    run.metrics.write_text(run.metrics.read_text() + '{"kind": "train", "st')  # and a torn last line
    (run.path / "run.json").write_text(json.dumps({**run.info, "training": {"loss": math.nan, "steps": 3}}))
    report = write_report(run)
    assert report["training"] == {"loss": None, "steps": 3}
    assert "nan" not in (run.path / "report.html").read_text().lower()


def test_a_broken_file_is_named(tmp_path):
    run = make(tmp_path)
    run.grades.write_text("not json\n{}\n")
    with pytest.raises(DistillkitError, match=r"grades\.jsonl"):
        write_report(run)


def test_a_resumed_run_shows_each_step_once(tmp_path):
    run = make(tmp_path)
    again = {"kind": "train", "step": 10, "loss": 9.0}
    write_jsonl(run.metrics, [*history(), again])
    (found,) = [r for r in read_metrics(run) if r["step"] == 10 and r["kind"] == "train"]
    assert found["loss"] == 9.0


def test_tables_for_spreadsheets(tmp_path):
    samples = [Sample("p#0", "A, b", 'line one\nline "two"', 7)]
    run = make(tmp_path, samples=samples)
    found = build_tables(run, write_report(run))
    assert list(found) == [f"tables/{n}.csv" for n in ("judges", "training", "grades", "samples")]
    read = {}
    for name, table in found.items():
        with (run.path / name).open(newline="", encoding="utf-8") as stream:
            read[name] = list(csv.DictReader(stream))
        assert len(read[name]) == len(table)
    assert read["tables/samples.csv"] == [{k: "" if v is None else str(v) for k, v in samples[0].to_json().items()}]
    assert float(read["tables/training.csv"][0]["term_hard"]) == history()[0]["terms"]["hard"]
    assert float(read["tables/grades.csv"][0]["score"]) == graded()[0].score
    assert read["tables/judges.csv"][1]["metric"] == "bits_per_byte"


def test_how_long_the_gradients_of_terms_are_is_shown_and_tabled(tmp_path):
    run, norms = make(tmp_path), {"hard": 0.04, "soft": 0.0005}
    look = {"kind": "validation", "step": 400, "loss": 2.0, "gradient_norms": norms}
    write_jsonl(run.metrics, [*history(), look])
    run.record(training={**(run.info.get("training") or {}), "gradient_norms": norms})
    report = write_report(run)
    assert report["training"]["gradient_norms"] == norms
    for shown in (format_report(report), (run.path / "report.html").read_text(), (run.path / "report.md").read_text()):
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
        ({"value": None}, "unknown"),
        ({"value": 1e30, "low": 1e29, "high": 1e31}, "1e+30 [1e+29, 1e+31]"),
    ],
)
def test_intervals_are_no_more_precise_than_they_are(metric, said):
    assert formatting.format_interval(metric) == said


def test_differences_carry_their_sign():
    assert formatting.format_interval({"value": 0.05, "low": 0.01, "high": 0.09}, signed=True) == "+0.05 [0.01, 0.09]"
    assert formatting.format_interval({"value": -0.001, "low": -0.9, "high": 0.9}, signed=True) == "0.00 [-0.90, 0.90]"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        *[(999, "999"), (1000, "1k"), (999_499, "999k"), (999_500, "1M"), (1_073_920, "1.07M")],
        *[(999_499_999, "999M"), (999_500_000, "1B"), (12_345_678_900, "12.3B")],
    ],
)
def test_a_large_number_has_three_digits_whatever_it_is_rounded_to(value, said):
    assert formatting.abbreviate(value) == said


def test_what_is_printed_is_compact_and_aligned(tmp_path):
    printed = format_report(build_report(make(tmp_path)))
    rows = printed.splitlines()
    assert max(map(len, rows)) <= terminal.WIDTH
    assert len(rows) < 40
    assert "\x1b" not in printed
    places = {line.index("lower is better") - line.index("0.6") for line in rows if "bits per byte" in line}
    assert len(places) == 1
    assert "150 requested, 50 from the cache" in printed
    assert "9,000 tokens/s  median over training steps" in printed
    assert "\x1b[" in format_report(build_report(make(tmp_path, "quickstart/2")), colour=True)


def test_the_judges_design_and_protocol_stand_in_the_report(tmp_path):
    variance = {"prompt": 0.5, "sample": 0.3, "noise": 0.2}
    design = {"prompts": 50, "samples": 100, "grades": 300, "variance": variance, "detectable": 0.34123}
    run = make(tmp_path, judges_design={"rubric": {"grammar": design}}, judges_protocol={"rubric": {"hash": "ab12"}})
    report = write_report(run)
    assert report["judges_protocol"] == {"rubric": {"hash": "ab12"}}
    words_ = " ".join(Tags((run.path / "report.html").read_text()).words)
    for said in ("50 prompts, 100 samples, 300 grades", "20% of the variance", "detectable difference 0.3412", "ab12"):
        assert said in words_


# Hostile names and samples


def test_the_page_does_nothing_but_show(tmp_path):
    run = hostile(tmp_path)
    write_report(run)
    source = (run.path / "report.html").read_text()
    seen = Tags(source)
    assert not {"script", "iframe", "img", "link", "object", "a", "base"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name.startswith("on") or name in ("src", "href")]
    assert (
        "content",
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'",
    ) in seen.attributes
    assert seen.tags.count("blockquote") == 1
    assert "<script>alert(1)</script>" in "".join(seen.words)
    assert "\x1b" not in source
    assert "\u202e" not in source
    assert "\\u202egnp.exe" in source


def test_the_terminal_is_safe_from_names(tmp_path):
    run = hostile(tmp_path)
    report = build_report(run)
    for printed in (
        format_report(report),
        format_listing(list_runs([run])),
    ):
        assert not [letter for letter in printed if letter != "\n" and not letter.isprintable()]
    assert "[bold]" in format_report(report)  # nobody's markup is ours


def test_markdown_is_safe_from_samples(tmp_path):
    run = hostile(tmp_path)
    write_report(run)
    source = (run.path / "report.md").read_text()
    assert (
        "<script>"
        not in source.replace(build_report(run)["recipe_text"].replace("\x1b", "\\u001b"), "")[
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
    write_report(run)
    assert "a ?" in (run.path / "report.html").read_text()


def test_letters_of_every_script_stay():
    assert formatting.printable("שלום 👩\u200d🚀 नमस्\u200dते\nnext") == "שלום 👩\u200d🚀 नमस्\u200dते\nnext"
    assert formatting.one_line("a\n b\x9b") == "a b\\u009b"


# Pictures


def test_curves_are_wellformed_and_always_the_same():
    picture = plots.plot_losses(history())
    assert picture == plots.plot_losses(history())
    root = ET.fromstring(picture)
    words = {"".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"step", "nats per token", "training, smoothed", "term: hard", "term: soft", "validation"} <= words
    assert "<script" not in picture
    assert "href" not in picture.replace('xlink:href="#', "")
    assert "Matplotlib" not in picture


def test_curves_of_nothing_and_of_little():
    assert plots.plot_losses([]) == ""
    for rows in (
        history()[:1],
        [{"kind": "validation", "step": 1, "loss": 2.0}],
        [{"kind": "train", "step": 1}],
    ):
        ET.fromstring(plots.plot_losses(rows))


def test_curves_take_hostile_names():
    rows = [{**r, "terms": {"$\\frac{$": 1.0, "_<b>\x1b": 2.0}} for r in history() if "terms" in r]
    words = "".join(ET.fromstring(plots.plot_losses(rows)).itertext())
    assert "term: $\\frac{$" in words
    assert "term: _<b>\ufffd" in words


def test_smoothing_neither_lags_nor_bends_a_line():
    line = np.linspace(5, 1, 200)
    assert np.allclose(plots.smooth(line), line)
    assert len(plots.smooth(np.array([3.0]))) == 1
    assert len(plots.smooth(np.array([]))) == 0


# Many runs


def test_listing_shows_broken_runs_too(tmp_path):
    good, broken = make(tmp_path, "a/1"), make(tmp_path, "a/2")
    (broken.path / "run.json").write_text("{")
    first, second = list_runs([good, broken])
    assert (first["metric"], first["parameters"], first["steps"]) == ("bits_per_byte", 1073920, 600)
    assert first["value"] == summary(graded())["bits_per_byte"]["value"]
    assert second["status"] == "unreadable"
    printed = format_listing([first, second])
    assert "a/1" in printed
    assert "bits per byte 0.6" in printed
    assert "unreadable" in printed
    assert "no runs yet" in format_listing([])


def test_importing_the_room_is_light():
    import subprocess
    import sys

    code = (
        "import sys, distillkit.reporting.run.report; "
        "print([m for m in ('mlx', 'pandas', 'matplotlib', 'jinja2', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
