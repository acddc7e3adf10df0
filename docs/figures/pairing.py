"""Two students on the same tales: as two clouds, and pair by pair."""

from __future__ import annotations

import numpy as np
from _grades import bits
from _paper import BLUE, INK, ORANGE, PURPLE, sheet

from distillkit.stats import mean_interval, paired_difference

WIDE = 0.32  # of a cloud


def main() -> None:
    """Dots for tales, bars for means and their intervals."""
    alone, taught = bits("quickstart_alone"), bits("quickstart")
    names = list(alone)
    apart = {name: taught[name][0] - alone[name][0] for name in names}
    weights = {name: alone[name][1] for name in names}
    sides = ({name: side[name][0] for name in names} for side in (taught, alone))
    found = paired_difference(*sides, weights=weights)
    with sheet("pairing", 7.0, 3.4, columns=2) as (left, right):
        for place, (side, colour) in enumerate(((alone, ORANGE), (taught, BLUE))):
            cloud(left, place, [side[name][0] for name in names], colour)
            mean = mean_interval(*zip(*(side[name] for name in names), strict=True), names)
            bar(left, place, mean.value, mean.low, mean.high)
        left.set(xticks=(0, 1), xlim=(-0.6, 1.6), ylabel="bits a byte", title="Two clouds")
        left.set_xticklabels(("alone", "distilled"))
        cloud(right, 0, list(apart.values()), PURPLE)
        bar(right, 0, found.value, found.low, found.high)
        right.axhline(0, color=INK, linewidth=0.9)
        right.set(xticks=(0,), xlim=(-0.8, 0.8), title="The same, subtracted tale by tale")
        right.set_xticklabels(("distilled less alone",))
        for axes in (left, right):
            axes.grid(visible=False, axis="x")


def cloud(axes, place: float, values: list[float], colour: str) -> None:
    """Dots beside each other, so that all can be seen."""
    across = np.random.default_rng(0).uniform(-WIDE, WIDE, len(values))
    axes.scatter(place + across, values, s=9, color=colour, alpha=0.45, linewidths=0)


def bar(axes, place: float, value: float, low: float, high: float) -> None:
    """A mean and its interval."""
    axes.errorbar(
        place, value, [[value - low], [high - value]], color=INK, marker="o", markersize=5, capsize=6, linewidth=1.8
    )


if __name__ == "__main__":
    main()
