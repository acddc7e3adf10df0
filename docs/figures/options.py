"""What the options of a student are worth: students that differ in one thing, trained and judged alike."""

from __future__ import annotations

import json

from _paper import BLUE, INK, sheet
from _runs import run

SEEDS = (1, 2)
CHANGES = {
    "as the quickstart's": {},
    "bias = false": {"student__bias": "false"},
    "tied = false": {"student__tied": "false"},
    'positions = "sinusoidal"': {"student__positions": "sinusoidal"},
    'positions = "rope"': {"student__positions": "rope"},
    'norm = "rmsnorm"': {"student__norm": "rmsnorm"},
    'activation = "gelu"': {"student__activation": "gelu"},
    'activation = "swiglu"': {"student__activation": "swiglu"},
    "kv_heads = 1": {"student__kv_heads": 1},
    "learning_rate = 1e-3": {"train__learning_rate": "1e-3"},
}
SHORT = {"train__steps": 300, "train__warmup": 30, "train__evaluate_every": 300, "sampling__count": 0}


def main() -> None:
    """A row for each student, a dot for each seed."""
    found = {
        told: [bits(f"option_{number}_{seed}", seed, change) for seed in SEEDS]
        for number, (told, change) in enumerate(CHANGES.items())
    }
    with sheet("options", 7.0, 3.8) as axes:
        for row, values in enumerate(found.values()):
            axes.plot(values, [row] * len(values), "-o", color=INK if row == 0 else BLUE, linewidth=1.2)
        axes.axvspan(min(found["as the quickstart's"]), max(found["as the quickstart's"]), color=INK, alpha=0.08)
        axes.set_yticks(range(len(found)), list(found))
        axes.invert_yaxis()
        axes.set(xlabel="bits per byte of tales that were held out, after 300 steps; two seeds")


def bits(name: str, seed: int, change: dict[str, object]) -> float:
    """Of one student, by its report."""
    done = run(name, base="quickstart_alone", seed=seed, **SHORT, **change)
    value: float = json.loads(done.report.read_text("utf-8"))["judges"]["perplexity"]["bits_per_byte"]["value"]
    return value


if __name__ == "__main__":
    main()
