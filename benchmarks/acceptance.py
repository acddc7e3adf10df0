"""Run the experiments that are too long for CI, one after another, and keep each result with the machine it came from.

    python benchmarks/acceptance.py [NAME ...] [--small] [--again] [--list] [--results FOLDER]

An experiment is a command. Its result, `FOLDER/NAME.json`, holds the machine, the command, its duration and exit code,
and what the command itself wrote to `{json}`. An experiment with a successful result is skipped, so an interrupted call
continues where it stopped; `--again` repeats it. `--small` runs the reduced forms, which take minutes; their results
are kept apart, as `NAME.small.json`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "acceptance"


@dataclass(frozen=True)
class Experiment:
    """A long measurement: `{python}` and `{json}` in the commands stand for this interpreter and the result file."""

    name: str
    about: str
    command: str
    small: str


EXPERIMENTS = (
    Experiment(
        "train-quickstart",
        "training step of the quickstart beside plain MLX and PyTorch",
        "{python} benchmarks/train.py quickstart --steps 20 --rounds 2 --json {json}",
        "{python} benchmarks/train.py quickstart --steps 3 --rounds 1 --json {json}",
    ),
    Experiment(
        "train-53m",
        "training step of the 53M student beside plain MLX and PyTorch",
        "{python} benchmarks/train.py 53m --rounds 1 --steps 5 --json {json}",
        "{python} benchmarks/train.py 53m --rounds 1 --steps 1 --json {json}",
    ),
    Experiment(
        "generate",
        "generation beside mlx-lm",
        "{python} benchmarks/generate.py --json {json}",
        "{python} benchmarks/generate.py --repeats 1 --tokens 16 --json {json}",
    ),
    Experiment(
        "study",
        "what each way to use a teacher is worth, three seeds",
        "{python} benchmarks/study.py --json {json}",
        "{python} benchmarks/study.py --seeds 1 --corpus tales --json {json}",
    ),
    Experiment(
        "guide",
        "every command of the guide, output compared with the pages",
        "{python} docs/walk.py --check",
        "{python} docs/walk.py --chapter 01 --steps 20",
    ),
    Experiment("trust", "the promises of docs/trust.md at full size", "make trust", "{python} -m pytest -q -m trust"),
)


def main() -> None:
    """Run the chosen experiments; exit with 1 when one failed."""
    options = _options()
    chosen = [one for one in EXPERIMENTS if not options.names or one.name in options.names]
    if options.list:
        for one in chosen:
            print(f"{one.name:<18} {one.about}")
        return
    failed = [one.name for one in chosen if not run(one, options.results, options.small, options.again)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run(experiment: Experiment, results: Path, small: bool = False, again: bool = False) -> bool:
    """Run one experiment unless it has a successful result; returns whether it has one now."""
    file = results / f"{experiment.name}{'.small' if small else ''}.json"
    if not again and succeeded(file):
        print(f"{experiment.name}: done before, see {file}")
        return True
    results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "result.json")
        template = experiment.small if small else experiment.command
        command = [word.format(python=sys.executable, json=output) for word in shlex.split(template)]
        print(f"{experiment.name}: {shlex.join(command)}", flush=True)
        started = time.monotonic()
        code = subprocess.run(command, cwd=HERE.parent, check=False).returncode
        result = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else None
    record = {
        "experiment": experiment.name,
        "command": template,
        "machine": _machine(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "exit_code": code,
        "result": result,
    }
    part = file.with_suffix(".part")
    part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    part.replace(file)
    print(f"{experiment.name}: {'done' if code == 0 else f'failed with exit code {code}'} in {record['seconds']} s")
    return code == 0


def succeeded(file: Path) -> bool:
    """Whether a result file records a success."""
    return file.is_file() and json.loads(file.read_text(encoding="utf-8"))["exit_code"] == 0


def _machine() -> dict[str, Any]:
    """The CPU, its cores and the packages; found in a child, since MLX must be imported after the BLAS is loaded."""
    code = (
        "import json; from distillkit.student import blas; blas.load();"
        "from distillkit.pipeline.bench import describe_machine; print(json.dumps(describe_machine()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=HERE.parent, capture_output=True, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments; all if none is named")
    parser.add_argument("--small", action="store_true", help="run the reduced forms")
    parser.add_argument("--again", action="store_true", help="repeat experiments that have a successful result")
    parser.add_argument("--list", action="store_true", help="list the experiments and exit")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - {one.name for one in EXPERIMENTS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(one.name for one in EXPERIMENTS)}")
    return options


if __name__ == "__main__":
    main()
