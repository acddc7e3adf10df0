"""The architecture: folders and import order of the package, the public API, the layout of tests/, docstrings."""

from __future__ import annotations

import ast
import inspect
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
# Distributions with a pyproject.toml each. They do not import each other and use the same public API as the built-ins.
PLUGIN_PACKAGES = sorted(path for path in ROOT.glob("plugins/distillkit-*/distillkit_*") if path.name.isidentifier())

# Each line is a level, lowest first: a folder imports only from levels below it. Folders of one level do not import
# each other. Names in one string count as one folder.
LEVELS = [
    ["core distillkit"],
    ["stats"],
    ["recipe"],
    ["plugins"],
    ["data", "teachers", "student", "judging", "reporting"],
    ["testing"],
    ["pipeline", "distillkit_plugins", *(path.name for path in PLUGIN_PACKAGES)],
    ["cli __main__"],
]
FOLDERS = {
    *("cli", "core", "data", "judging", "pipeline", "plugins"),
    *("recipe", "reporting", "stats", "student", "teachers", "testing"),
}
# Imports between folders of one level that are allowed: the importing folder, and the prefix of what it imports.
SAME_LEVEL = {(folder, "distillkit.data.tokenizer") for folder in ("teachers", "student", "judging")}
# What a plugin may import of distillkit, besides the names of `distillkit` itself.
TOOLBOXES = (
    *("distillkit.teachers.chat", "distillkit.student", "distillkit.data", "distillkit.stats"),
    "distillkit.judging.fence",
)

HEAVY = {"mlx", "numpy", "pandas", "openai", "groq", "pydantic", "tiktoken", "matplotlib"}

PUBLIC_NAMES = """
    API_VERSION Allowance Answer DataError DistillkitError Document Exporter Grade Judge Metric Mixer Optimizer
    OptimizerStep Price Request Sample Schedule SlowDown Source Student Subject Teacher TeacherError Token Tracker
    TryAgain Usage UsageError Within hookimpl
"""

TOP_LEVEL_FILES = """
    pyproject.toml README.md LICENSE CHANGELOG.md Makefile .ci/run recipes/quickstart.toml
    plugins/distillkit_plugins cache/README.md reports/README.md docs/design.md
"""


# ---------------------------------------------------------------------------------------- reading the code


class Import(NamedTuple):
    """One import of a module of this repository: the importing module, the imported one, whether it is type-only."""

    by: str
    what: str
    type_only: bool


def source_files() -> list[Path]:
    return sorted(file for folder in (PACKAGE, PLUGINS, *PLUGIN_PACKAGES) for file in folder.rglob("*.py"))


def module_name(file: Path) -> str:
    base = next(folder.parent for folder in (PACKAGE, PLUGINS, *PLUGIN_PACKAGES) if file.is_relative_to(folder))
    parts = file.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def syntax_tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def modules() -> frozenset[str]:
    return frozenset(module_name(file) for file in source_files())


def imports_of(file: Path) -> Iterator[Import]:
    """Every import of a module of this repository, including those inside functions."""
    by = module_name(file)
    package = by if file.name == "__init__.py" else by.rpartition(".")[0]
    todo: list[tuple[ast.AST, bool]] = [(syntax_tree(file), False)]
    while todo:
        node, type_only = todo.pop()
        type_only = type_only or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        todo += [(child, type_only) for child in ast.iter_child_nodes(node)]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, node.module] if node.module else parents) if node.level else str(node.module)
            inner = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in modules() else base for name in inner]
        else:
            continue
        yield from (Import(by, name, type_only) for name in names if name.split(".")[0] in PACKAGES)


PLUGIN_NAMES = {PLUGINS.name, *(path.name for path in PLUGIN_PACKAGES)}
PACKAGES = {"distillkit", *PLUGIN_NAMES}
ALL_IMPORTS = [found for file in source_files() for found in imports_of(file)]
RUNTIME_IMPORTS = [found for found in ALL_IMPORTS if not found.type_only]


def folder_of(name: str) -> str:
    """The folder of distillkit that a module is in, or the plugin package."""
    parts = name.split(".")
    return parts[0] if parts[0] in PLUGIN_NAMES or len(parts) == 1 else parts[1]


def level_of(name: str) -> tuple[int, int]:
    """The level of a module, and the index of its folder within the level."""
    for level, folders in enumerate(LEVELS):
        for index, names in enumerate(folders):
            if folder_of(name) in names.split():
                return level, index
    raise AssertionError(f"{name} is on no level: add its folder to LEVELS, and to docs/design.md")


# ---------------------------------------------------------------------------------------- layout and import order


def test_the_package_has_twelve_folders_and_no_loose_modules():
    assert {file.name for file in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}
    assert {file.parent.name for file in PACKAGE.glob("*/__init__.py")} == FOLDERS
    assert all(level_of(name) for name in modules())


def test_imports_follow_the_order_of_the_levels():
    wrong = []
    for by, what, type_only in ALL_IMPORTS:
        (level, own), (lower, other) = level_of(by), level_of(what)
        allowed = any(folder_of(by) == folder and what.startswith(prefix) for folder, prefix in SAME_LEVEL)
        if type_only:  # the public API imports its names lazily, so its type-only imports go up
            allowed = allowed or by == "distillkit"
        if not (lower < level or (lower, other) == (level, own) or allowed):
            wrong.append(f"{by} (level {level}) imports {what} (level {lower})")
    assert not wrong, "\n".join(wrong)


