"""Learning rate schedules."""

from __future__ import annotations

from _style import COLOURS, figure

from distillkit.pipeline.step_config import training_settings
from distillkit.recipe.recipe import load

SHAPES = ("cosine", "linear", "warm-stable-decay", "constant")


def main() -> None:
    """The learning rate of the quickstart at each step, computed by the trainer."""
    with figure("schedules") as axes:
        for shape, colour in zip(SHAPES, COLOURS, strict=True):
            recipe = load("quickstart_alone", (f"train.schedule={shape}",))
            rate = training_settings(recipe, chunk=1).schedule
            wide = 2.6 if shape == "cosine" else 1.5
            steps = range(recipe.train.steps)
            axes.plot(steps, [rate(step) for step in steps], color=colour, label=shape, linewidth=wide)
        axes.axvspan(0, recipe.train.warmup, color=COLOURS[0], alpha=0.08)
        axes.text(recipe.train.warmup / 4, 0.0038, "warm-up", rotation=90, ha="center", va="top", fontsize=9.5)
        axes.set(xlabel="step", ylabel="learning rate", ylim=(0, None), title="The quickstart's learning rate")
        axes.legend(loc="lower left", bbox_to_anchor=(0.16, 0.04))


if __name__ == "__main__":
    main()
