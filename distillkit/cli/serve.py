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
@click.option("--host", default="127.0.0.1", show_default=True, help="Another address lets other machines connect.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 chooses a free port.")
@click.option("--api-key", metavar="KEY", help="API key that clients must send. Better set DISTILLKIT_SERVE_KEY.")
@device_option
@click.pass_context
def serve(ctx: click.Context, where: str, host: str, port: int, api_key: str | None) -> None:
    """Serve a student over an OpenAI-compatible HTTP API. Ctrl-C stops the server.

    Endpoints: /v1/completions, /v1/chat/completions, /v1/models.

    RUN may also be a checkpoint folder or a bundled student: tales-teacher. Requests of several clients are batched.
    """
    load_plugins(ctx)
    warn_of_slow_blas()
    from ..student import Trained
    from ..student.serving import server as serving
    from ..teachers.client import api_keys

    api_key = api_key or api_keys.find_key("DISTILLKIT_SERVE_KEY")
    student = Trained.load(where)
    if host not in LOOPBACK:
        who = "anyone who has the key" if api_key else "anyone; set DISTILLKIT_SERVE_KEY to require a key"
        click.echo(f"warning: {host} can be reached from other machines, by {who}", err=True)
    names = _names(where)

    def ready(url: str) -> None:
        click.echo(f"{names[0]} at {url}")
        sys.stdout.flush()

    if serving.serve(serving.StudentServer(student, names, api_key), host, port, ready) == signal.SIGINT:
        raise KeyboardInterrupt


def _names(where: str) -> list[str]:
    """The model names that clients may use: the run's name, the argument, and the recipe's name."""
    from ..core import run_folder
    from ..student.trained import find_checkpoint

    checkpoint, _ = find_checkpoint(where)
    folder = checkpoint.path.resolve().parent.parent
    if checkpoint.path.resolve().parent.name != "checkpoints" or not (folder / "run.json").is_file():
        return list(dict.fromkeys([Path(where).name, where]))
    run = run_folder.find_run(str(folder))
    return list(dict.fromkeys([run.name, where, run.name.partition("/")[0]]))
