"""Sphinx configuration of the documentation site: `make docs`."""

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
myst_fence_as_directive = ["mermaid"]  # GitHub renders ```mermaid blocks, and so does the site
nb_execution_mode = "off"  # docs/notebooks/run.py executes them
nb_ipywidgets_js: dict[str, Any] = {}  # pages load nothing from other hosts
nitpicky = True

html_theme = "furo"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_js_files = [diagrams.NAME, "draw.js"] if diagrams.mermaid_path().exists() else []
html_copy_source = False
html_show_sourcelink = False
pygments_style = "tango"


# The table of contents. It is added here, so that index.md remains plain Markdown on GitHub.
CONTENTS = """
```{toctree}
:hidden:
:glob:
:caption: Guide
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
:caption: Background
performance
study
seeds
trust
dependencies
design
```
"""


OUTSIDE_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)\)")


def edit_source(app: Any, page: str, source: list[str]) -> None:
    """Append the table of contents to index.md, and replace links to files outside docs/ by their names."""

    def replace_link(link: re.Match[str]) -> str:
        target = ((HERE / page).parent / link[2]).resolve()
        if target.is_relative_to(HERE):
            return link[0]
        path = target.relative_to(HERE.parent).as_posix()
        return f"`{path}`" if link[1].strip("`") in path else f"{link[1]} (`{path}`)"

    source[0] = OUTSIDE_LINK.sub(replace_link, source[0]) + (CONTENTS if page == "index" else "")


class Mermaid(Directive):
    """A mermaid diagram, or its text if mermaid was not downloaded."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """The diagram's nodes."""
        text = "\n".join(self.content)
        if not diagrams.mermaid_path().exists():
            return [nodes.literal_block(text, text, language="text")]
        safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return [nodes.raw("", f'<pre class="mermaid">{safe}</pre>', format="html")]


def setup(app: Any) -> None:
    """Register the extension with Sphinx."""
    app.add_directive("mermaid", Mermaid)
    app.connect("source-read", edit_source)
    if diagrams.mermaid_path().exists():
        app.config.html_static_path.append(str(diagrams.mermaid_path()))
