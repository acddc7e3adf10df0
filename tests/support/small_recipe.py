"""The smallest recipe, which trains in a second or two. Tests add the keys that they need."""

from __future__ import annotations

RECIPE = """
name = "{name}"
{top}
[data]
source = "tales"
stories = 60
held_out = 0.2
[tokenizer]
vocab_size = 300
[student]
layers = 1
heads = 2
width = 16
context = 16
{more}
"""


def small(name: str, more: str = "", top: str = "") -> str:
    """A recipe of that name. It goes on in the student's table; keys of no table stand at its top.

    It trains on one stream, unless it says otherwise: the tests use all cores already.
    """
    if "streams" not in more:
        more = more.replace("[train]\n", "[train]\nstreams = 1\n")
    return RECIPE.format(name=name, top=top, more=more)
