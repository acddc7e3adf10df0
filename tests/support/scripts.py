"""Load scripts outside of every package as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from support.paths import ROOT


def script(path: str | Path) -> ModuleType:
    """The module of a Python file, given by its path in the repository."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(f"script_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # where dataclasses look for the names of their own module
    spec.loader.exec_module(made)
    return made
