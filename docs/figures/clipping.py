"""How long the gradients of a run were, and which of them were cut."""

from __future__ import annotations

from _paper import BLUE, RED, sheet
from _runs import run, steps

from distillkit.recipe.recipe import load


def main() -> None:
    """Every step of quickstart_alone as a dot, and the length that its recipe allows."""
    of = run("quickstart_alone")
    learnt, longest = steps(of), load(str(of.recipe)).train.clip
    long = [row for row in learnt if row["gradient_norm"] > longest]
    rest = [row for row in learnt if row["gradient_norm"] <= longest]
    with sheet("clipping") as axes:
        for rows, colour, label in ((rest, BLUE, "taken as it is"), (long, RED, "cut to the length of the line")):
            points = [(row["step"], row["gradient_norm"]) for row in rows]
            axes.scatter(
                *zip(*points, strict=True), s=7, color=colour, label=f"{label}: {len(rows)} steps", linewidths=0
            )
        axes.axhline(longest, color=RED, linewidth=0.9)
        axes.set(xlabel="step", ylabel="length of the gradient", ylim=(0, None), title="Gradients of quickstart_alone")
        axes.legend()


if __name__ == "__main__":
    main()
