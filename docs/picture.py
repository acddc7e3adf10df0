"""Takes a terminal screenshot: runs a command in a pseudo-terminal and writes its final screen as an SVG.

python docs/picture.py docs/quickstart.svg "make run" distillkit run quickstart

The command runs in an empty folder, so that the picture shows what a new user sees.
"""

from __future__ import annotations

import os
import pty
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH, HEIGHT = 112, 60


def main(picture: Path, title: str, command: list[str]) -> None:
    """Run the command and draw its screen."""
    picture, screen = picture.absolute(), list[bytes]()

    def read(handle: int) -> bytes:
        piece = os.read(handle, 4096)
        screen.append(piece)
        return piece

    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"COLUMNS": str(WIDTH), "LINES": str(HEIGHT)}
        os.environ.pop("DISTILLKIT_HOME", None)
        os.chdir(home)
        status = pty.spawn(command, read)
        os.chdir(picture.parent)
    draw(picture, f"$ {title}\n" + visible_text(b"".join(screen).decode("utf-8", "replace")))
    sys.exit(os.waitstatus_to_exitcode(status))


def draw(picture: Path, screen: str) -> None:
    """Write the screen as an SVG without external fonts."""
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True)
        console.print(Text.from_ansi(screen))
    svg = console.export_svg(title="distillkit")
    picture.write_text(re.sub(r',\s*url\("http[^)]*"\) format\("\w+"\)', "", svg), encoding="utf-8")


def visible_text(output: str) -> str:
    """The text that is visible at the end, without overwritten lines."""
    lines = output.replace("\r\n", "\n").split("\n")
    return "\n".join(line.rpartition("\r\x1b[K")[2] for line in lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
