"""A new plugin as an installable package: a name and a role go in, a folder whose tests pass comes out.

The text of its files stands in `templates/`; here is only what is put in their gaps. Does not know which plugins there
are: who calls says which names are taken.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from importlib import resources, util
from pathlib import Path
from string import Template

from .. import __all__ as door
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
SMALL = {"data": 'source = "tales", stories = 300', "student": "layers = 2, heads = 2, width = 32, context = 32"}
EXAMPLES = {  # what a small recipe says to use a plugin: in place of a line of SMALL, or beside them
    "teacher": {"more": 'teacher = { provider = "$name", prompts = 20, max_tokens = 24 }\n'},
    "mixer": {"more": 'mixer = { name = "$name" }\n'},
    "judge": {"more": '[[judge]]\nname = "$name"\n'},
    "source": {"data": 'source = "$name", texts = 300'},
    "student": {"student": 'arch = "$name"'},
    "tracker": {"more": '[[tracker]]\nname = "$name"\n'},
    "exporter": {},
}


def words(name: str, kind: str) -> dict[str, str]:
    """What stands in the gaps of the templates."""
    plain = re.sub(r"[-_.]+", "-", name).lower().removeprefix(PREFIX)  # PEP 503
    if not NAME.fullmatch(name) or not NAME.fullmatch(plain) or (kind == "teacher" and plain == NO_TEACHER):
        raise UsageError(
            f"found the name {name!r}, expected letters, digits and '-', beginning with a letter",
            f"For example: distillkit plugins new my-{kind} --kind {kind}",
        )
    title = "".join(part.capitalize() for part in plain.split("-"))
    given = {
        "name": plain,
        "project": PREFIX + plain,
        "module": (PREFIX + plain).replace("-", "_"),
        "title": title + kind.capitalize() if title in (*door, "Network", "Trained") else title,
        "term": plain.replace("-", "_"),
        "kind": kind,
        "api": str(API_VERSION),
        "version": __version__,
        "year": str(datetime.now(UTC).year),
    }
    example = {"more": "", **SMALL, **EXAMPLES[kind]}
    return given | {key: Template(text).substitute(given) for key, text in example.items()}


def text_of(template: str, gaps: dict[str, str]) -> str:
    """A template with its gaps filled."""
    file = resources.files(__package__).joinpath("templates", f"{template}.txt")
    return Template(file.read_text(encoding="utf-8")).substitute(gaps)


def write(name: str, kind: str, to: Path) -> Path:
    """Write a new package; returns its folder, which was not there before."""
    gaps = words(name, kind)
    folder = to / gaps["project"]
    if folder.exists():
        raise UsageError(f"{folder} is there already", "Choose another name, or another place: --to DIR.")
    if util.find_spec(gaps["module"]) is not None:
        raise UsageError(f"there is a module {gaps['module']} already", "Choose another name.")
    files = {place: text_of(template, gaps) for template, place in FILES.items()}
    files[f"{gaps['module']}.py"] = text_of(f"{kind}.py", gaps)
    files[f"tests/test_{gaps['module']}.py"] = text_of("test.py", gaps)
    with atomic_folder(folder) as part:
        for place, text in files.items():
            (part / place).parent.mkdir(parents=True, exist_ok=True)
            (part / place).write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    return folder
