"""Runs side by side: real run folders on disk, real tables and files out of them."""

from __future__ import annotations

import csv
import json
import math
import random
import re

import numpy as np
import pytest

from distillkit.core.errors import UsageError
from distillkit.core.files import write_jsonl
from distillkit.core.records import Grade, Sample
from distillkit.reporting import curves, markdown, terminal
from distillkit.reporting.compare import files, text
from distillkit.reporting.compare.comparison import build_comparison, compare, read_runs
from support.run_folders import HOSTILE, graded, hostile, make, protocols, study, summary


def row(comparison: dict, metric: str) -> dict:
    (found,) = [row for row in comparison["rows"] if row["metric"] == metric]
    return found


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


@pytest.mark.parametrize(("shift", "verdict"), [(-0.05, "better"), (0.05, "worse"), (0.0, "not distinguishable")])
def test_paired_interval_against_an_independent_computation(tmp_path, shift, verdict):
    ours, theirs = graded(seed=1), graded(shift, seed=3)  # 1 and 2 are the one in twenty
    runs = [make(tmp_path, "a/1", grades=ours), make(tmp_path, "b/1", grades=theirs)]
    comparison = compare(runs)
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
    found = row(compare(runs), "loss")
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
    better, other = (row(compare([a, run]), "words") for run in (b, c))
    assert (better["verdict"], better["n"]) == ("better", 20)  # clusters are prompts, not samples
    assert (other["verdict"], other["difference"]) == ("not comparable", None)


def test_judges_say_of_what_less_is_better(tmp_path):
    def runs(number: int, **info: object):
        grades = ([Grade("repetition", 0.2 + 0.1 * k + i / 99, sample=f"p{i}#0") for i in range(9)] for k in range(2))
        names = (f"{letter}/{number}" for letter in "ab")
        return [make(tmp_path, n, judge="diversity", grades=g, **info) for n, g in zip(names, grades, strict=True)]

    named = compare(runs(1, lower_is_better={"diversity": ["repetition"]}))
    assert row(named, "repetition")["verdict"] == "worse"
    assert named["metrics"][0]["better"] == "lower"
    assert [line["run"] for line in named["ranking"]["rows"]] == ["a/1", "b/1"]
    assert row(compare(runs(2)), "repetition")["verdict"] == "better"


def test_a_figure_that_nobody_is_better_by_has_a_difference_and_no_verdict(tmp_path):
    def run(name: str, far: float, **info: object):
        ids = [f"p{i}#0" for i in range(12)]
        grades = [Grade("words", 20 + far + i % 3, sample=sample) for i, sample in enumerate(ids)]
        grades += [Grade("repetition", 0.2 + far / 99 + i / 999, sample=sample) for i, sample in enumerate(ids)]
        said = {"lower_is_better": {"diversity": ["repetition"]}, **info}
        return make(tmp_path, name, judge="diversity", grades=grades, **said)

    neither = {"neither_is_better": {"diversity": ["words"]}}
    told = compare([run("a/1", 0, **neither), run("b/1", 9, **neither)])
    found = row(told, "words")
    assert (found["difference"], found["verdict"]) == (9, "neither")
    assert found["p"] is found["p_adjusted"] is None  # so what is tested is corrected for one fewer
    assert row(told, "repetition")["p_adjusted"] == row(told, "repetition")["p"]
    assert {metric["metric"]: metric["better"] for metric in told["metrics"]} == {"words": None, "repetition": "lower"}
    assert told["ranking"]["metric"] == "repetition"
    assert re.search(r"words +21\.\d* +30\.\d* .* neither", text.format_text(told))
    judged_so_before = compare([run("c/1", 0), run("d/1", 9)])
    assert row(judged_so_before, "words")["verdict"] == "better"


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (0.0, "0.0000"),
        (2.5e-6, "2.5e-06"),
        (3.3e-5, "0.00003300"),
        (0.01562, "0.0156"),
        (3.14159, "3.1416"),
        (1234.5, "1,234"),
        (123456.7, "123,457"),
        (12345678.0, "1.23e+07"),
    ],
)
def test_the_smallest_difference_that_shows_is_never_cut_short(tmp_path, seen, said):
    told = compare([make(tmp_path, "a/1"), make(tmp_path, "b/1", grades=graded(0.05, seed=1))])
    for found in told["rows"]:
        found["detectable"] = seen
    line = next(line for line in text.format_text(told).splitlines() if line.startswith("bits per byte"))
    assert re.search(rf"\] +{re.escape(said)} +worse$", line)
    assert f"| {said} |" in text.format_markdown(told)


