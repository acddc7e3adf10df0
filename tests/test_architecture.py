"""Holds the plan of the house against the code: floors, doors, promises, and how the code reads."""

from __future__ import annotations

import ast
import inspect
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import distillkit
from distillkit.plugins import hookspecs
from distillkit.plugins.interfaces import ROLES
from support.paths import ROOT

PACKAGE, PLUGINS, TESTS = ROOT / "distillkit", ROOT / "plugins" / "distillkit_plugins", ROOT / "tests"
# Packages of their own, beside the built-in plugins: strangers to each other, held to the same doors.
OTHERS = sorted(path for path in ROOT.glob("plugins/distillkit-*/distillkit_*") if path.name.isidentifier())

# Each line is a level, lowest first: a folder imports only from levels below it. Folders of one level do not import
# each other; what is named together in one text may.
FLOORS = [
    ["core distillkit"],
    ["stats"],
    ["recipe"],
    ["plugins"],
    ["data", "teachers", "student", "judging", "reporting"],
    ["testing"],
    ["pipeline", "distillkit_plugins", *(path.name for path in OTHERS)],
    ["cli __main__"],
]
# What a room may use of its neighbours all the same.
NEIGHBOURS = {("teachers", "data.tokenizer"), ("student", "data.tokenizer"), ("student", "data.published")}
# What a plugin may import of distillkit: names of the door, and the toolboxes.
TOOLBOXES = (
    *("distillkit.teachers.chat", "distillkit.student", "distillkit.data", "distillkit.stats"),
    "distillkit.judging.fence",
)

HEAVY = {"mlx", "numpy", "pandas", "openai", "groq", "pydantic", "tiktoken", "matplotlib"}

DOOR = """
    API_VERSION Allowance Answer DataError DistillkitError Document Exporter Grade Judge Metric Mixer Price Request
    Sample Schedule SlowDown Source Student Subject Teacher TeacherError Token Tracker TryAgain Usage UsageError Within
    hookimpl
"""

PROMISED = """
    pyproject.toml README.md LICENSE CHANGELOG.md Makefile .ci/run recipes/quickstart.toml
    plugins/distillkit_plugins cache/README.md reports/README.md docs/design.md
"""


# ---------------------------------------------------------------------------------------- reading the code


class Import(NamedTuple):
    """One import of the house by itself: who, what, and whether it is only for types."""

    by: str
    what: str
    typing: bool


def files() -> list[Path]:
    return sorted(file for folder in (PACKAGE, PLUGINS, *OTHERS) for file in folder.rglob("*.py"))


def read(file: Path) -> bool:
    """Whether a file is there to be read: not so the tales' tables of words."""
    return file.parent.name != "tales"


def module(file: Path) -> str:
    base = next(folder.parent for folder in (PACKAGE, PLUGINS, *OTHERS) if file.is_relative_to(folder))
    parts = file.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def modules() -> frozenset[str]:
    return frozenset(module(file) for file in files())


def imports(file: Path) -> Iterator[Import]:
    """Every import of the house's own modules, those inside functions too."""
    by = module(file)
    package = by if file.name == "__init__.py" else by.rpartition(".")[0]
    todo: list[tuple[ast.AST, bool]] = [(tree(file), False)]
    while todo:
        node, typing = todo.pop()
        typing = typing or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        todo += [(child, typing) for child in ast.iter_child_nodes(node)]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*up, node.module] if node.module else up) if node.level else str(node.module)
            inner = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in modules() else base for name in inner]
        else:
            continue
        yield from (Import(by, name, typing) for name in names if name.split(".")[0] in HOUSE)


OUTSIDE = {PLUGINS.name, *(path.name for path in OTHERS)}  # plugins: those who come in by the door
HOUSE = {"distillkit", *OUTSIDE}
ALL = [found for file in files() for found in imports(file)]
REAL = [found for found in ALL if not found.typing]


def room(name: str) -> str:
    """The room that a module is in: a file of the ground plan, a folder, or the built-in plugins."""
    parts = name.split(".")
    return parts[0] if parts[0] in OUTSIDE or len(parts) == 1 else parts[1]


def place(name: str) -> tuple[int, int]:
    """The floor of a module, and which of its rooms."""
    for floor, rooms in enumerate(FLOORS):
        for index, names in enumerate(rooms):
            if room(name) in names.split():
                return floor, index
    raise AssertionError(f"{name} stands on no floor: name it in FLOORS, and in docs/design.md")


# ---------------------------------------------------------------------------------------- floors and doors


def test_every_module_stands_on_a_floor():
    assert all(place(name) for name in modules())


