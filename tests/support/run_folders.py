"""Run folders like those of real runs, made without training: the same files with seeded random content."""

from __future__ import annotations

import json
import math
import random
from html.parser import HTMLParser
from pathlib import Path

from distillkit.core.files import digest, write_jsonl
from distillkit.core.records import Grade, Sample
from distillkit.core.run_folder import Run
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
    """A loss and bits per byte for each document: the difficulty is common to all runs, the noise is not."""
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
    write_jsonl(run.metrics, history())
    write_jsonl(run.samples, [s.to_json() for s in samples or [Sample("p#0", "Once upon", " a time.", 7)]])
    write_jsonl(run.grades, [{"judge": judge, **grade.to_json()} for grade in grades])
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
    """The tags, attributes and text of a page."""

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
    write_jsonl(run.metrics, [{**r, "terms": {HOSTILE: 1.0, "$x$": 2.0}} for r in history() if "terms" in r])
    return run


# Many runs, like those of a study with several recipes


def study(folder: Path, count: int, prompts: int = 50) -> list[Run]:
    """Runs of growing quality, each of another recipe: curves, costs, stories and three judges' grades."""
    return [studied(folder, number, count, prompts) for number in range(count)]


def studied(folder: Path, number: int, count: int, prompts: int) -> Run:
    """One run of a study. The baseline learns alone; the others have a teacher and ever more of its answers."""
    worth = 0.12 * number / max(1, count - 1)
    rng = random.Random(number)
    steps, answers = 600 + 50 * (number % 4), 100 * number
    run = make(
        folder,
        f"{'alone' if number == 0 else f'taught_{answers}'}/1",
        grades=graded(-worth, seed=number),
        samples=stories(number, worth, prompts),
        seed=42 + number,
        teacher={"provider": "groq", "model": "gpt-oss-20b", "asked": answers, "cached": 0, "usd": answers * 0.0004}
        if number
        else None,
        training={"steps": steps, "tokens": steps * 2048, "weights_sha256": f"{number:02x}" * 32, "loss": 2.2 - worth},
        seconds={"data": 1.0, "label": answers / 30, "train": 120 + 20 * rng.random(), "judge": 8.0},
    )
    run.recipe.write_text(recipe(number, steps, answers))
    write_jsonl(run.metrics, history(steps // 5, -worth))
    judged = {
        "rubric": marks(run, worth, seed=number),
        "diversity": [Grade("distinct_2", 0.6 + worth + rng.gauss(0, 0.01))],
    }
    rows = [{"judge": judge, **grade.to_json()} for judge, grades in judged.items() for grade in grades]
    old = [json.loads(line) for line in run.grades.read_text().splitlines()]
    write_jsonl(run.grades, [*old, *rows])
    metrics = {judge: summary(grades) for judge, grades in judged.items()}
    run.record(judges={**run.info["judges"], **metrics}, judges_protocol=protocols())
    return run


def recipe(number: int, steps: int, answers: int) -> str:
    tables = [f'name = "run{number}"', f"seed = {42 + number}", '[data]\nsource = "tales"', f"[train]\nsteps = {steps}"]
    if number:
        tables.append(f'[teacher]\nprovider = "groq"\nprompts = {answers}')
        tables.append(f'[mixer]\nname = "alpha-temperature"\nalpha = {1 - 0.02 * number:.2f}')
    else:
        tables.append('[mixer]\nname = "hard"')
    return "\n".join([*tables, '[[judge]]\nname = "rubric"\nscale = 10', ""])


def protocols(model: str = "gpt-4.1-2025-04-14") -> dict:
    facts = {"model": model, "scale": 10}
    return {"rubric": {"hash": digest(facts)[:16], "facts": facts}}


def stories(number: int, worth: float, prompts: int) -> list[Sample]:
    """Prompts that end mid-sentence, and continuations by a student of this quality: some words are misplaced."""
    from distillkit.data.tales import story

    rng, samples = random.Random(1000 + number), []
    for i in range(prompts):
        beginning = " ".join(story(0, i).split()[:12])
        words = story(1, 7 * i + number).split()[12:82]
        for _ in range(int(len(words) * (0.3 - 2 * worth))):
            a, b = rng.randrange(len(words)), rng.randrange(len(words))
            words[a], words[b] = words[b], words[a]
        samples.append(Sample(f"tales:{i}#0", beginning, " " + " ".join(words), number))
    return samples


def marks(run: Run, worth: float, seed: int) -> list[Grade]:
    """Grades out of ten of each sample: the difficulty of prompts is common to all runs, the noise is not."""
    shared, own = random.Random(5), random.Random(seed)
    ids = [json.loads(line)["id"] for line in run.samples.read_text().splitlines()]
    grades = []
    for name in ids:
        for criterion in ("grammar", "consistency", "creativity"):
            score = 6 + shared.gauss(0, 1) + 8 * worth + own.gauss(0, 0.8)
            grades.append(Grade(criterion, float(min(10, max(1, round(score)))), sample=name))
    return grades
