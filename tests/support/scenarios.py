"""Commands that tests kill: their initial home, the command that resumes them, and the expected result.

Knows no fault. Homes are made once, by undisturbed commands, and copied for each try.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distillkit.core.files import file_digest, read_json, read_jsonl
from distillkit.core.run_folder import Run
from distillkit.data.corpus import Corpus
from distillkit.student import checkpoint as checkpoints
from distillkit.teachers.answers import maintenance
from distillkit.teachers.answers.disk import DiskAnswerStore
from support.chat_provider import PROBE, Call, Provider
from support.fork_server import Ended, ForkServer
from support.judge_provider import Judge
from support.small_recipe import small

OUT = 3  # calls that may be out at once
RECIPE = small(
    "tiny",
    """
[teacher]
provider = "compatible"
model = "m"
base_url = "{url}"
prompts = 6
prompt_tokens = 4
max_tokens = 20
top_logprobs = 2
concurrency = {out}
[mixer]
name = "alpha-temperature"
[train]
steps = 6
batch_size = 2
evaluate_every = 2
checkpoint_every = 2
keep = 2
[sampling]
count = 3
max_tokens = 8
[[judge]]
name = "perplexity"
[[judge]]
name = "rubric"
teacher = {{ provider = "compatible", model = "judge", base_url = "{url}", concurrency = {out} }}
""",
)
TIMES = {"started", "seconds", "speed"}  # of a report: when, and how fast


@dataclass(frozen=True)
class Scene:
    """A command on a kind of home, and the command that resumes it after an interruption."""

    name: str
    home: str
    words: tuple[str, ...]
    resume: tuple[str, ...] = ()  # where there is a run to go on with; else the same again

    def again(self, home: Path) -> tuple[str, ...]:
        """The command with which a user resumes an interrupted command."""
        return self.resume if self.resume and newest(home) else self.words


SCENES = (
    Scene("run", "empty", ("run", "tiny.toml", "--yes"), ("run", "tiny.toml", "--resume", "--yes")),
    Scene("label", "empty", ("label", "tiny.toml", "--yes"), ("label", "tiny", "--yes")),
    Scene("train", "labelled", ("train", "tiny")),
    Scene("judge", "trained", ("judge", "tiny", "--yes")),
    Scene("report", "done", ("report", "tiny")),
    Scene("export", "done", ("export", "tiny", "--format", "hf", "--to", "exported")),
    Scene("cache export", "done", ("cache", "export", "answers.jsonl.gz")),
    Scene("cache import", "bare", ("cache", "import", "answers.jsonl.gz")),
    Scene("import", "abroad", ("import", "exported", "--name", "brought")),
)


@dataclass
class Stage:
    """Homes of every kind, the provider, and the result of each command without a fault."""

    folder: Path
    fork_server: ForkServer
    provider: Provider
    judge: Judge = field(default_factory=Judge)
    undisturbed: dict[str, tuple[dict[str, Any], Ended]] = field(default_factory=dict)
    needed: dict[str, Counter[str]] = field(default_factory=dict)  # what each command asks

    def prepare(self) -> None:
        """Make a home of every kind."""
        self.provider.rule = lambda call: self.judge(call) if call.body["model"] == "judge" else None
        empty = self.folder / "empty"
        empty.mkdir()
        (empty / "tiny.toml").write_text(RECIPE.format(url=self.provider.url, out=OUT))
        self._made("labelled", "empty", ("label", "tiny.toml", "--yes"))
        assert kept(self.copy("labelled")) == self.asked()
        self._made("trained", "labelled", ("train", "tiny"))
        done = self._made("done", "trained", ("judge", "tiny", "--yes"))
        for name, words in (("bare", ("cache", "export", "../bare/answers.jsonl.gz")), ("abroad", EXPORTED)):
            (self.folder / name).mkdir()
            self.well(done, *words)

    def _made(self, name: str, of: str, words: tuple[str, ...]) -> Path:
        home = self.copy(of, name)
        self.well(home, *words)
        return home

    def well(self, home: Path, *words: str) -> Ended:
        """Run a command without a fault; it must succeed."""
        ended = self.fork_server.run(home, *words)
        assert ended.code == 0, f"{' '.join(words)}: {ended.code}\n{ended.err}"
        return ended

    def copy(self, kind: str, name: str = "try") -> Path:
        """A fresh home of a kind."""
        home = self.folder / name
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(self.folder / kind, home)
        return home

    def look(self, home: Path) -> Path:
        """A copy of a home to inspect: opening a database repairs it."""
        return self.copy(home.name, "look")

    def expected(self, scene: Scene) -> tuple[dict[str, Any], Ended]:
        """The result of a command without a fault, its boundaries and its duration."""
        if scene.name not in self.undisturbed:
            home = self.copy(scene.home)
            self.provider.forget()
            ended = self.well(home, *scene.words)
            self.needed[scene.name] = self.asked()
            self.undisturbed[scene.name] = outcome(home), ended
        return self.undisturbed[scene.name]

    def asked(self) -> Counter[str]:
        """The prompts since `provider.forget`, without probes."""
        return Counter(_said(call) for call in self.provider.calls if call.prompt != PROBE)


EXPORTED = ("export", "tiny", "--format", "hf", "--to", "../abroad/exported")


def _said(call: Call) -> str:
    return json.dumps([call.body["model"], call.body.get("seed"), call.body["messages"]])


def kept(home: Path) -> Counter[str]:
    """What the cache of a home has answers to, as `Stage.asked` names it, and how many: a judge may ask again."""
    return Counter(name for name, _ in _answers(home).values() if name)


def _answers(home: Path) -> dict[str, tuple[str | None, Any]]:
    """What was asked and what was answered, by key."""
    if not (home / "cache" / "teachers").exists():
        return {}
    found = {}
    with DiskAnswerStore(home / "cache" / "teachers") as cache:
        for row in cache.rows():
            values = maintenance.validate_row(row.key, row.text)
            request = values["asked"].get("request") or {}
            said = [values["asked"]["identity"]["model"], request.get("seed"), request.get("messages")]
            found[row.key] = (json.dumps(said) if request else None, values.get("answer"))
    return found


# ------------------------------------------------------------------------------------------- what must be the same


def newest(home: Path, name: str = "tiny") -> Run | None:
    """The newest run of a name in a home."""
    found = [path for path in (home / "reports" / name).glob("[0-9]*") if (path / "run.json").is_file()]
    return Run(max(found, key=lambda path: int(path.name))) if found else None


def outcome(home: Path, swept: bool = True) -> dict[str, Any]:
    """Everything in a home that must be the same, without times and run numbers."""
    brought = {name: run for name in ("tiny", "brought") if (run := newest(home, name))}
    return {
        "runs": {name: of_run(run) for name, run in brought.items()},
        "answers": {key: answer for key, (_, answer) in sorted(_answers(home).items())},
        "exported": {file.name: file_digest(file) for file in sorted((home / "exported").glob("*"))},
        "archive": _archive(home / "answers.jsonl.gz"),
        "whole": whole(home, swept),
    }


def of_run(run: Run) -> dict[str, Any]:
    """Everything in a run that must be the same."""
    files = [run.answers / "index.jsonl", run.samples, run.grades, run.path / "tables" / "judges.csv"]
    found = {
        "report": timeless(read_json(run.report)) if run.report.is_file() else None,
        "files": {file.name: file.read_text() for file in files if file.is_file()},
        "checkpoints": {
            one.path.name: one.checksums["model.safetensors"] for one in checkpoints.list_checkpoints(run.checkpoints)
        },
        "packed": {path.parent.name: read_json(path)["digest"] for path in sorted(run.answers.glob("*/manifest.json"))},
        "training": {key: value for key, value in run.info.get("training", {}).items() if key != "seconds"},
        "status": run.info["status"],
    }
    return json.loads(re.sub(rf"\b(tiny|brought)/{run.path.name}\b", r"\1/N", json.dumps(found)))  # type: ignore[no-any-return]


def timeless(report: dict[str, Any]) -> dict[str, Any]:
    """A report without times."""
    training = {key: value for key, value in report["training"].items() if key not in TIMES}
    return {key: value for key, value in report.items() if key not in TIMES} | {"training": training}


def _archive(file: Path) -> list[Any]:
    """The rows of an archive, without its date."""
    if not file.is_file():
        return []
    header, *rows = (json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines())
    return [{key: value for key, value in header.items() if key != "made"}, *rows]


def whole(home: Path, swept: bool = True) -> bool:
    """Whether every file that is there under its own name is whole. Afterwards nothing half-written may lie beside."""
    for path in home.rglob("*"):
        if any(parent.name.startswith("damaged-") for parent in path.parents):  # what a run set aside
            continue
        if ".part" in path.name or any(".part" in parent.name for parent in path.parents):
            assert not swept, f"{path} was left"
        elif path.suffix == ".json":
            read_json(path)
        elif path.suffix == ".jsonl":
            read_jsonl(path)
    for path in home.glob("reports/*/[0-9]*/run.json"):
        run = Run(path.parent)
        assert run.info["run"] == run.name
        assert run.recipe.is_file()
        assert (run.tokenizer / "spec.json").is_file()
        for checkpoint in checkpoints.list_checkpoints(run.checkpoints):
            checkpoint.verify()
    for path in home.glob("cache/data/[!.]*/corpus.json"):
        Corpus(path.parent).verify()
    if (home / "cache" / "teachers").exists():
        with DiskAnswerStore(home / "cache" / "teachers") as cache:
            assert not maintenance.verify(cache)["damaged"]
    return True


def kinds(spots: list[tuple[str, str]]) -> dict[str, list[int]]:
    """The boundaries grouped by operation and file, with numbers in file names ignored."""
    found: dict[str, list[int]] = {}
    for at, (kind, path) in enumerate(spots):
        found.setdefault(f"{kind} {re.sub('[0-9a-f]{6,}|[0-9]+', '#', path)}", []).append(at)
    return found


def chosen(spots: list[tuple[str, str]], count: int, chance: random.Random) -> list[int]:
    """`count` boundaries: one of each group first, then any."""
    first = [chance.choice(places) for places in kinds(spots).values()]
    chance.shuffle(first)
    rest = [at for at in range(len(spots)) if at not in first]
    chance.shuffle(rest)
    return (first + rest)[:count]


def difference(one: object, other: object, path: str = "") -> str:
    """Where two results differ, in one line."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        return "; ".join(difference(one.get(key), other.get(key), f"{path}/{key}") for key in keys)
    return f"{path}: {str(one)[:150]!r} and {str(other)[:150]!r}"