def test_what_was_counted_over_other_samples_is_not_compared(tmp_path):
    def run(name: str, prompts: int, warmths: tuple[float, ...]):
        ids = [(f"p{i}#{k}", t) for k, t in enumerate(warmths) for i in range(prompts)]
        samples = [Sample(sample, f"Beginning {sample.partition('#')[0]}", " x", 0, t) for sample, t in ids]
        grades = [Grade("distinct", 0.5 + i / 99, sample=sample) for i, (sample, _) in enumerate(ids)]
        grades += [Grade("words", 5.0, sample=sample) for sample, _ in ids]
        figures = {metric: {"value": 0.5} for metric in ("distinct", "distinct@0.5", "distinct@1")}
        said = {"judges": {"diversity": figures}, "together": ["diversity"]}
        return make(tmp_path, name, judge="diversity", grades=grades, samples=samples, **said)

    a, same, fewer, cooler = (
        run(name, *how)
        for name, *how in (("a/1", 9, (1, 0.5)), ("b/1", 9, (1, 0.5)), ("c/1", 5, (1, 0.5)), ("d/1", 9, (1, 0.7)))
    )
    noted = {
        other.name: [row(compare([a, other]), metric)["note"] for metric in ("distinct", "distinct@1")]
        for other in (same, fewer, cooler)
    }
    told = "computed over different sets of samples: judge both runs with the same [sampling]"
    assert noted == {"b/1": ["", ""], "c/1": [told, told], "d/1": ["", ""]}


def test_repeated_grades_of_one_sample_are_one_pair(tmp_path):
    def grades(score: float) -> list[Grade]:
        return [Grade("plot", score + k, sample=f"p{i}#0") for i in range(8) for k in range(3)]

    runs = [make(tmp_path, f"{n}/1", judge="rubric", grades=grades(s)) for n, s in (("a", 5), ("b", 6))]
    found = row(compare(runs), "plot")
    assert (found["difference"], found["n"], found["verdict"]) == (1.0, 8, "better")


def test_tokens_compare_only_within_one_tokenizer(tmp_path):
    a = make(tmp_path, "a/1")
    b = make(tmp_path, "b/1", grades=graded(-0.1), tokenizer={"kind": "bpe", "fingerprint": "t1"})
    comparison = compare([a, b])
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
        found = row(compare([a, run]), "bits_per_byte")
        assert (found["verdict"], found["note"]) == ("not comparable", "different held-out documents")
    same = make(tmp_path, "e/1", grades=graded(-0.1), data=data)  # other training text, same held-out text
    assert row(compare([a, same]), "bits_per_byte")["verdict"] == "better"


def test_what_the_reader_must_know_stands_in_notes(tmp_path):
    heavier = [Grade(g.criterion, g.score - 0.1, document=g.document, weight=g.weight * 2) for g in graded()]
    a, b = make(tmp_path, "a/1"), make(tmp_path, "b/1", grades=heavier[:80], training={"tokens": 5})
    comparison = compare([a, b])
    assert row(comparison, "loss")["note"] == (
        "40 of 60 were graded in both runs; weighted as in a/1, since the weights differ"
    )
    assert any("1,228,800 tokens and b/1 on 5" in note for note in comparison["notes"])