def test_there_are_no_import_cycles_type_only_imports_included():
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for by, what, type_only in ALL_IMPORTS:
        if not (type_only and by == "distillkit"):
            graph[by].add(what)
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_plugins_import_only_the_public_api_and_the_toolboxes():
    wrong = [
        f"{by} imports {what}"
        for by, what, _ in ALL_IMPORTS  # type-only ones too: authors of plugins copy them
        if by.split(".")[0] in PLUGIN_NAMES and what != "distillkit" and folder_of(what) != folder_of(by)
        if not any(what == box or what.startswith(f"{box}.") for box in TOOLBOXES)
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_built_in_plugins():
    assert [
        found
        for found in ALL_IMPORTS
        if folder_of(found.what) in PLUGIN_NAMES and folder_of(found.what) != folder_of(found.by)
    ] == []


def test_plugin_packages_are_complete():
    for path in PLUGIN_PACKAGES:
        folder = path.parent
        assert all((folder / name).exists() for name in ("pyproject.toml", "README.md", "tests")), folder
        assert (path / "py.typed").exists()
    assert len(PLUGIN_PACKAGES) >= 3


def test_the_public_api_has_exactly_the_expected_names():
    assert sorted(distillkit.__all__) == sorted(PUBLIC_NAMES.split())
    assert all(
        getattr(distillkit, name).__name__ for name in distillkit.__all__ if name not in ("API_VERSION", "hookimpl")
    )
    homes = [module for module, names in distillkit._MODULES.items() for _ in names]
    assert len(homes) == len(distillkit.__all__)
    assert all(level_of(f"distillkit.{module}")[0] <= 3 for module in homes)


# ---------------------------------------------------------------------------------------- the layout of tests/

# Folders of tests/ beside those that mirror the package.
OTHER_TEST_FOLDERS = {"benchmarks", "chaos", "docs", "support", "trust"}


def test_the_tests_mirror_the_package():
    folders = {file.parent for file in TESTS.rglob("*.py")} - {TESTS}
    assert {folder.relative_to(TESTS).as_posix() for folder in folders} == FOLDERS | OTHER_TEST_FOLDERS
    assert not list((TESTS / "support").glob("test_*"))


def test_no_test_module_imports_another():
    names = {file.stem for file in TESTS.rglob("test_*.py")}
    wrong = []
    for file in TESTS.rglob("*.py"):
        for node in ast.walk(syntax_tree(file)):
            if isinstance(node, ast.ImportFrom):
                found = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            else:
                continue
            wrong += [f"{file}: {name}" for name in found if name.rpartition(".")[2] in names]
    assert not wrong, "\n".join(wrong)


# ---------------------------------------------------------------------------------------- start-up time


def output_of(code: str) -> list[str]:
    """The words of the last line that a fresh Python process prints."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return ran.stdout.splitlines()[-1].split()


def test_importing_distillkit_loads_no_heavy_package():
    assert HEAVY.isdisjoint(output_of("import sys, distillkit; print(*sys.modules)"))


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
    runs = [output_of(HELP) for _ in range(3)]
    loaded = set(runs[0][1:])
    assert HEAVY.isdisjoint(loaded)
    assert not [name for name in loaded if name.startswith(("distillkit_plugins", "distillkit.plugins.manager"))]
    assert min(float(run[0]) for run in runs) <= 0.3


# ---------------------------------------------------------------------------------------- the code itself


def definitions(file: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Public classes and functions of a module, and the public methods of such classes."""
    todo: list[tuple[str, ast.Module | ast.ClassDef]] = [(module_name(file), syntax_tree(file))]
    while todo:
        path, node = todo.pop()
        for inner in node.body:
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and inner.name[0] != "_":
                yield f"{path}.{inner.name}", inner
                if isinstance(inner, ast.ClassDef):
                    todo.append((f"{path}.{inner.name}", inner))


def test_every_public_name_has_a_docstring():
    silent = [module_name(file) for file in source_files() if not ast.get_docstring(syntax_tree(file))]
    silent += [name for file in source_files() for name, node in definitions(file) if not ast.get_docstring(node)]
    assert not silent, silent


def test_no_file_has_reminders_of_unfinished_work():
    reminders = ("TO" + "DO", "FIX" + "ME", "X" + "XX")
    texts = {file: file.read_text(encoding="utf-8") for file in [*source_files(), *TESTS.rglob("*.py")]}
    assert [file for file, text in texts.items() if any(word in text for word in reminders)] == []


def test_only_the_command_line_and_the_console_print():
    may = {"distillkit.cli.main", "distillkit.core.console"}
    found = [
        f"{module_name(file)}, line {node.lineno}"
        for file in source_files()
        if module_name(file) not in may
        for node in ast.walk(syntax_tree(file))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert found == []


def test_every_hook_has_an_interface_a_docstring_and_a_test():
    hooks = [name for name in vars(hookspecs) if name.startswith("register_")]
    assert {name.removeprefix("register_") for name in hooks} == {*ROLES, "commands"}
    assert all(inspect.getdoc(getattr(hookspecs, name)) for name in hooks)
    used = "".join(file.read_text() for file in TESTS.rglob("*.py") if file != Path(__file__))
    assert [name for name in hooks if f"def {name}(" not in used] == []


@pytest.mark.parametrize("path", TOP_LEVEL_FILES.split())
def test_the_repository_has_the_expected_files(path):
    assert (ROOT / path).exists()
