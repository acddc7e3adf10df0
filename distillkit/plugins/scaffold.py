"""Creating a new plugin as an installable package whose tests pass, from a name and a role.

The files come from `templates/`; this module fills in their placeholders. Does not know which plugins exist: the
caller checks that the name is free.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from importlib import resources, util
from pathlib import Path
from string import Template

from .. import __all__ as public_names
from .. import __version__
from ..core.errors import UsageError
from ..core.files import atomic_folder
from ..recipe.schema import NO_TEACHER
from .hookspecs import API_VERSION

PREFIX = "distillkit-"
NAME = re.compile(r"[A-Za-z](?:[A-Za-z0-9._-]{0,60}[A-Za-z0-9])?")
FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "LICENSE": "LICENSE",
    "example.toml": "example.toml",
    "gitignore": ".gitignore",
    "workflow.yml": ".github/workflows/test.yml",
}
DEFAULTS = {"data": 'source = "tales", stories = 300', "student": "layers = 2, heads = 2, width = 32, context = 32"}
EXAMPLES = {  # how an example recipe uses a plugin of each kind: replaces a value of DEFAULTS, or adds `more`
    "teacher": {"more": 'teacher = { provider = "$name", prompts = 20, max_tokens = 24 }\n'},
    "mixer": {"more": 'mixer = { name = "$name" }\n'},
    "optimizer": {"more": 'optimizer = { name = "$name" }\n'},
    "judge": {"more": '[[judge]]\nname = "$name"\n'},
    "source": {"data": 'source = "$name", texts = 300'},
    "student": {"student": 'arch = "$name"'},
    "tracker": {"more": '[[tracker]]\nname = "$name"\n'},
    "exporter": {},
}


def template_values(name: str, kind: str) -> dict[str, str]:
    """The values of the placeholders in the templates."""
    plain = re.sub(r"[-_.]+", "-", name).lower().removeprefix(PREFIX)  # PEP 503
    if not NAME.fullmatch(name) or not NAME.fullmatch(plain) or (kind == "teacher" and plain == NO_TEACHER):
        raise UsageError(
            f"found the name {name!r}, expected letters, digits and '-', beginning with a letter",
            f"For example: distillkit plugins new my-{kind} --kind {kind}",
        )
    title = "".join(part.capitalize() for part in plain.split("-"))
    values = {
        "name": plain,
        "project": PREFIX + plain,
        "module": (PREFIX + plain).replace("-", "_"),
        "title": title + kind.capitalize() if title in (*public_names, "Network", "Trained") else title,
        "term": plain.replace("-", "_"),
        "kind": kind,
        "api": str(API_VERSION),
        "version": __version__,
        "year": str(datetime.now(UTC).year),
    }
    example = {"more": "", **DEFAULTS, **EXAMPLES[kind]}
    return values | {key: Template(text).substitute(values) for key, text in example.items()}


def render(template: str, values: dict[str, str]) -> str:
    """A template with its placeholders filled in."""
    file = resources.files(__package__).joinpath("templates", f"{template}.txt")
    return Template(file.read_text(encoding="utf-8")).substitute(values)


def create_package(name: str, kind: str, parent: Path) -> Path:
    """Write a new package into the folder `parent`; returns the package's folder."""
    values = template_values(name, kind)
    folder = parent / values["project"]
    if folder.exists():
        raise UsageError(f"{folder} already exists", "Choose another name, or another folder: --to DIR.")
    if util.find_spec(values["module"]) is not None:
        raise UsageError(f"a module {values['module']} already exists", "Choose another name.")
    files = {path: render(template, values) for template, path in FILES.items()}
    files[f"{values['module']}.py"] = render(f"{kind}.py", values)
    files[f"tests/test_{values['module']}.py"] = render("test.py", values)
    with atomic_folder(folder) as temporary:
        for path, text in files.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    return folder
