"""`distillkit generate`: let a student write, once, in bulk, or in turns.

What is said is kept in the context as plain text, for a student does not chat.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import click

from ..core.errors import UsageError
from ..core.text import printable
from .common import device_option, load_plugins, warn_of_slow_blas

if TYPE_CHECKING:
    from ..student import Sampling, Trained


@click.command()
@click.argument("where", metavar="[RUN]", default="latest")
@click.option("--prompt", help="What to go on from.")
@click.option(
    "--prompts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of prompts: one a line, or a text or {prompt} a line in .jsonl.",
)
@click.option("--samples", type=click.IntRange(min=1), default=1, show_default=True, help="Texts to each prompt.")
@click.option("--to", type=click.Path(dir_okay=False, path_type=Path), help="A file for JSON lines, not there yet.")
@click.option("--interactive", is_flag=True, help="Ask for prompts; what was said stays. /new forgets, Ctrl-D leaves.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.8, show_default=True)
@click.option("--top-k", type=click.IntRange(min=0), default=0, show_default=True, help="0 leaves all in.")
@click.option("--top-p", type=click.FloatRange(min=0, max=1, min_open=True), default=1.0, show_default=True)
@click.option("--min-p", type=click.FloatRange(min=0, max=1), default=0.0, show_default=True, help="0 leaves all in.")
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Above 1, what was written is less likely to come again.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@device_option
@click.pass_context
def generate(
    ctx: click.Context,
    /,
    where: str,
    prompt: str | None,
    prompts: Path | None,
    samples: int,
    to: Path | None,
    interactive: bool,
    max_tokens: int,
    seed: int,
    **how: Any,
) -> None:
    """Let a student write. RUN may also be a checkpoint folder or a bundled student: tales-teacher.

    One --prompt is written as it comes. A file of --prompts, more --samples or --to make JSON lines, many rows at once:
    each with its prompt, completion, finish and seed, with which --prompt writes the same text again.
    """
    if (prompt is not None) + (prompts is not None) + interactive != 1:
        raise UsageError("generate needs one of --prompt TEXT, --prompts FILE, --interactive", 'Try --prompt "One day"')
    many = prompts is not None or samples > 1 or to is not None
    if interactive and many:
        raise UsageError("--interactive writes one text at a time, to the screen", "Leave out --samples and --to.")
    asked = [prompt or ""] if prompts is None else _prompts(prompts)
    load_plugins(ctx)
    warn_of_slow_blas()
    from ..student import Sampling, Trained

    sampling, student = Sampling(**how), Trained.load(where)
    if many:
        with _lines_to(to) as out:
            rows = _rows(asked, samples, seed, named=prompts is not None)
            _write_lines(student, rows, sampling, max_tokens, out)
    elif prompt is not None:
        click.echo(prompt, nl=False)
        for _ in _stream(student, prompt, seed, sampling, max_tokens):
            pass
        click.echo()
    else:
        _converse(student, seed, sampling, max_tokens)


# ------------------------------------------------------------------------------------------------ JSON lines


def _prompts(file: Path) -> list[str]:
    """The prompts of a file; messages are joined, for a student does not chat."""
    from ..teachers.asking import prompts

    found = prompts.read_prompts(file, 0)
    return [said if isinstance(said, str) else "\n".join(turn["content"] for turn in said) for said in found]


@contextmanager
def _lines_to(file: Path | None) -> Iterator[IO[str]]:
    """Where JSON lines go: a new file, or standard output."""
    if file is None:
        yield sys.stdout
        return
    try:
        out = file.open("x", encoding="utf-8")
    except FileExistsError:
        raise UsageError(f"{file} is there already", "Choose another file, or move it away.") from None
    with out:
        yield out


class Row(NamedTuple):
    """One text that is to be written."""

    id: str
    prompt: str
    seed: int


def _rows(prompts: list[str], samples: int, seed: int, *, named: bool) -> list[Row]:
    """A row a sample. In a file its seed hangs on its name, so that prompts and samples can be added."""
    from ..judging.sampling import derive_seed

    rows = [(f"{i}#{sample}", prompt, sample) for i, prompt in enumerate(prompts) for sample in range(samples)]
    return [Row(name, prompt, derive_seed(seed, name) if named else seed + i) for name, prompt, i in rows]


def _write_lines(student: Trained, rows: list[Row], sampling: Sampling, max_tokens: int, out: IO[str]) -> None:
    """One line a sample, in the order of the prompts, many at once."""
    texts = student.write([row.prompt for row in rows], [row.seed for row in rows], sampling, max_tokens)
    for row, text in zip(rows, texts, strict=True):
        written = {"completion": text.text, "tokens": text.tokens, "finish": text.finish}
        out.write(json.dumps({**row._asdict(), **written}, ensure_ascii=False) + "\n")
        out.flush()


# ------------------------------------------------------------------------------------------ one after another


def _stream(student: Trained, text: str, seed: int, sampling: Sampling, max_tokens: int) -> Iterator[str]:
    """Show what the student goes on with, as it comes."""
    for piece in student.stream(text, seed, sampling, max_tokens):
        click.echo(printable(piece) if sys.stdout.isatty() else piece, nl=False)  # a file gets what was written
        sys.stdout.flush()
        yield piece


def _converse(student: Trained, seed: int, sampling: Sampling, max_tokens: int) -> None:
    """Text after text, each after all that was said. Ctrl-C stops an answer, and what came of it stays."""
    if sys.stdin.isatty():
        click.echo(
            "An empty line goes on, /new forgets what was said, Ctrl-C stops an answer, Ctrl-D leaves.", err=True
        )
    history, turns = History(), count(seed)
    while (line := _asked_for()) is not None:
        if line == "/new":
            history.forget()
        else:
            history.turn(student, line, next(turns), sampling, max_tokens)


class History:
    """What was said so far, as one text."""

    def __init__(self) -> None:
        self.text = ""

    def forget(self) -> None:
        """Begin again."""
        self.text = ""

    def turn(self, student: Trained, line: str, seed: int, sampling: Sampling, max_tokens: int) -> None:
        """Add a line and what the student says to it. An empty line lets it go on where it stopped."""
        self.text += "\n" if self.text and line else ""
        self.text += line
        click.echo(line, nl=False)
        try:
            for piece in _stream(student, self.text, seed, sampling, max_tokens):
                self.text += piece
        except KeyboardInterrupt:
            click.echo(" ...", nl=False)
        click.echo()
        sys.stdout.flush()


def _asked_for() -> str | None:
    """The next line, or None at the end of input. Ctrl-C at a terminal only forgets what was being typed."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    while True:
        try:
            return input("> ")
        except KeyboardInterrupt:
            click.echo("\n(Ctrl-D leaves)", err=True)
        except EOFError:
            click.echo()
            return None