def test_what_cannot_be_paired_is_said(tmp_path):
    whole = [Grade("distinct", 0.5)]
    a = make(tmp_path, "a/1", judge="diversity", grades=whole, judges={"diversity": {"distinct": {"value": 0.5}}})
    b = make(tmp_path, "b/1", judges={})
    c = make(tmp_path, "c/1", judge="diversity", grades=whole, judges={"diversity": {"distinct": {"value": 0.4}}})
    first, second = compare([a, b, c])["rows"][0], compare([a, c])["rows"][0]
    assert (first["verdict"], first["note"]) == ("not comparable", "b/1 does not have this metric")
    assert (second["verdict"], second["difference"]) == ("not comparable", None)
    one = [make(tmp_path, f"{n}/2", grades=graded(documents=1)) for n in "ab"]
    assert "fewer than two" in row(compare(one), "loss")["note"]


def test_few_runs_get_a_table_each_and_json_holds_everything(tmp_path):
    runs = [make(tmp_path, "a/1"), make(tmp_path, "b/1", grades=graded(-0.05, 2)), make(tmp_path, "c/1")]
    comparison = compare(runs)
    assert json.loads(json.dumps(comparison, allow_nan=False)) == comparison
    printed = text.format_text(comparison)
    assert max(map(len, printed.splitlines())) <= terminal.WIDTH
    assert "b/1 against a/1" in printed
    assert "c/1 against a/1" in printed
    assert {"metric", "values", "difference", "low", "high", "verdict"} <= set(comparison["rows"][0])


def test_two_runs_are_needed_and_may_share_a_name(tmp_path):
    a, b = make(tmp_path / "here", "a/1"), make(tmp_path / "there", "a/1")
    with pytest.raises(UsageError):
        compare([a])
    comparison = compare([a, b])
    assert comparison["runs"] == ["a/1", "a/1 (2)"]
    assert row(comparison, "loss")["verdict"] == "not distinguishable"


def test_samples_pair_by_prompt_however_many_each_run_wrote(tmp_path):
    def plots(shift: float, times: int, seed: int) -> list[Grade]:
        rng, hard = random.Random(seed), random.Random(1)
        base = [hard.gauss(6, 1) for _ in range(30)]
        return [
            Grade("plot", base[i] + shift + rng.gauss(0, 0.3), sample=f"p{i}#{k}")
            for i in range(30)
            for k in range(times)
        ]

    def wrote(times: int) -> list[Sample]:
        return [Sample(f"p{i}#{k}", f"Once {i}", " x", 0) for i in range(30) for k in range(times)]

    ours, theirs = plots(0, 4, 2), plots(0.5, 2, 3)
    a = make(tmp_path, "a/1", judge="rubric", grades=ours, samples=wrote(4))
    b = make(tmp_path, "b/1", judge="rubric", grades=theirs, samples=wrote(2))
    found = row(compare([a, b]), "plot")
    means = [[np.mean([g.score for g in of if g.cluster == f"p{i}"]) for i in range(30)] for of in (ours, theirs)]
    gaps = np.subtract(means[1], means[0])
    error = gaps.std(ddof=1) / math.sqrt(30)
    assert found["difference"] == pytest.approx(gaps.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 2.045 * error, rel=1e-3)  # Student's t of 29
    assert (found["verdict"], found["n"], found["note"]) == ("better", 30, "")


def test_texts_of_other_lengths_weigh_as_in_the_baseline(tmp_path):
    def scored(score: float, longer: int) -> list[Grade]:
        return [Grade("distinct", score, sample=f"p{i}#0", weight=10 + longer * i) for i in range(9)]

    runs = [
        make(tmp_path, f"{n}/1", judge="diversity", grades=scored(s, k)) for n, s, k in (("a", 0.5, 1), ("b", 0.6, 2))
    ]
    found = row(compare(runs), "distinct")
    assert found["note"] == "weighted as in a/1, since the weights differ"
    assert found["difference"] == pytest.approx(0.1)


