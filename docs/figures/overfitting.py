"""What learning by heart looks like: the same student, a few tales and many."""

from __future__ import annotations

from _paper import BLUE, RED, sheet
from _runs import run, steps

from distillkit.reporting.plots import smooth


def main() -> None:
    """Training and validation of both, beside each other."""
    few, many = run("few", "06"), run("many", "06", "few", data__stories=4000, data__held_out=0.05)
    with sheet("overfitting", 7.0, 3.2, columns=2, sharey=True) as (left, right):
        for axes, of in ((left, few), (right, many)):
            looks, learnt = steps(of, "validation"), steps(of)
            heard = [row["loss"] for row in learnt]
            axes.plot([row["step"] for row in learnt], smooth(heard), color=BLUE, linewidth=2, label="text it learns")
            axes.plot(
                *zip(*((row["step"], row["loss"]) for row in looks), strict=True),
                color=RED, marker="o", markersize=3.5, linewidth=1.4, label="text it never saw",
            )  # fmt: skip
            best = min(looks, key=lambda row: row["loss"])
            axes.axvline(best["step"], color=RED, linewidth=0.8, linestyle=":")
            axes.set(xlabel="step", title=f"{of.info['data']['train']['documents']:,} tales")
        left.set_ylabel("surprise, nats a token")
        left.legend(loc="lower left")


if __name__ == "__main__":
    main()
