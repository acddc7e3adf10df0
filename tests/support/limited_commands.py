"""Run many commands, each in a child forked from a process that has imported the code already.

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
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SECONDS = 20
PATIENCE = 90  # times as long by the clock, for machines that do much else
CODES = (0, 1, 2, 3)
FAULT = "This is a bug in distillkit"


class Outcome(NamedTuple):
    """The result of a command. A negative code is the signal that ended it."""

    words: list[str]
    code: int
    out: str
    err: str

    @property
    def fault(self) -> str:
        """The kind of failure that no input may cause; empty if there is none."""
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
    """Whether a character is printable; joiners, which are part of emoji, and spaces count as printable."""
    return letter.isprintable() or letter.isspace() or letter in "\u200c\u200d"


def outcomes(
    commands: Sequence[Sequence[str]], home: Path, seconds: int = SECONDS, at_once: int = 1, **environment: str
) -> list[Outcome]:
    """Run commands with a folder as DISTILLKIT_HOME: one after another, or several at once."""
    variables = {**os.environ, "DISTILLKIT_HOME": str(home), "COLUMNS": "100", "PYTHONUTF8": "1", **environment}
    asked = json.dumps({"commands": [list(words) for words in commands], "seconds": seconds, "at_once": at_once})
    done = subprocess.run(
        [sys.executable, __file__], input=asked.encode(), capture_output=True, env=variables, cwd=home, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return [Outcome(*row) for row in json.loads(done.stdout)]


def faults(found: Sequence[Outcome]) -> dict[str, str]:
    """The commands that failed as no command may, with the end of their standard error."""
    return {" ".join(one.words): f"{one.fault}: {one.err[-800:]}" for one in found if one.fault}


# ------------------------------------------------------------------------------------------------ the process


def main() -> None:
    from distillkit.recipe import recipe  # noqa: F401 - what every command needs; mlx does not survive a fork

    asked = json.load(sys.stdin)
    waiting = list(enumerate(asked["commands"]))
    running: dict[int, Child] = {}
    ended: dict[int, Outcome] = {}
    while waiting or running:
        while waiting and len(running) < asked["at_once"]:
            number, words = waiting.pop(0)
            child = Child(number, words, asked["seconds"])
            running[child.pid] = child
        for pid, child in list(running.items()):
            if (code := child.ended()) is not None:
                ended[child.number] = child.outcome(code)
                del running[pid]
        time.sleep(0.005)
    json.dump([ended[number] for number in sorted(ended)], sys.stdout)


class Child:
    """A running command."""

    def __init__(self, number: int, words: list[str], seconds: int) -> None:
        self.number, self.words = number, words
        self.files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 - closed when it has ended
        self.deadline = time.monotonic() + PATIENCE * seconds
        self.pid = os.fork()
        if self.pid == 0:
            _be(words, seconds, *(file.fileno() for file in self.files))

    def ended(self) -> int | None:
        """The exit code, or None while the command runs."""
        if time.monotonic() > self.deadline:
            os.kill(self.pid, signal.SIGKILL)
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def outcome(self, code: int) -> Outcome:
        """The result of the command."""
        texts = []
        for file in self.files:
            with file:
                file.seek(0)
                texts.append(file.read(1 << 20).decode("utf-8", "backslashreplace"))
        return Outcome(self.words, code, *texts)


def _be(words: list[str], seconds: int, out: int, err: int) -> None:
    """Run the command in this process, and exit."""
    from distillkit.cli.main import main as program

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


if __name__ == "__main__":
    main()
