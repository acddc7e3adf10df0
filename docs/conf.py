"""How the site is made of these pages: `make docs`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import diagrams  # noqa: E402

project = "distillkit"
author = "the distillkit authors"
copyright = author  # noqa: A001
html_title = "distillkit"

extensions = ["myst_nb"]
exclude_patterns = ["**/.ipynb_checkpoints"]
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]  # a forge draws ```mermaid, and so does the site
nb_execution_mode = "off"  # docs/notebooks/run.py executes them
nb_ipywidgets_js: dict[str, Any] = {}  # nothing is fetched when a page is looked at
nitpicky = True

html_theme = "furo"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_js_files = [diagrams.NAME, "draw.js"] if diagrams.fetched().exists() else []
html_copy_source = False
html_show_sourcelink = False
pygments_style = "tango"


# The pages in order. They stand here, so that index.md is plain Markdown on a forge too.
CONTENTS = """
```{toctree}
:hidden:
:glob:
:caption: The guide
guide/*
```

```{toctree}
:hidden:
:glob:
:caption: Notebooks
notebooks/*
```

```{toctree}
:hidden:
:caption: Reference
commands
recipes
api
plugins
teachers
distillation
judging
reports
serving
export
```

```{toctree}
:hidden:
:caption: Figures and reasons
performance
study
seeds
trust
dependencies
design
```
"""


OUTSIDE = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)\)")


def read(app: Any, page: str, source: list[str]) -> None:
    """Put the pages in order, at the end of the first one. Files outside of the site are named, not linked to."""

    def named(link: re.Match[str]) -> str:
        target = ((HERE / page).parent / link[2]).resolve()
        if target.is_relative_to(HERE):
            return link[0]
        path = target.relative_to(HERE.parent).as_posix()
        return f"`{path}`" if link[1].strip("`") in path else f"{link[1]} (`{path}`)"

    source[0] = OUTSIDE.sub(named, source[0]) + (CONTENTS if page == "index" else "")


class Mermaid(Directive):
    """A diagram: its text, which mermaid draws where it was fetched."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """The text, as it is."""
        text = "\n".join(self.content)
        if not diagrams.fetched().exists():
            return [nodes.literal_block(text, text, language="text")]
        safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return [nodes.raw("", f'<pre class="mermaid">{safe}</pre>', format="html")]


def setup(app: Any) -> None:
    """Teach Sphinx diagrams, and the order of the pages."""
    app.add_directive("mermaid", Mermaid)
    app.connect("source-read", read)
    if diagrams.fetched().exists():
        app.config.html_static_path.append(str(diagrams.fetched()))
