"""Child processes that a test kills, and what they leave in a folder."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed_while(code: str, cwd: Path) -> None:
    """Run code in a process of its own, and kill it as soon as it says that it is in the middle."""
    child = subprocess.Popen([sys.executable, "-c", code], cwd=cwd, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "middle\n"
    child.send_signal(signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL
    child.stdout.close()
