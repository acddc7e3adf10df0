"""The runs that pictures of the guide are drawn of: made once, by the recipes that stand in its chapters, and kept.

They lie in build/figures, or where DISTILLKIT_HOME says: after `docs/walk.py --folder F`, F has most of them.
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
    """The first run of that name: of a bundled recipe, of one that a chapter writes, or of another with changes."""
    found = Run(HOME / "reports" / name / "1")
    if found.info.get("status") != "done":
        HOME.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            recipe = written(chapter, base or name, Path(folder)) if chapter else base or name
            settings = [f"--set={key.replace('__', '.')}={value}" for key, value in {"name": name, **changes}.items()]
            subprocess.run([sys.executable, "-m", "distillkit", "run", str(recipe), *settings], check=True)
    return found


def written(chapter: str, name: str, folder: Path) -> Path:
    """A recipe as a reader of the chapter writes it: a block that is said to be a file."""
    (page,) = (HERE.parent / "guide").glob(f"{chapter}_*.md")
    block = rf"^<!-- file: {re.escape(name)}\.toml -->\n```toml\n(.*?)^```$"
    found = re.search(block, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    if found is None:
        sys.exit(f"{page.name} shows no file {name}.toml. A block behind <!-- file: {name}.toml --> would be one.")
    file = folder / f"{name}.toml"
    file.write_text(found[1], encoding="utf-8")
    return file


def steps(of: Run, kind: str = "train") -> list[dict[str, Any]]:
    """What a run noted of each step, or of each look at held-out text."""
    return [row for row in read_jsonl(of.metrics) if row["kind"] == kind]
