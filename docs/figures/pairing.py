"""Two students on the same tales: unpaired scores and paired differences."""

from __future__ import annotations

import numpy as np
from _grades import bits_per_byte
from _style import BLUE, INK, ORANGE, PURPLE, figure

from distillkit.stats import mean_interval, paired_difference

JITTER = 0.32  # half the width of a strip


def main() -> None:
    """One dot per tale; means with 95% confidence intervals."""
    alone, taught = bits_per_byte("quickstart_alone"), bits_per_byte("quickstart")
    names = list(alone)
    differences = {name: taught[name][0] - alone[name][0] for name in names}
    weights = {name: alone[name][1] for name in names}
    sides = ({name: side[name][0] for name in names} for side in (taught, alone))
    difference = paired_difference(*sides, weights=weights)
    with figure("pairing", 7.0, 3.4, columns=2) as (left, right):
        for place, (side, colour) in enumerate(((alone, ORANGE), (taught, BLUE))):
            strip(left, place, [side[name][0] for name in names], colour)
            mean = mean_interval(*zip(*(side[name] for name in names), strict=True), names)
            interval(left, place, mean.value, mean.low, mean.high)
        left.set(xticks=(0, 1), xlim=(-0.6, 1.6), ylabel="bits per byte", title="Unpaired")
        left.set_xticklabels(("alone", "distilled"))
        strip(right, 0, list(differences.values()), PURPLE)
        interval(right, 0, difference.value, difference.low, difference.high)
        right.axhline(0, color=INK, linewidth=0.9)
        right.set(xticks=(0,), xlim=(-0.8, 0.8), title="Paired differences")
        right.set_xticklabels(("distilled minus alone",))
        for axes in (left, right):
            axes.grid(visible=False, axis="x")


def strip(axes, place: float, values: list[float], colour: str) -> None:
    """Dots with horizontal jitter."""
    jitter = np.random.default_rng(0).uniform(-JITTER, JITTER, len(values))
    axes.scatter(place + jitter, values, s=9, color=colour, alpha=0.45, linewidths=0)


def interval(axes, place: float, value: float, low: float, high: float) -> None:
    """A mean with its confidence interval."""
    axes.errorinterval(
        place, value, [[value - low], [high - value]], color=INK, marker="o", markersize=5, capsize=6, linewidth=1.8
    )


if __name__ == "__main__":
    main()