def test_grades_at_one_temperature_are_paired_too(tmp_path):
    def at(folder: str, shift: float):
        grades = [Grade("plot", 5 + shift * (k == 1) + i % 3, sample=f"p{i}#{k}") for i in range(12) for k in range(2)]
        named = {"plot": {"value": 5.0}, "plot@0.5": {"value": 5.0}, "plot@1": {"value": 5.0 + shift}}
        run = make(tmp_path, folder, judge="rubric", grades=grades, judges={"rubric": named})
        rows = [
            {"id": f"p{i}#{k}", "prompt": f"P{i}", "completion": "x", "seed": 0} for i in range(12) for k in range(2)
        ]
        write_jsonl(run.samples, [{**r, "temperature": 0.5 if r["id"].endswith("#0") else 1.0} for r in rows])
        return run

    comparison = compare([at("a/1", 0), at("b/1", 1)])
    found = {r["metric"]: (r["difference"], r["verdict"]) for r in comparison["rows"]}
    assert found == {"plot": (0.5, "better"), "plot@0.5": (0.0, "not distinguishable"), "plot@1": (1.0, "better")}


def test_each_p_counts_among_all_metrics_of_its_pair(tmp_path):
    runs = study(tmp_path, 3)
    comparison = compare(runs)
    for versus in comparison["runs"][1:]:
        own = [r for r in comparison["rows"] if r["versus"] == versus and r["p"] is not None]
        assert len(own) == 5  # loss, bits per byte, three criteria; what is not paired is not counted
        for rank, found in enumerate(sorted(own, key=lambda r: r["p"])):
            least = found["p"] * (len(own) - rank)
            assert found["p_adjusted"] >= min(1.0, least) - 1e-12
        assert all(r["verdict"] == "not distinguishable" for r in own if r["p_adjusted"] > 0.05)
        assert all(r["detectable"] > 0 for r in own)


def test_grades_of_another_protocol_are_refused(tmp_path):
    a, b, c = study(tmp_path, 3)
    c.record(judges_protocol=protocols("gpt-5-2025"))
    with pytest.raises(UsageError) as refused:
        compare([a, b, c])
    assert "rubric: model (alone/1 and taught_100/1: gpt-4.1-2025-04-14; taught_200/1: gpt-5-2025)" in str(
        refused.value
    )
    assert "scale" not in str(refused.value)
    assert "--anyway" in str(refused.value)
    comparison = compare([a, b, c], anyway=True)
    assert comparison["anyway"] is True
    for output in (text.format_text(comparison), text.format_markdown(comparison), json.dumps(comparison)):
        assert "judged under different protocols" in " ".join(output.split())
    noted = {(r["versus"], r["judge"]) for r in comparison["rows"] if "judged under different protocols" in r["note"]}
    assert noted == {("taught_200/1", "rubric")}
    assert compare([a, b], anyway=True)["anyway"] is False  # nothing to be said where all is well


def test_a_judge_that_gave_nothing_does_not_keep_runs_apart(tmp_path):
    runs = [make(tmp_path, f"{name}/1") for name in "ab"]
    for run, models in zip(runs, (["m1"], []), strict=True):
        given = {"a over b": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}} if models else {}
        judged = {"pairwise": {"hash": str(models), "facts": {"models": models}}}
        run.record(judges={**run.info["judges"], "pairwise": given}, judges_protocol=judged)
    assert row(compare(runs), "loss")["n"] == 60


def test_a_protocol_that_nobody_recorded_is_a_note(tmp_path):
    a, b = study(tmp_path, 2)
    b.record(judges_protocol={})
    notes = compare([a, b])["notes"]
    assert any("The protocol of rubric was not recorded for taught_100/1" in note for note in notes)


def test_many_runs_become_one_ranking(tmp_path):
    runs = study(tmp_path, 9, prompts=12)
    comparison = compare(runs)
    printed = text.format_text(comparison)
    lines = printed.splitlines()
    assert max(map(len, lines)) <= terminal.WIDTH
    assert len(lines) < 60
    values = [r["value"] for r in comparison["ranking"]["rows"]]
    assert values == sorted(values)
    assert [r["rank"] for r in comparison["ranking"]["rows"]] == list(range(1, 10))
    assert "9 runs by bits per byte" in printed
    for run in comparison["runs"]:
        assert run in printed
    assert "▲" in printed
    assert "grammar" in printed


