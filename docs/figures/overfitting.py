"""Overfitting: the same student trained on few and on many tales."""

from __future__ import annotations

from _runs import metric_rows, run
from _style import BLUE, RED, figure

from distillkit.reporting.plots import smooth


def main() -> None:
    """Training and validation loss of both runs."""
    few, many = run("few", "06"), run("many", "06", "few", data__stories=4000, data__held_out=0.05)
    with figure("overfitting", 7.0, 3.2, columns=2, sharey=True) as (left, right):
        for axes, result in ((left, few), (right, many)):
            validation, training = metric_rows(result, "validation"), metric_rows(result)
            losses = [row["loss"] for row in training]
            axes.plot([row["step"] for row in training], smooth(losses), color=BLUE, linewidth=2, label="training text")
            axes.plot(
                *zip(*((row["step"], row["loss"]) for row in validation), strict=True),
                color=RED, marker="o", markersize=3.5, linewidth=1.4, label="held-out text",
            )  # fmt: skip
            best = min(validation, key=lambda row: row["loss"])
            axes.axvline(best["step"], color=RED, linewidth=0.8, linestyle=":")
            axes.set(xlabel="step", title=f"{result.info['data']['train']['documents']:,} tales")
        left.set_ylabel("cross-entropy, nats per token")
        left.legend(loc="lower left")


if __name__ == "__main__":
    main()
