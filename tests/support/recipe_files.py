"""Recipe files of tests, and the errors that loading them raises."""

from __future__ import annotations

from pathlib import Path

import pytest

from distillkit.core.errors import UsageError
from distillkit.recipe.recipe import load


def write(text: str | bytes, name: str = "my.toml") -> str:
    """Write a recipe file; returns its name."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


def refused(text: str | bytes, *overrides: str) -> str:
    """The error message for an invalid recipe."""
    with pytest.raises(UsageError) as caught:
        load(write(text), overrides)
    return str(caught.value)
