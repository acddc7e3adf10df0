"""The training problems on which engines are compared: network, initial weights, batches, teacher, hyperparameters.

`53m` is the student of the seed recipes (52,990,464 parameters, 4 x 512 random tokens per step); `quickstart` is the
recipe of that name, with its stories and its teacher but without the 200 answers; `tiny`, with a teacher, is for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
CONFIGS = {
    "53m": {"vocab_size": 50257, "layers": 8, "heads": 8, "width": 384, "hidden": 1536, "context": 512, "tied": False},
    "quickstart": {"vocab_size": 2048, "layers": 4, "heads": 4, "width": 128, "hidden": 512, "context": 128},
    "tiny": {"vocab_size": 61, "layers": 2, "heads": 2, "width": 16, "hidden": 32, "context": 12, "tied": False},
}
RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.toml"


@dataclass
class Problem:
    """Everything that an engine needs."""

    config: dict[str, Any]
    activation: str
    weights: dict[str, Array]
    batch: Callable[[int], tuple[Array, Array, Array]]
    rows: int
    teacher: Teacher | None = None
    alpha: float = 1.0
    rate: float = 1e-3
    warmup: int = 10
    steps: int = 1000

    @property
    def tokens(self) -> int:
        """The number of tokens per step."""
        return self.rows * int(self.config["context"])


@dataclass
class Teacher:
    """A trained student: its config and weights."""

    config: dict[str, Any]
    activation: str
    weights: dict[str, Array]


def problem(name: str) -> Problem:
    """The problem of this name."""
    return {"53m": seed_student, "quickstart": quickstart, "tiny": tiny}[name]()


def seed_student(rows: int = 4) -> Problem:
    """The student of the seed recipes, on random tokens."""
    return Problem(CONFIGS["53m"], "gelu", _initial(CONFIGS["53m"], "gelu"), _random(CONFIGS["53m"], rows), rows)


def tiny(rows: int = 3) -> Problem:
    """A problem with all features whose steps take almost no time."""
    config = CONFIGS["tiny"]
    teacher = Teacher({**config, "width": 24, "hidden": 48}, "relu", {})
    teacher.weights = _initial(teacher.config, "relu", seed=2)
    weights = _initial(config, "gelu")
    return Problem(config, "gelu", weights, _random(config, rows), rows, teacher, alpha=0.4, rate=1e-2, warmup=2)


def _random(config: dict[str, Any], rows: int) -> Callable[[int], tuple[Array, Array, Array]]:
    """Batches of random tokens."""

    def batch(step: int) -> tuple[Array, Array, Array]:
        tokens = np.random.default_rng(step).integers(0, config["vocab_size"], (2, rows, config["context"]))
        return tokens[0].astype(np.int32), tokens[1].astype(np.int32), np.ones(tokens[0].shape, np.float32)

    return batch


def quickstart() -> Problem:
    """The bundled recipe's student, stories and teacher."""
    from distillkit.pipeline.context import Context
    from distillkit.pipeline.soft_targets import SoftTargets
    from distillkit.pipeline.training_data import training_batches
    from distillkit.plugins.manager import Plugins
    from distillkit.recipe.recipe import load

    context = Context(load(str(RECIPE)), Plugins.load())
    batches, train = training_batches(context, Path("nowhere")), context.recipe.train
    teaching = SoftTargets(context).logits_teacher.trained.model

    def batch(step: int) -> tuple[Array, Array, Array]:
        rows = batches.batch(step)
        return rows.inputs, rows.hard, rows.weight

    return Problem(
        CONFIGS["quickstart"],
        "relu",
        _initial(CONFIGS["quickstart"], "relu"),
        batch,
        train.batch_size,
        Teacher({**teaching.config.__dict__}, teaching.config.activation, _arrays(teaching)),
        context.mixer.weights(0)["hard"],
        train.learning_rate,
        train.warmup,
        train.steps,
    )


def learning_rate(problem: Problem, step: int) -> float:
    """The learning rate of a step: warm-up, then cosine decay to a twentieth of the peak."""
    from distillkit.student.training.optimizers import LearningRateSchedule

    return LearningRateSchedule(problem.rate, problem.rate / 20, problem.warmup, problem.steps)(step)


def _initial(config: dict[str, Any], activation: str, seed: int = 1) -> dict[str, Array]:
    from distillkit.student.model.gpt import GPT, GPTConfig, initialise

    model = GPT(GPTConfig(**config, activation=activation))  # type: ignore[arg-type]
    initialise(model, seed)
    return _arrays(model)


def _arrays(model: Any) -> dict[str, Array]:
    from distillkit.student.training.optimizers import flatten

    return {name: np.array(value) for name, value in flatten(model.parameters()).items()}
