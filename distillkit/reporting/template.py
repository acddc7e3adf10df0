"""Renders HTML pages from the templates of this folder; each page is one self-contained file.

Knows jinja2, and nothing of runs. All values are escaped. A page's content-security policy lists the hashes of its own
script and style sheet, so that no other script or style can apply.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any

from markupsafe import Markup


def render(name: str, **values: Any) -> str:
    """Fill a template. Templates may extend and include others of this folder."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    loader = FunctionLoader(read_asset)
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader, undefined=StrictUndefined)
    return page.get_template(name).render(style=Markup(read_asset("style.css")), **values)


def read_asset(name: str) -> str:
    """The text of a file of this folder: a template, style sheet or script."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def trusted_markup(text: str) -> Markup:
    """Marks text as HTML that is already escaped."""
    return Markup(text)


def csp_hash(source: str) -> str:
    """The hash that a content-security policy lists to allow an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def embed_json(value: Any) -> Markup:
    """A value as JSON that is safe inside a `<script>` element: it cannot close the element or open another."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)
