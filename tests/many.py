"""Many commands, each in a process of its own: forked from one that has read the code already, so they cost little.

A command gets so many seconds of processor time; whoever takes more hangs, and is ended. Nothing that a command does to
itself (a crash, a loop, a leak) touches the others.

    outcomes([["recipe", "check", "a.toml"]], home)
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

SECONDS = 20
PATIENCE = 15  # times as long by the clock, for machines that do much else
CODES = (0, 1, 2, 3)
FAULT = "This is a fault in distillkit"


class Outcome(NamedTuple):
    """What a command came to. A code below nothing is the signal that ended it."""

    words: list[str]
    code: int
    out: str
    err: str

    @property
    def fault(self) -> str:
        """What no input may ever lead to; empty if it did not."""
        if self.code not in CODES:
            return f"it ended with {self.code}"
        if "Traceback" in self.err or FAULT in self.err:
            return "it fell over"
        if odd := {letter for letter in self.out + self.err if letter not in "\n\t" and not shown(letter)}:
            return f"it showed {odd!r} on a terminal"
        if len(self.err) > 20_000:
            return "it said far too much"
        return "" if self.code == 0 or self.err.strip() else "it failed without a word"


def shown(letter: str) -> bool:
    """Whether a letter only stands there; joiners make up emoji, and other spaces are spaces."""
    return letter.isprintable() or letter.isspace() or letter in "\u200c\u200d"


def outcomes(
    commands: Sequence[Sequence[str]], home: Path, seconds: int = SECONDS, **environment: str
) -> list[Outcome]:
    """Run commands one after another in a folder, which is their home."""
    variables = {**os.environ, "DISTILLKIT_HOME": str(home), "COLUMNS": "100", "PYTHONUTF8": "1", **environment}
    asked = json.dumps({"commands": [list(words) for words in commands], "seconds": seconds})
    done = subprocess.run(
        [sys.executable, __file__], input=asked.encode(), capture_output=True, env=variables, cwd=home, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return [Outcome(*row) for row in json.loads(done.stdout)]


def faults(found: Sequence[Outcome]) -> dict[str, str]:
    """The commands that ended as none may, by their words, with what they said last."""
    return {" ".join(one.words): f"{one.fault}: {one.err[-800:]}" for one in found if one.fault}


# ------------------------------------------------------------------------------------------------ the process


def main() -> None:
    from distillkit import cli, plugins, recipe  # noqa: F401 - what every command needs; mlx does not survive a fork

    asked: Mapping[str, list[list[str]]] = json.load(sys.stdin)
    json.dump([_ran(words, int(str(asked["seconds"]))) for words in asked["commands"]], sys.stdout)


def _ran(words: list[str], seconds: int) -> Outcome:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if (child := os.fork()) == 0:
            _be(words, seconds, out.fileno(), err.fileno())
        code = _ended(child, time.monotonic() + PATIENCE * seconds)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(1 << 20).decode("utf-8", "backslashreplace"))
        return Outcome(words, code, *texts)


def _be(words: list[str], seconds: int, out: int, err: int) -> None:
    """Be the command, and never come back."""
    from distillkit.cli import main as program

    code: object = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        sys.argv = ["distillkit", *words]
        program()
        code = 0
    except SystemExit as left:
        code = left.code
    except BaseException:  # noqa: BLE001 - it is shown, and no input may lead to it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def _ended(child: int, deadline: float) -> int:
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)


if __name__ == "__main__":
    main()
