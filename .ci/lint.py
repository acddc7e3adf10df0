"""Fail where code could come from data: pickles, eval, models' own code, archives that write where they like.

Data is read as text, JSON, TOML or arrays. What might be read as code is named here, and is in no file of the project
but tests; `# data is not code: REASON` on the line lets one through, and the reason is there to be read.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("distillkit", "plugins", "recipes", "benchmarks", "docs", ".ci")
LET_THROUGH = "# data is not code: "

MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "jsonpickle",
    "copyreg",
}
NAMES = {"UnpicklingError", "PickleError"}  # of errors, which run nothing
CALLS = {
    **dict.fromkeys(("eval", "exec", "compile", "__import__"), "runs code"),
    **dict.fromkeys(("os.system", "os.popen"), "runs a shell"),
    **dict.fromkeys(("yaml.load", "yaml.unsafe_load", "yaml.full_load"), "may build any object"),
    **dict.fromkeys(("pandas.read_pickle", "pd.read_pickle", "numpy.fromregex"), "reads a pickle"),
    **dict.fromkeys(("shutil.unpack_archive", "tempfile.mktemp"), "writes where an archive or another process likes"),
}
BUILTIN = {f"builtins.{name}" for name in ("eval", "exec", "compile", "__import__")}
METHODS = {
    "to_pickle": "writes a pickle",
    "extractall": "writes where an archive likes",
    "read_pickle": "reads a pickle",
}
# Calls that are safe only with an argument, and what it must be. They go by these names alone: see `_renames`.
ARGUMENTS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "diskcache.Cache": ("disk", "_text_disk()"),
}
KNOWN_AS = {"torch": {"torch"}, "numpy": {"numpy", "np"}, "diskcache": {"diskcache"}, "os": {"os"}, "yaml": {"yaml"}}
# Arguments that no call may have, and that no table of arguments may hold.
FORBIDDEN = {("trust_remote_code", True), ("allow_pickle", True), ("weights_only", False), ("shell", True)}


def faults(source: str) -> Iterator[tuple[int, str]]:
    """Each line of a file that might run what it reads, and why."""
    lines, tree = source.splitlines(), ast.parse(source)
    looked_at = {id(part) for node in ast.walk(tree) for part in _looked_at(node)}
    for node in ast.walk(tree):
        for fault in _faults(node, id(node) in looked_at):
            if LET_THROUGH not in lines[node.lineno - 1]:  # type: ignore[attr-defined]
                yield node.lineno, fault  # type: ignore[attr-defined]


def _looked_at(node: ast.AST) -> list[ast.expr]:
    """The names that a call or a class is looked at with: a class may inherit what nobody may call."""
    return [node.func] if isinstance(node, ast.Call) else node.bases if isinstance(node, ast.ClassDef) else []


def _faults(node: ast.AST, looked_at: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (f"imports {alias.name}" for alias in node.names if alias.name.split(".")[0] in MODULES)
        yield from _renames(node)
    elif isinstance(node, ast.ImportFrom) and not node.level:
        yield from _taken(node)
    elif isinstance(node, ast.Call):
        yield from _call(node)
    elif isinstance(node, ast.Dict):
        yield from _table(node)
    elif isinstance(node, ast.Name | ast.Attribute) and not isinstance(node.ctx, ast.Store):
        yield from _named(node, looked_at)


def _renames(node: ast.Import) -> Iterator[str]:
    """A module whose calls are looked at goes by its own name, or it would not be known again."""
    for alias in node.names:
        if alias.asname and alias.asname not in KNOWN_AS.get(alias.name, {alias.asname}):
            yield f"imports {alias.name} as {alias.asname}, which hides its calls"


def _taken(node: ast.ImportFrom) -> Iterator[str]:
    """What is taken out of a module."""
    for alias in node.names:
        name = f"{node.module}.{alias.name}"
        if str(node.module).split(".")[0] in MODULES and alias.name not in NAMES:
            yield f"imports {name}"
        elif name in CALLS or name in ARGUMENTS or name in BUILTIN:
            yield f"imports {name}, which hides its calls"


def _named(node: ast.Name | ast.Attribute, looked_at: bool) -> Iterator[str]:
    """What runs code needs only be handed on: it is looked for wherever it is named."""
    name = ast.unparse(node)
    if name in CALLS:
        yield f"{name} {CALLS[name]}"
    elif name in BUILTIN or name == "__builtins__":
        yield f"{name} is a way to what runs code"
    elif name in ARGUMENTS and not looked_at:
        yield f"{name} is named and not called"


def _call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    given = {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if (method := name.rpartition(".")[2]) in METHODS:
        yield f"{name} {METHODS[method]}"
    if name in ARGUMENTS:
        argument, must = ARGUMENTS[name]
        if given.get(argument) != must:
            yield f"{name} without {argument}={must}"
    if name in ("getattr", "vars") and ast.unparse(node.args[0]) == "builtins":
        yield f"{name} of builtins is a way to what runs code"
    yield from (
        f"{name} with {key}={given[key]}" for key, value in FORBIDDEN if key in given and given[key] in (value, "?")
    )


def _table(node: ast.Dict) -> Iterator[str]:
    """Arguments that are put into a table first."""
    pairs = zip(node.keys, node.values, strict=True)
    given = {key.value: _value(value) for key, value in pairs if isinstance(key, ast.Constant)}
    yield from (
        f"a table with {key}={given[key]}" for key, value in FORBIDDEN if key in given and given[key] in (value, "?")
    )


def _value(node: ast.expr) -> object:
    """A constant, a call as it is written, or "?" for what is only known later."""
    if isinstance(node, ast.Constant):
        return node.value
    return ast.unparse(node) if isinstance(node, ast.Call) else "?"


def main() -> None:
    """Look through the code."""
    files = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py") if "tests" not in file.parts)
    found = [
        f"{file.relative_to(ROOT)}, line {number}: {fault}"
        for file in files
        for number, fault in faults(file.read_text(encoding="utf-8"))
    ]
    if found:
        sys.exit("\n".join(["Data must not become code:", *found]))


if __name__ == "__main__":
    main()
