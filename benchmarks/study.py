"""The value of each kind of teacher signal at equal student compute: hard labels against five ways to distil.

    python benchmarks/study.py [--seeds 3] [--corpus tales] [--home reports/../study] [--markdown docs/study.md]

Runs the recipes of `recipes/study/`, each with every seed, through the command line, and skips what was already run.
Then compares each method with hard labels, paired by document, and writes the table. Seconds are those of this machine,
bytes are those kept on disk. `novels` is skipped if its text is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import report, table

from distillkit.plugins.manager import Plugins
from distillkit.recipe.recipe import load
from distillkit.stats import Difference, holm, mean_interval, paired_difference, verdict

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes" / "study"
NOVELS = HERE.parent.parent / "shared" / "data" / "austen_four_novels.txt.xz"
TEACHERS = {"tales": None, "novels": "novels_teacher"}
METHODS = {
    "": "hard labels only",
    "_text": "the teacher's text (sequence-level)",
    "_topk": "its 20 most likely tokens, stored (top-k offline)",
    "_logits": "all its logits, in the training step (forward KL)",
    "_reverse": "all its logits, reverse KL",
    "_onpolicy": "its logits on the student's text (on-policy, JSD)",
}
TEACHER = "(the teacher itself, trained once)"
STAGES = ("label", "train", "report")


@dataclass(frozen=True)
class RunResult:
    """The results of one run."""

    bits: dict[str, float]  # bits per byte of each held-out document
    bytes: dict[str, float]  # bytes of each held-out document
    label_seconds: float
    train_seconds: float
    train_cpu_seconds: float
    stored_bytes: int


def main() -> None:
    """Run what has not been run yet, then report."""
    options = _options()
    home = options.home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    text, found = [], {}
    for corpus in options.corpus or _corpora():
        teacher = _run(home, TEACHERS[corpus], 1) if TEACHERS[corpus] else None
        results = {arm: [_run(home, corpus + arm, seed) for seed in range(1, options.seeds + 1)] for arm in METHODS}
        rows, figures = _compare(results)
        if teacher:
            rows.append(_row_of(TEACHER, [teacher]))
            figures[TEACHER] = _figures_of([teacher], None)
        found[corpus] = figures
        report(f"{corpus}: {options.seeds} seeds, compared with hard labels", rows, figures, None)
        text.append((corpus, rows, figures))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(
            _replace_tables(options.markdown.read_text(encoding="utf-8"), text), encoding="utf-8"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--corpus", action="append", choices=list(TEACHERS), help="corpus to use; repeatable")
    parser.add_argument("--home", type=Path, default=HERE.parent / "reports" / "study", help="folder of the runs")
    parser.add_argument("--markdown", type=Path, help="page whose tables are updated")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _corpora() -> list[str]:
    if NOVELS.is_file():
        return list(TEACHERS)
    print(f"novels are skipped: {NOVELS.name} does not exist", file=sys.stderr)
    return ["tales"]


# ---------------------------------------------------------------------------------------------- running


def _run(home: Path, recipe: str, seed: int) -> RunResult:
    """Run one recipe with one seed, stage by stage, and skip the stages that are done."""
    name = f"study_{recipe}" if seed == 1 else f"study_{recipe}_{seed}"
    folder = home / "reports" / name / "1"
    _check_recipe(folder, recipe, name, seed)
    for stage in STAGES:
        if not _is_done(folder, stage):
            print(f"{name}: {stage}", file=sys.stderr, flush=True)
            _run_command(home, folder, stage, _command(folder, recipe, name, seed, stage))
    return _result(folder)


def _check_recipe(folder: Path, recipe: str, name: str, seed: int) -> None:
    """Refuse a run that was made with a different recipe than the current one."""
    if not (folder / "recipe.toml").is_file():
        return
    recipe_now = Plugins.load().check(load(str(RECIPES / f"{recipe}.toml"), _overrides(name, seed)))
    if recipe_now.to_toml() != (folder / "recipe.toml").read_text(encoding="utf-8"):
        raise SystemExit(f"{folder} was made with a different version of {recipe}.toml. Remove it, or set --home.")


def _overrides(name: str, seed: int) -> list[str]:
    """The overrides of a run."""
    return [f"seed={seed}", f'name="{name}"']


def _command(folder: Path, recipe: str, name: str, seed: int, stage: str) -> list[str]:
    until = ["--until", stage, "--yes"]
    if (folder / "run.json").is_file():
        return ["run", str(folder), "--resume", *until]
    overrides = [word for one in _overrides(name, seed) for word in ("--set", one)]
    return ["run", str(RECIPES / f"{recipe}.toml"), *overrides, *until]


def _is_done(folder: Path, stage: str) -> bool:
    return stage in _times(folder)


def _times(folder: Path) -> dict[str, Any]:
    file = folder / "study.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _run_command(home: Path, folder: Path, stage: str, arguments: list[str]) -> None:
    """Run one command and record its time in the run folder."""
    start, cpu_start = time.perf_counter(), _child_cpu_seconds()
    command = [sys.executable, "-m", "distillkit", *arguments]
    done = subprocess.run(
        command, env={**os.environ, "DISTILLKIT_HOME": str(home)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr.strip()[-2000:]}")
    taken = {"seconds": time.perf_counter() - start, "processor": _child_cpu_seconds() - cpu_start}
    (folder / "study.json").write_text(json.dumps({**_times(folder), stage: taken}), encoding="utf-8")


def _child_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _result(folder: Path) -> RunResult:
    """The results in a run folder."""
    grades = [json.loads(line) for line in (folder / "grades.jsonl").read_text(encoding="utf-8").splitlines()]
    bits = [grade for grade in grades if grade["criterion"] == "bits_per_byte"]
    info, times = json.loads((folder / "run.json").read_text(encoding="utf-8")), _times(folder)
    soft = ((info.get("teacher") or {}).get("soft") or {}).get("bytes", 0)
    packed = sum(file.stat().st_size for file in (folder / "answers").rglob("*") if file.is_file())
    return RunResult(
        bits={grade["document"]: grade["score"] for grade in bits},
        bytes={grade["document"]: grade["weight"] for grade in bits},
        label_seconds=times["label"]["seconds"],
        train_seconds=times["train"]["seconds"],
        train_cpu_seconds=times["train"]["processor"],
        stored_bytes=max(soft, packed),
    )


# ---------------------------------------------------------------------------------------------- comparing


def _compare(results: dict[str, list[RunResult]]) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """A table row for each method, compared with hard labels, and the data behind the table."""
    differences = {arm: _difference(runs, results[""]) for arm, runs in results.items() if arm}
    corrected = dict(
        zip(differences, holm([1.0 if one.p is None else one.p for one in differences.values()]), strict=True)
    )
    rows, figures = [], {}
    for arm, runs in results.items():
        each = [_mean(run) - _mean(hard) for run, hard in zip(runs, results[""], strict=True)]
        row = _row_of(METHODS[arm], runs)
        if arm:
            one = differences[arm]
            row["difference to hard labels"] = f"{one.value:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"
            row["each seed"] = " ".join(f"{value:+.4f}" for value in each)
            row["verdict"] = verdict(one, "lower") if corrected[arm] < 0.05 else "not distinguishable"
        rows.append(row)
        figures[METHODS[arm]] = _figures_of(runs, vars(differences[arm]) | {"holm": corrected[arm]} if arm else None)
    return rows, figures


def _row_of(name: str, runs: list[RunResult]) -> dict[str, str]:
    """The table row of some runs, without a comparison."""
    return {
        "training signal": name,
        "bits per byte": f"{mean_interval(*_seed_means(runs)).value:.4f}",
        "difference to hard labels": "",
        "each seed": "",
        "verdict": "",
        "teacher, s": f"{max(run.label_seconds for run in runs):.0f}",
        "training, s": f"{statistics.median(run.train_seconds for run in runs):.0f}",
        "stored": f"{statistics.median(run.stored_bytes for run in runs) / 1e6:.1f} MB",
    }


def _figures_of(runs: list[RunResult], difference: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "bits_per_byte": mean_interval(*_seed_means(runs)).value,
        "difference": difference,
        "seeds": [_mean(run) for run in runs],
        "seconds": {"label": [run.label_seconds for run in runs], "train": [run.train_seconds for run in runs]},
        "processor": [run.train_cpu_seconds for run in runs],
        "bytes": [run.stored_bytes for run in runs],
    }


def _difference(runs: list[RunResult], hard: list[RunResult]) -> Difference:
    """The paired difference by document, each averaged over the seeds; the bootstrap resamples documents."""
    scores, baseline = _by_document(runs), _by_document(hard)
    return paired_difference(scores, baseline, weights=runs[0].bytes)


def _by_document(runs: list[RunResult]) -> dict[str, float]:
    return {name: statistics.mean(run.bits[name] for run in runs) for name in runs[0].bits}


def _seed_means(runs: list[RunResult]) -> tuple[list[float], list[float], list[str]]:
    means = _by_document(runs)
    return list(means.values()), [runs[0].bytes[name] for name in means], list(means)


def _mean(run: RunResult) -> float:
    return sum(run.bits[name] * run.bytes[name] for name in run.bits) / sum(run.bytes.values())


def _replace_tables(page: str, tables: list[tuple[str, list[dict[str, str]], dict[str, Any]]]) -> str:
    """The page with the tables between their markers replaced."""
    for corpus, rows, _ in tables:
        begin, end = f"<!-- {corpus}: made by benchmarks/study.py -->\n", f"<!-- end of {corpus} -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}{table(rows)}\n{end}{rest.split(end, 1)[1]}"
    return page


if __name__ == "__main__":
    main()
