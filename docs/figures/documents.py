"""How the confidence interval of a mean narrows with the number of tales."""

from __future__ import annotations

from _grades import bits_per_byte
from _style import BLUE, INK, figure

from distillkit.stats import mean_interval

MIN_TALES = 4


def main() -> None:
    """Mean and confidence interval of the first n tales for every n, and the mean of all."""
    tales = bits_per_byte("quickstart_alone")
    names = list(tales)
    counts = range(MIN_TALES, len(names) + 1)
    found = [mean_interval(*zip(*(tales[name] for name in names[:n]), strict=True), names[:n]) for n in counts]
    with figure("documents", 7.0, 3.0) as axes:
        axes.fill_between(counts, [m.low for m in found], [m.high for m in found], color=BLUE, alpha=0.22, linewidth=0)
        axes.plot(counts, [m.value for m in found], color=BLUE, linewidth=1.8, label="mean and 95% confidence interval")
        axes.axhline(found[-1].value, color=INK, linewidth=0.8, linestyle=":", label="mean of all tales")
        axes.set(
            xlabel="tales", ylabel="bits per byte", xlim=(0, len(names)), title="quickstart_alone on held-out tales"
        )
        axes.legend()


if __name__ == "__main__":
    main()