def test_what_does_not_compare_is_not_ranked(tmp_path):
    runs = study(tmp_path, 4, prompts=12)
    runs[2].record(data={**runs[2].info["data"], "fingerprint": "other", "held_out": {"documents": 1, "bytes": 2}})
    last = compare(runs)["ranking"]["rows"][-1]
    assert (last["run"], last["rank"], last["verdict"]) == ("taught_200/1", None, "not comparable")


def test_only_what_differs_between_the_recipes_is_shown(tmp_path):
    comparison = compare(study(tmp_path, 3, prompts=4))
    keys = [r["key"] for r in comparison["recipes"]]
    assert set(keys) == {"seed", "train.steps", "teacher.provider", "teacher.prompts", "mixer.name", "mixer.alpha"}
    (steps,) = [r["values"] for r in comparison["recipes"] if r["key"] == "train.steps"]
    assert steps == {"alone/1": 600, "taught_100/1": 650, "taught_200/1": 700}
    facts = {r["fact"]: r["values"] for r in comparison["provenance"]}
    assert facts["data hash"]["alone/1"] == "f0"
    assert facts["protocol of rubric"]["taught_100/1"] == protocols()["rubric"]["hash"]


def test_every_table_can_be_had_as_csv(tmp_path):
    found = read_runs(study(tmp_path, 5, prompts=6))
    comparison = build_comparison(found)
    files.write_files(comparison, found, csv=tmp_path / "csv", markdown=tmp_path / "c.md", html=tmp_path / "c.html")
    read = {}
    for file in (tmp_path / "csv").iterdir():
        with file.open(newline="", encoding="utf-8") as stream:
            read[file.stem] = list(csv.DictReader(stream))
    assert set(read) == {"runs", "differences", "recipes", "provenance", "curves", "samples"}
    assert len(read["runs"]) == 5
    assert len(read["differences"]) == len(comparison["rows"])
    assert len(read["samples"]) == 30
    first = {(r["run"], r["metric"]): r for r in read["differences"]}
    for one in comparison["rows"]:
        cell = first[one["versus"], one["metric"]]["difference"]
        assert cell == ("" if one["difference"] is None else str(one["difference"]))
    assert read["runs"][0]["rank"] == "1"
    assert read["runs"][0]["training_tokens"].isdigit()  # a whole number stays one
    source = (tmp_path / "c.md").read_text()
    assert "| train.steps |" in source or "train.steps" in source
    assert "not distinguishable" in source or "better" in source


def test_hostile_names_are_nothing_but_text(tmp_path):
    run = hostile(tmp_path)
    comparison = compare([run, run])
    printed = text.format_text(comparison)
    assert not [letter for letter in printed if letter not in "\n" and not letter.isprintable()]
    assert markdown.escape(HOSTILE) in text.format_markdown(comparison)
    assert "<script>" not in text.format_markdown(comparison)


def test_at_most_fifty(tmp_path):
    runs = study(tmp_path, 2, prompts=1) * 26
    with pytest.raises(UsageError, match="at most 50"):
        compare(runs)


def test_curves_are_thinned_by_means(tmp_path):
    rows = [
        {"kind": "train", "step": s, "loss": 9.0, "terms": {"hard": float(s % 7), "soft": 1.0}} for s in range(1, 4001)
    ]
    rows.append({"kind": "validation", "step": 4000, "loss": 2.5})
    found = curves.downsample(rows)
    assert len(found["training"]) == curves.MAX_POINTS
    assert found["rows_per_point"] == 25
    steps, losses = np.array(found["training"]).T
    assert np.average(losses) == pytest.approx(np.mean([s % 7 for s in range(1, 4001)]), rel=1e-3)
    assert steps[0] == 13.0  # the middle of the first twenty-five
    assert found["validation"] == [[4000.0, 2.5]]
    assert curves.downsample([]) == {"training": [], "validation": [], "rows_per_point": 0}
    broken = [{"kind": "train", "step": 1, "loss": None}, {"kind": "train", "loss": 2.0}]
    assert curves.downsample(broken)["training"] == []
