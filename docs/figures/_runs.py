"""The runs that the guide's figures show, trained once with the recipes of its chapters.

They are stored in build/figures, or in DISTILLKIT_HOME: after `docs/walk.py --folder F`, F contains most of them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from distillkit.core.files import read_jsonl
from distillkit.core.run_folder import Run

HERE = Path(__file__).parent
HOME = Path(os.environ.setdefault("DISTILLKIT_HOME", str(HERE.parents[1] / "build" / "figures")))


def run(name: str, chapter: str = "", base: str = "", **changes: Any) -> Run:
    """The first run of this name. If there is none, train it: from a bundled recipe or from one in a chapter."""
    result = Run(HOME / "reports" / name / "1")
    if result.info.get("status") != "done":
        HOME.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            recipe = extract_recipe(chapter, base or name, Path(folder)) if chapter else base or name
            settings = [f"--set={key.replace('__', '.')}={value}" for key, value in {"name": name, **changes}.items()]
            subprocess.run([sys.executable, "-m", "distillkit", "run", str(recipe), *settings], check=True)
    return result


def extract_recipe(chapter: str, name: str, folder: Path) -> Path:
    """Write a recipe that a chapter shows, a block marked as a file, into a folder."""
    (page,) = (HERE.parent / "guide").glob(f"{chapter}_*.md")
    block = rf"^<!-- file: {re.escape(name)}\.toml -->\n```toml\n(.*?)^```$"
    found = re.search(block, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    if found is None:
        sys.exit(f"{page.name} has no block marked <!-- file: {name}.toml -->.")
    file = folder / f"{name}.toml"
    file.write_text(found[1], encoding="utf-8")
    return file


def metric_rows(source: Run, kind: str = "train") -> list[dict[str, Any]]:
    """The rows of a run's metrics of one kind, `train` or `validation`."""
    return [row for row in read_jsonl(source.metrics) if row["kind"] == kind]
