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
METHODS = {
    "to_pickle": "writes a pickle",
    "extractall": "writes where an archive likes",
    "read_pickle": "reads a pickle",
}
# Calls that are safe only with an argument, and what it must be.
ARGUMENTS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "diskcache.Cache": ("disk", "_text_disk()"),
}
# Arguments that no call may have.
FORBIDDEN = {("trust_remote_code", True), ("allow_pickle", True), ("weights_only", False), ("shell", True)}


def faults(source: str) -> Iterator[tuple[int, str]]:
    """Each line of a file that might run what it reads, and why."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        for fault in _faults(node):
            if LET_THROUGH not in lines[node.lineno - 1]:  # type: ignore[attr-defined]
                yield node.lineno, fault  # type: ignore[attr-defined]


def _faults(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (f"imports {alias.name}" for alias in node.names if alias.name.split(".")[0] in MODULES)
    elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in MODULES and not node.level:
        yield from (f"imports {node.module}.{alias.name}" for alias in node.names if alias.name not in NAMES)
    elif isinstance(node, ast.Call):
        yield from _call(node)


def _call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    given = {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if name in CALLS:
        yield f"{name} {CALLS[name]}"
    if (method := name.rpartition(".")[2]) in METHODS:
        yield f"{name} {METHODS[method]}"
    if name in ARGUMENTS:
        argument, must = ARGUMENTS[name]
        if given.get(argument) != must:
            yield f"{name} without {argument}={must}"
    yield from (
        f"{name} with {key}={given[key]}" for key, value in FORBIDDEN if key in given and given[key] in (value, "?")
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
