"""Pages from the templates of this folder, each one file that needs no other. Knows jinja2, and nothing of runs.

Whatever is filled in is escaped. What may run or style a page is named by its hash in the page's own policy, so that
nothing else does, wherever it may come from.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any

from markupsafe import Markup


def render(name: str, **values: Any) -> str:
    """Fill a template; it may extend others of this folder, and take in its style and script as they are."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    loader = FunctionLoader(source)
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader, undefined=StrictUndefined)
    return page.get_template(name).render(style=Markup(source("style.css")), **values)


def source(name: str) -> str:
    """A file of this folder as it is written."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def markup(text: str) -> Markup:
    """Text that is markup already and has been escaped by whoever made it."""
    return Markup(text)


def fingerprint(script: str) -> str:
    """What a content-security policy calls a script that may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def data(value: Any) -> Markup:
    """A value as JSON that can stand in a page: nothing in it ends the element it stands in, or opens another."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)
