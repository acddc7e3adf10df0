"""Gradient norms of a run, and which were clipped."""

from __future__ import annotations

from _runs import metric_rows, run
from _style import BLUE, RED, figure

from distillkit.recipe.recipe import load


def main() -> None:
    """One dot per step of quickstart_alone, and the clipping threshold of its recipe."""
    result = run("quickstart_alone")
    rows, threshold = metric_rows(result), load(str(result.recipe)).train.clip
    clipped = [row for row in rows if row["gradient_norm"] > threshold]
    unchanged = [row for row in rows if row["gradient_norm"] <= threshold]
    with figure("clipping") as axes:
        for group, colour, label in ((unchanged, BLUE, "unchanged"), (clipped, RED, "clipped to the threshold")):
            points = [(row["step"], row["gradient_norm"]) for row in group]
            axes.scatter(
                *zip(*points, strict=True), s=7, color=colour, label=f"{label}: {len(group)} steps", linewidths=0
            )
        axes.axhline(threshold, color=RED, linewidth=0.9)
        axes.set(xlabel="step", ylabel="gradient norm", ylim=(0, None), title="Gradients of quickstart_alone")
        axes.legend()


if __name__ == "__main__":
    main()
