"""How the interval of a mean narrows while more tales are counted."""

from __future__ import annotations

from _grades import bits
from _paper import BLUE, INK, sheet

from distillkit.stats import mean_interval

FEWEST = 4


def main() -> None:
    """The mean of the first n tales and its interval, for every n; and the mean of all."""
    tales = bits("quickstart_alone")
    names = list(tales)
    counts = range(FEWEST, len(names) + 1)
    found = [mean_interval(*zip(*(tales[name] for name in names[:n]), strict=True), names[:n]) for n in counts]
    with sheet("documents", 7.0, 3.0) as axes:
        axes.fill_between(counts, [m.low for m in found], [m.high for m in found], color=BLUE, alpha=0.22, linewidth=0)
        axes.plot(counts, [m.value for m in found], color=BLUE, linewidth=1.8, label="mean so far, and its interval")
        axes.axhline(found[-1].value, color=INK, linewidth=0.8, linestyle=":", label="mean of all tales")
        axes.set(
            xlabel="tales", ylabel="bits a byte", xlim=(0, len(names)), title="quickstart_alone on tales it never saw"
        )
        axes.legend()


if __name__ == "__main__":
    main()
