"""A peak of the learning rate that is too low, some that do, and one that is too high."""

from __future__ import annotations

from _paper import BLUE, GREEN, ORANGE, RED, sheet
from _runs import run, steps

from distillkit.reporting.plots import smooth

PEAKS = {"6e-5": ORANGE, "6e-4": BLUE, "6e-3": GREEN, "0.2": RED}
SHORT = {"train__steps": 100, "train__warmup": 10, "train__batch_size": 4, "sampling__count": 0}


def main() -> None:
    """One curve for each peak; nothing else differs."""
    with sheet("rates") as axes:
        for peak, colour in PEAKS.items():
            name = f"peak_{peak.replace('.', '_')}"
            rate = {"train__learning_rate": peak, "train__final_learning_rate": f"{float(peak) / 20:g}"}
            learnt = steps(run(name, base="quickstart_alone", **rate, **SHORT))
            heard = smooth([row["loss"] for row in learnt])
            axes.plot([row["step"] for row in learnt], heard, color=colour, linewidth=1.8, label=peak)
        axes.set(xlabel="step", ylabel="training loss, nats a token", title="The same student, four peaks")
        axes.legend(title="learning_rate")


if __name__ == "__main__":
    main()
