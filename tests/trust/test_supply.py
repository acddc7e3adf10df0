"""What distillkit is made of: every dependency with its reason, every pinned file with its hash, no code from data."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.paths import ROOT
from support.scripts import script
from support.trust_ledger import held

pytestmark = pytest.mark.trust
LOCKS = sorted(ROOT.glob("requirements*.lock"))
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def pinned(lock: Path) -> list[str]:
    """The requirements of a lock, each with all its lines."""
    lines = lock.read_text().replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def dependencies() -> dict[str, set[str]]:
    """Every package that pyproject names, and under which extras and groups; "" is always."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = {"": project["project"]["dependencies"], **project["project"]["optional-dependencies"]}
    found: dict[str, set[str]] = defaultdict(set)
    for where, requirements in [*named.items(), *project["dependency-groups"].items()]:
        for requirement in requirements:
            found[canonicalize_name(Requirement(requirement).name)].add(where)
    return found


def rows() -> list[list[str]]:
    """The cells of every row of docs/dependencies.md."""
    lines = (ROOT / "docs" / "dependencies.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in cells if row[0] != "package" and not set(row[0]) <= {"-", " "}]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_pinned_package_has_one_version_its_hashes_and_no_address(lock):
    requirements = pinned(lock)
    assert len(requirements) > 30
    for line in requirements:
        words = line.split()
        assert re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z0-9,-]+\])?==[A-Za-z0-9.!+-]+", words[0]), line[:80]
        hashes = [word for word in words if word.startswith("--")]
        assert hashes, words[0]
        assert all(HASH.fullmatch(word) for word in hashes), words[0]
    assert "://" not in lock.read_text()
    assert "--index" not in lock.read_text()
    assert "--find-links" not in lock.read_text()
    count = len(requirements)
    held("Supply: every pinned package has one version, hashes and no URL", count, count, lock.name)


def test_what_is_asked_for_is_pinned():
    pins = {canonicalize_name(re.split(r"[\[=]", line)[0]) for lock in LOCKS for line in pinned(lock)}
    always = {name for name, where in dependencies().items() if where & {"", "cpu", "build", "test", "check"}}
    assert always <= pins
    held("Supply: every requirement is pinned", len(always), len(always))


def test_every_dependency_has_its_reason():
    told: dict[str, set[str]] = defaultdict(set)
    for name, *where, why in rows():
        assert len(why) > 8, name
        told[canonicalize_name(name)] |= {one.strip() for one in where[0].split(",")} if where else {""}
    assert told == dependencies()
    held("Supply: the docs give a reason for every dependency", len(told), len(told))


def test_what_the_audit_leaves_out_is_argued():
    argued = re.search(r"^ARGUED := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert argued
    table = re.findall(r"^\| ([A-Z]+-[^ ]+) \| .{3,} \| .{40,} \|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    assert sorted(argued[1].split()) == sorted(table)
    cited = re.findall(r"`(tests/[a-z_/]+\.py|distillkit/[a-z_/]+\.py)`", (ROOT / "SECURITY.md").read_text())
    assert cited
    assert all((ROOT / file).is_file() for file in cited)
    held(
        "Supply: for each known vulnerability without a fix the docs say why it does not apply",
        len(table),
        len(table),
        ", ".join(sorted(table)),
    )


def test_the_audit_looks_at_every_lock():
    audit = re.search(r"^audit:\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert audit
    assert sorted(re.findall(r"-r (\S+\.lock)", audit[1])) == [lock.name for lock in LOCKS]
    assert len(LOCKS) == 3
    held("Supply: the audit checks every lock file", len(LOCKS), len(LOCKS))


# ------------------------------------------------------------------------------------------------ the lint


@pytest.fixture(scope="module")
def lint() -> ModuleType:
    return script(".ci/lint.py")


CODE = [
    "import pickle",
    "import cloudpickle as nothing",
    "from pickle import loads",
    "from shelve import open",
    "eval('1')",
    "exec(text)",
    "compile(text, '', 'exec')",
    "map(eval, texts)",
    "run = exec",
    "builtins.eval(text)",
    "builtins.__import__(name)",
    "from builtins import eval as look",
    "getattr(builtins, 'exec')(text)",
    "__builtins__['eval'](text)",
    "model = AutoModel.from_pretrained(name, trust_remote_code=True)",
    "model = AutoModel.from_pretrained(name, trust_remote_code=asked)",
    "model = AutoModel.from_pretrained(name, **{'trust_remote_code': True})",
    "options = {'allow_pickle': asked}",
    "dict(trust_remote_code=True)",
    "torch.load(file)",
    "torch.load(file, weights_only=False)",
    "from torch import load",
    "from torch import load as read",
    "import torch as t",
    "import numpy as n",
    "from numpy import load",
    "from os import system",
    "read = torch.load",
    "np.load(file)",
    "np.load(file, allow_pickle=True)",
    "diskcache.Cache(folder)",
    "from diskcache import Cache",
    "subprocess.run(words, shell=True)",
    "os.system('ls')",
    "yaml.load(text)",
    "archive.extractall(folder)",
    "table.to_pickle(file)",
    "def f():\n    if a:\n        import dill",
]
NONE = [
    "model.eval()",
    "mx.eval(arrays)",
    "map(mx.eval, arrays)",
    "re.compile('a')",
    "mx.compile(step)",
    "from re import compile",
    "from pickle import UnpicklingError",
    "from json import load",
    "torch.load(file, weights_only=True)",
    "import torch",
    "import numpy as np",
    "from numpy import array",
    "np.load(file, allow_pickle=False)",
    "np.load(file, mmap_mode='r', allow_pickle=False)",
    "options = {'allow_pickle': False}",
    "class Cache(diskcache.Cache): pass",
    "subprocess.run(words)",
    "from .pickle import mine",
    "told = 'never trust_remote_code=True, nor pickle'",
]


@pytest.mark.parametrize("line", CODE)
def test_what_might_run_data_is_found(lint, line):
    assert list(lint.faults(line)), line
    assert list(lint.faults(f"{line}  {lint.LET_THROUGH}it reads what it wrote")) == []


@pytest.mark.parametrize("line", NONE)
def test_what_cannot_is_let_through(lint, line):
    assert list(lint.faults(line)) == []


def test_the_lint_sees_all_the_code(lint):
    seen = {file for folder in lint.FOLDERS for file in (ROOT / folder).rglob("*.py")}
    assert {ROOT / "distillkit" / "cli" / "main.py", ROOT / "plugins" / "distillkit_plugins" / "hub.py"} <= seen
    assert len(seen) > 150
    lint.main()  # ends with a message if there is anything
    figure = f"it finds {len(CODE)} ways to write such code"
    held("Code from data: a lint finds no code that might execute data", len(seen), len(seen), figure)
