"""`distillkit serve`: serve a student over HTTP."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from .common import device_option, load_plugins, warn_of_slow_blas

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@click.command()
@click.argument("where", metavar="[RUN]", default="latest")
@click.option("--host", default="127.0.0.1", show_default=True, help="Another lets other machines in.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--api-key", metavar="KEY", help="What clients must show; better set as DISTILLKIT_SERVE_KEY.")
@device_option
@click.pass_context
def serve(ctx: click.Context, where: str, host: str, port: int, api_key: str | None) -> None:
    """Serve a student as OpenAI does: /v1/completions, /v1/chat/completions, /v1/models. Ctrl-C ends it.

    RUN may also be a checkpoint folder or a bundled student: tales-teacher. Many clients are answered together.
    """
    load_plugins(ctx)
    warn_of_slow_blas()
    from ..student import Trained
    from ..student.serving import server as serving
    from ..teachers.client import api_keys

    api_key = api_key or api_keys.find_key("DISTILLKIT_SERVE_KEY")
    student = Trained.load(where)
    if host not in LOOPBACK:
        who = "anybody who has the key" if api_key else "anybody; set DISTILLKIT_SERVE_KEY to ask for a key"
        click.echo(f"warning: {host} can be reached from other machines, by {who}", err=True)
    names = _names(where)

    def ready(url: str) -> None:
        click.echo(f"{names[0]} at {url}")
        sys.stdout.flush()

    if serving.serve(serving.StudentServer(student, names, api_key), host, port, ready) == signal.SIGINT:
        raise KeyboardInterrupt


def _names(where: str) -> list[str]:
    """What clients may call the student: its run, as it was asked for, and its recipe."""
    from ..core import run_folder
    from ..student.trained import find_checkpoint

    checkpoint, _ = find_checkpoint(where)
    folder = checkpoint.path.resolve().parent.parent
    if checkpoint.path.resolve().parent.name != "checkpoints" or not (folder / "run.json").is_file():
        return list(dict.fromkeys([Path(where).name, where]))
    run = run_folder.find_run(str(folder))
    return list(dict.fromkeys([run.name, where, run.name.partition("/")[0]]))
