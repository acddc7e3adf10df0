"""Draw a real terminal: run a command in one, and write what stands on its screen at the end as an SVG.

python docs/picture.py docs/quickstart.svg "make run" distillkit run recipes/quickstart.toml
"""

from __future__ import annotations

import os
import pty
import sys

from rich.console import Console
from rich.text import Text

WIDTH, HEIGHT = 104, 60


def main(picture: str, title: str, command: list[str]) -> None:
    """Run, then draw."""
    screen: list[bytes] = []

    def read(handle: int) -> bytes:
        piece = os.read(handle, 4096)
        screen.append(piece)
        return piece

    os.environ |= {"COLUMNS": str(WIDTH), "LINES": str(HEIGHT)}
    status = pty.spawn(command, read)
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115, PTH123
    console.print(Text.from_ansi(f"$ {title}\n" + shown(b"".join(screen).decode("utf-8", "replace"))))
    console.save_svg(picture, title="distillkit")
    sys.exit(os.waitstatus_to_exitcode(status))


def shown(output: str) -> str:
    """What is left on the screen: of a line that was written over, only what was written last."""
    lines = output.replace("\r\n", "\n").split("\n")
    return "\n".join(line.rpartition("\r\x1b[K")[2] for line in lines)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
