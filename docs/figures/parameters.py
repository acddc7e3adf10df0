"""How the parameters of the bundled recipes' students are distributed over their parts."""

from __future__ import annotations

import re

from _style import BLUE, GREEN, ORANGE, PALE, PURPLE, RED, figure

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
PARTS = {  # a pattern for the names of weights, tried in this order, and a colour
    "token embeddings": (r"^tokens", BLUE),
    "position embeddings": (r"^positions", RED),
    "norms": (r"norm\.", PALE),
    "attention": (r"\.attention\.", ORANGE),
    "feed-forward networks": (r"\.(up|down|gate)\.", GREEN),
    "untied output head": (r"^(out|head_bias)", PURPLE),
}


def main() -> None:
    """One stacked bar per recipe, and its number of parameters."""
    plugins = Plugins.load()
    with figure("parameters", 7.0, 3.9) as axes:
        for row, recipe in enumerate(RECIPES):
            sizes = part_sizes(Context(load(recipe), plugins))
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


def part_sizes(context: Context) -> dict[str, int]:
    """Parameters by part; shared ones count once."""
    from distillkit.student.model.gpt import named_parameters

    sizes = dict.fromkeys(PARTS, 0)
    for name, weight in named_parameters(context.network).items():
        sizes[find_part(name)] += weight.size
    return sizes


def find_part(name: str) -> str:
    """The part of a weight."""
    return next(part for part, (pattern, _) in PARTS.items() if re.search(pattern, name))


if __name__ == "__main__":
    main()
