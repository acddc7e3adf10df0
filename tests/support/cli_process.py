"""Run the command line in a child process without the second that importing its modules takes.

A child of this process imports what most commands need, all but MLX, which does not survive a fork, and forks for
every command. A command so has its own environment, standard output and exit code, as with
`subprocess.run([sys.executable, "-m", "distillkit", ...])`. That is what `program` falls back to where the environment
changes Python itself (PYTHONPATH) or where more is asked of the child (`preexec_fn`).

    program(["recipe", "check", "a.toml"], cwd=home, env={**os.environ, "DISTILLKIT_HOME": str(home)})
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from support.paths import TESTS
from support.small_recipe import small

HEAVY = [
    *(
        "distillkit.cli.main",
        "distillkit.plugins.manager",
        "distillkit.recipe.recipe",
        "distillkit.recipe.schema",
        "distillkit.pipeline.context",
    ),
    *("matplotlib.figure", "matplotlib.backends.backend_svg", "matplotlib.backends.backend_agg"),
    *("groq", "jinja2", "openai", "pandas"),
]
TINY = small(
    "tiny",
    """
[train]
steps = 6
batch_size = 2
evaluate_every = 3
checkpoint_every = 3
[sampling]
count = 2
max_tokens = 8
""",
)
Done = subprocess.CompletedProcess[str]


def program(words: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float = 300, **more: Any) -> Done:
    """Run distillkit in a folder and an environment; returns its exit code and output."""
    command = [sys.executable, "-m", "distillkit", *words]
    if more or _python(env) != _python(os.environ):
        pipes: dict[str, Any] = {"capture_output": True, "text": True}
        pipes |= {} if "input" in more else {"stdin": subprocess.DEVNULL}
        return subprocess.run(command, cwd=cwd, env=env, timeout=timeout, check=False, **pipes, **more)
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        asked = {"words": list(words), "cwd": str(cwd), "env": dict(env), "out": str(out), "err": str(err)}
        code = _server().ask({**asked, "timeout": timeout})
        texts = [file.read_text(encoding="utf-8", errors="strict") for file in (out, err)]
    if code is None:
        raise subprocess.TimeoutExpired(command, timeout, *texts)
    return subprocess.CompletedProcess(command, code, *texts)


def distillkit(home: Path, *words: str, timeout: float = 300, **more: object) -> subprocess.CompletedProcess[str]:
    """Run distillkit with a folder as DISTILLKIT_HOME."""
    environment = {**os.environ, "DISTILLKIT_HOME": str(home), "COLUMNS": "100"}
    return program(words, home, environment, timeout, **more)


def _python(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that change how Python starts."""
    return {key: value for key, value in env.items() if key.startswith("PYTHON")}


class _Server:
    """The process that forks. It ends with this process, which closes the pipe."""

    def __init__(self) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", "support.cli_process"],
            cwd=TESTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self.lock = threading.Lock()

    def ask(self, asked: dict[str, Any]) -> int | None:
        """The exit code of a command; None if it timed out."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        with self.lock:
            self.child.stdin.write(json.dumps(asked) + "\n")
            self.child.stdin.flush()
            answer = self.child.stdout.readline()
        assert answer, "the process that forks has ended"
        code: int | None = json.loads(answer)
        return code


@cache
def _server() -> _Server:
    return _Server()


# ------------------------------------------------------------------------------------------------ the process


def main() -> None:
    """Fork for each line of standard input, one after another."""
    for name in HEAVY:
        importlib.import_module(name)
    assert not any(name.partition(".")[0] == "mlx" for name in sys.modules), "MLX does not survive a fork"
    assert threading.active_count() == 1
    ours = os.dup(1)  # a command has another standard output
    os.set_inheritable(ours, False)
    with os.fdopen(ours, "w") as answers:
        for line in sys.stdin:
            asked = json.loads(line)
            pid = os.fork()
            if pid == 0:
                _be(asked)
            print(json.dumps(_waited(pid, asked["timeout"])), file=answers, flush=True)


def _waited(pid: int, seconds: float) -> int | None:
    """The exit code of a child, negative for a signal; a child that exceeds the time limit is killed."""
    timer = threading.Timer(seconds, os.kill, (pid, signal.SIGKILL))
    deadline = time.monotonic() + seconds
    timer.start()
    _, status = os.waitpid(pid, 0)
    timer.cancel()
    timer.join()  # the next fork finds no thread
    return None if time.monotonic() >= deadline else os.waitstatus_to_exitcode(status)


def _be(asked: dict[str, Any]) -> None:
    """Run the command in this process, and exit."""
    code: object = 70
    try:
        os.environ.clear()
        os.environ.update(asked["env"])
        os.chdir(asked["cwd"])
        sys.path[0] = asked["cwd"]  # as `python -m` has it
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, file in ((1, asked["out"]), (2, asked["err"])):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        sys.argv = [str(Path(sys.modules["distillkit"].__path__[0], "__main__.py")), *asked["words"]]
        sys.modules["distillkit.cli.main"].main()
        code = 0
    except SystemExit as left:
        code = left.code
    except BaseException:  # noqa: BLE001 - as Python does
        traceback.print_exc()
        code = 1
    finally:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = 120  # as Python does
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()
