"""Where the parameters of the students sit that ship with distillkit."""

from __future__ import annotations

import re

from _paper import BLUE, GREEN, ORANGE, PALE, PURPLE, RED, sheet

from distillkit.pipeline.context import Context
from distillkit.plugins.manager import Plugins
from distillkit.recipe.recipe import load

RECIPES = (
    "quickstart",
    "slm_nano_1m",
    "slm_tiny_10m",
    "slm_small_28m",
    "slm_medium_70m",
    "gpt2_nano_44m",
    "tinystories_53m",
)
PARTS = {  # what the names of its weights match, tried in this order; and its colour
    "table of tokens": (r"^tokens", BLUE),
    "table of places": (r"^positions", RED),
    "norms": (r"norm\.", PALE),
    "attention": (r"\.attention\.", ORANGE),
    "two-layer networks": (r"\.(up|down|gate)\.", GREEN),
    "a head of its own": (r"^(out|head_bias)", PURPLE),
}


def main() -> None:
    """A bar of shares for each recipe, and its size."""
    plugins = Plugins.load()
    with sheet("parameters", 7.0, 3.9) as axes:
        for row, recipe in enumerate(RECIPES):
            sizes = parts(Context(load(recipe), plugins))
            total, left = sum(sizes.values()), 0.0
            for part, size in sizes.items():
                axes.barh(row, size / total, left=left, color=PARTS[part][1], label=part if row == 0 else None)
                left += size / total
            axes.text(1.01, row, f"{total / 1e6:.1f}M", va="center", fontsize=9.5)
        axes.set_yticks(range(len(RECIPES)), RECIPES)
        axes.set(xlim=(0, 1.1), ylim=(len(RECIPES) - 0.5, -0.6), xlabel="share of the parameters")
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
        axes.grid(visible=False)
        axes.figure.legend(loc="outside upper center", ncols=3)


def parts(assembly: Context) -> dict[str, int]:
    """How many parameters each part has, those that serve twice counted once."""
    from distillkit.student.model.gpt import named_parameters

    sizes = dict.fromkeys(PARTS, 0)
    for name, weight in named_parameters(assembly.network).items():
        sizes[part_of(name)] += weight.size
    return sizes


def part_of(name: str) -> str:
    """The part that a weight belongs to."""
    return next(part for part, (pattern, _) in PARTS.items() if re.search(pattern, name))


if __name__ == "__main__":
    main()
