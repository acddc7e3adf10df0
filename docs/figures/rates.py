"""Training with peak learning rates that are too low, suitable and too high."""

from __future__ import annotations

from _runs import metric_rows, run
from _style import BLUE, GREEN, ORANGE, RED, figure

from distillkit.reporting.plots import smooth

PEAKS = {"6e-5": ORANGE, "6e-4": BLUE, "6e-3": GREEN, "0.2": RED}
SHORT = {"train__steps": 100, "train__warmup": 10, "train__batch_size": 4, "sampling__count": 0}


def main() -> None:
    """One curve per peak learning rate."""
    with figure("rates") as axes:
        for peak, colour in PEAKS.items():
            name = f"peak_{peak.replace('.', '_')}"
            rate = {"train__learning_rate": peak, "train__final_learning_rate": f"{float(peak) / 20:g}"}
            rows = metric_rows(run(name, base="quickstart_alone", **rate, **SHORT))
            losses = smooth([row["loss"] for row in rows])
            axes.plot([row["step"] for row in rows], losses, color=colour, linewidth=1.8, label=peak)
        axes.set(xlabel="step", ylabel="training loss, nats per token", title="Peak learning rates")
        axes.legend(title="learning_rate")


if __name__ == "__main__":
    main()
