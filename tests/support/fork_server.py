"""A process that has imported everything and forks a child for each command, so that a command costs no imports.

    with ForkServer() as fork_server:
        ended = fork_server.run(home, "train", "tiny", fault=Fault("kill", 17))

As a program it is the server: a job a line on standard input, how it ended a line on standard output. It computes
nothing itself: MLX's threads would not survive a fork. The modules to load it learns from its children.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from support.disk_faults import Fault, watch
from support.paths import TESTS

OURS = ("distillkit", "distillkit_plugins", "matplotlib", "pandas")
LATE = 120.0  # seconds after which a command hangs


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (-9 if killed), output, boundaries and duration."""

    code: int
    out: str
    err: str
    spots: list[tuple[str, str]]
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether it was killed before it had finished."""
        return self.code == -signal.SIGKILL


class ForkServer:
    """The client of the fork server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> ForkServer:
        environment = {
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",
            "COLUMNS": "100",
            "DISTILLKIT_API_KEY": "no-secret-at-all",
        }
        environment.pop("DISTILLKIT_TRUST", None)
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.server = subprocess.Popen(
            [sys.executable, "-m", "support.fork_server"], cwd=TESTS, env=environment, **pipes
        )
        return self

    def __exit__(self, *reason: object) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(30)

    def run(
        self, home: Path, *words: str, fault: Fault | None = None, after: float | None = None, held_back: bool = False
    ) -> Ended:
        """Run a command in a folder: with a fault at a boundary, killed after some time, or without root's rights."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        job = {"home": str(home), "words": words, "fault": asdict(fault or Fault()), "after": after}
        job["held_back"] = held_back
        print(json.dumps({**job, "folder": str(self.folder)}), file=self.server.stdin, flush=True)
        ended = json.loads(self.server.stdout.readline())
        out, err = ((self.folder / name).read_text(errors="replace") for name in ("out", "err"))
        spots = self.folder / "spots"
        met = [tuple(spot) for spot in json.loads(spots.read_text())] if spots.exists() else []
        return Ended(ended["code"], out, err, met, ended["seconds"])


# ------------------------------------------------------------------------------------------------- the server


def serve() -> None:
    """Fork a child for each job."""
    from distillkit.student import blas

    blas.load()
    for name in ("transformers", "pyarrow"):  # optional; one takes long to load, the other begins a thread
        sys.modules[name] = None  # type: ignore[assignment]
    for first in ("asyncio", "distillkit.cli.main"):  # asyncio whole, before others want parts of it
        importlib.import_module(first)
    for line in sys.stdin:
        job = json.loads(line)
        for name in ("out", "err", "spots", "modules"):
            (Path(job["folder"]) / name).unlink(missing_ok=True)
        began = time.monotonic()
        pid = os.fork()
        if not pid:
            child(job)
        code = waited(pid, began, job["after"])
        print(json.dumps({"code": code, "seconds": time.monotonic() - began}), flush=True)
        if code == 0:
            load(Path(job["folder"]) / "modules")


def load(modules: Path) -> None:
    """Import the modules that a child had imported."""
    for name in json.loads(modules.read_text()):
        if name not in sys.modules and (name.split(".")[0] in OURS or "." not in name):
            try:
                importlib.import_module(name)
            except ImportError:
                continue
    gc.freeze()
    tasks = len(os.listdir("/proc/self/task"))
    assert tasks == 1, f"the fork_server has {tasks} threads, and forks would lack all but one"


def waited(pid: int, began: float, after: float | None) -> int:
    """The exit code of a child, which is killed after its time limit."""
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        passed = time.monotonic() - began
        if passed > LATE or (after is not None and passed > after):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return -signal.SIGKILL if passed <= LATE else -signal.SIGALRM
        time.sleep(0.002)


def child(job: dict[str, Any]) -> None:
    """The command itself, in the folder of the job."""
    folder = Path(job["folder"])
    for handle, name, flags in ((0, os.devnull, os.O_RDONLY), (1, "out", os.O_WRONLY), (2, "err", os.O_WRONLY)):
        os.dup2(os.open(folder / name, flags | (os.O_CREAT if handle else 0), 0o600), handle)
    os.chdir(job["home"])
    os.environ["DISTILLKIT_HOME"] = job["home"]
    sys.argv = ["distillkit", *job["words"]]
    if job["held_back"]:
        hold_back()
    boundaries = watch(Path(job["home"]), Fault(**job["fault"]))
    from distillkit.cli.main import main

    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        (folder / "spots").write_text(json.dumps(boundaries.spots))
        (folder / "modules").write_text(json.dumps([name for name, one in sys.modules.items() if one is not None]))
        os._exit(code)


def hold_back() -> None:
    """Drop root's right to ignore file modes, so that they apply to this process."""
    import ctypes

    if os.geteuid():
        return
    system = ctypes.CDLL(None, use_errno=True)
    version = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    capabilities = (ctypes.c_uint32 * 6)()
    assert system.capget(version, capabilities) == 0
    capabilities[0] &= ~0b110  # of what is in effect: to override modes, and to read and search all the same
    assert system.capset(version, capabilities) == 0


if __name__ == "__main__":
    serve()