def test_no_module_lies_loose_at_the_top():
    assert {file.name for file in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_imports_go_only_down():
    wrong = []
    for by, what, _ in REAL:
        (floor, own), (under, other) = place(by), place(what)
        allowed = any(room(by) == one and what.startswith(f"distillkit.{two}") for one, two in NEIGHBOURS)
        if not (under < floor or (under, other) == (floor, own) or allowed):
            wrong.append(f"{by} (floor {floor}) imports {what} (floor {under})")
    assert not wrong, "\n".join(wrong)


def test_there_are_no_cycles():
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for by, what, _ in REAL:
        graph[by].add(what)
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_plugins_come_in_by_the_door_and_use_only_the_toolboxes():
    wrong = [
        f"{by} imports {what}"
        for by, what, _ in ALL  # for types too: a third party copies them
        if by.split(".")[0] in OUTSIDE and what != "distillkit" and room(what) != room(by)
        if not any(what == box or what.startswith(f"{box}.") for box in TOOLBOXES)
    ]
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_plugins():
    assert [found for found in ALL if room(found.what) in OUTSIDE and room(found.what) != room(found.by)] == []


def test_packages_beside_the_built_in_plugins_are_whole():
    for path in OTHERS:
        folder = path.parent
        assert all((folder / name).exists() for name in ("pyproject.toml", "README.md", "tests")), folder
        assert (path / "py.typed").exists()
    assert len(OTHERS) >= 3


def test_every_name_of_the_door_is_there_on_purpose():
    assert sorted(distillkit.__all__) == sorted(DOOR.split())
    assert all(
        getattr(distillkit, name).__name__ for name in distillkit.__all__ if name not in ("API_VERSION", "hookimpl")
    )
    behind = [module for module, names in distillkit._HOME.items() for _ in names]
    assert len(behind) == len(distillkit.__all__)
    assert all(place(f"distillkit.{module}")[0] <= 3 for module in behind)


# ---------------------------------------------------------------------------------------- quick to start


def child(code: str) -> list[str]:
    """What a fresh Python prints last."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return ran.stdout.splitlines()[-1].split()


def test_the_door_is_light():
    assert HEAVY.isdisjoint(child("import sys, distillkit; print(*sys.modules)"))


HELP = """
import resource, sys
sys.argv = ["distillkit", "--help"]
from distillkit.cli.main import main
try:
    main()
except SystemExit:
    pass
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, *sys.modules)
"""


def test_help_is_quick_and_loads_no_plugin():
    runs = [child(HELP) for _ in range(3)]
    loaded = set(runs[0][1:])
    assert HEAVY.isdisjoint(loaded)
    assert not [name for name in loaded if name.startswith(("distillkit_plugins", "distillkit.plugins.manager"))]
    assert min(float(run[0]) for run in runs) <= 0.3


# ---------------------------------------------------------------------------------------- how it reads


def definitions(file: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Classes and functions that others can see, and methods of such classes."""
    todo: list[tuple[str, ast.Module | ast.ClassDef]] = [(module(file), tree(file))]
    while todo:
        path, node = todo.pop()
        for inner in node.body:
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and inner.name[0] != "_":
                yield f"{path}.{inner.name}", inner
                if isinstance(inner, ast.ClassDef):
                    todo.append((f"{path}.{inner.name}", inner))


def test_everything_public_says_what_it_does():
    silent = [module(file) for file in files() if not ast.get_docstring(tree(file))]
    silent += [name for file in files() for name, node in definitions(file) if not ast.get_docstring(node)]
    assert not silent, silent


def test_functions_are_short():
    nodes = [node for file in files() if read(file) for node in ast.walk(tree(file))]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = [(node.end_lineno or 0) - node.lineno + 1 for node in functions]
    assert statistics.median(lengths) <= 12
    assert statistics.quantiles(lengths, n=10)[-1] <= 40


def test_files_are_one_thing():
    lengths = {module(file): len(file.read_text().splitlines()) for file in files() if read(file)}
    assert {name: lines for name, lines in lengths.items() if lines > 500} == {}


def test_nothing_is_left_for_later():
    later = ("TO" + "DO", "FIX" + "ME", "X" + "XX")
    texts = {file: file.read_text(encoding="utf-8") for file in [*files(), *TESTS.rglob("*.py")]}
    assert [file for file, text in texts.items() if any(word in text for word in later)] == []


def test_only_the_command_line_speaks():
    may = {"distillkit.cli.main", "distillkit.core.console"}
    loud = [
        f"{module(file)}, line {node.lineno}"
        for file in files()
        if module(file) not in may
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert loud == []


# ---------------------------------------------------------------------------------------- hooks and promises


def test_every_hook_has_a_role_a_docstring_and_a_test():
    hooks = [name for name in vars(hookspecs) if name.startswith("register_")]
    assert {name.removeprefix("register_") for name in hooks} == {*ROLES, "commands"}
    assert all(inspect.getdoc(getattr(hookspecs, name)) for name in hooks)
    used = "".join(file.read_text() for file in TESTS.rglob("*.py") if file != Path(__file__))
    assert [name for name in hooks if f"def {name}(" not in used] == []


@pytest.mark.parametrize("promised", PROMISED.split())
def test_the_top_floor_has_what_was_promised(promised):
    assert (ROOT / promised).exists()
