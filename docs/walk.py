"""Runs all commands of the guide, chapter by chapter, in one fresh folder, and compares their output with the pages.

    python docs/walk.py --check           fails if a command fails or its output differs (numbers are masked)
    python docs/walk.py --write           writes the output into the pages
    python docs/walk.py --chapter 03      runs one chapter, after those that its front matter lists: `needs: [01]`
    python docs/walk.py --folder F ...    works in F, and skips required chapters that were run there before
    python docs/walk.py --steps 100       limits training to 100 steps: faster, but outputs are not compared

It runs ```` ```console ```` blocks (lines after `$ ` are commands, `> ` continues a command, all other lines are
output), ```` ```sh ```` blocks (one command per line, without output) and ```` ```python ```` blocks (their output is
the ```` ```text ```` block that follows). HTML comments in the lines before a block set options, separated by `;`:

    <!-- exit: 2 -->                      exit code of the last command
    <!-- loose -->                        the output is not compared
    <!-- head: 12; tail: 3 -->            only the first and last lines of the output are shown
    <!-- shown: not run: needs a key -->  the block is not run, with the reason
    <!-- file: mine.toml -->              the block, of any language, is written to that file

Knows nothing of distillkit, except how to limit training steps: commands are run by bash.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
GUIDE = HERE / "guide"
TIMEOUT = 1800  # seconds per block
MARK = "=walk="
COLUMNS = 88  # as wide as distillkit's tables
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
KEYS = ("head", "tail", "exit", "loose", "shown", "file")


class PageError(Exception):
    """A page is malformed, or a block cannot be run."""


# ------------------------------------------------------------------------------------------------- reading a page


@dataclass
class Step:
    """One command or script, and its output on the page."""

    code: str
    printed: str = ""


@dataclass
class Block:
    """A fenced block with its position and options."""

    page: Path
    line: int  # index of the opening fence
    end: int  # index of the line after the closing fence
    language: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The position for messages, `page.md:12`."""
        return f"{self.page.name}:{self.line + 1}"

    @property
    def run(self) -> bool:
        """Whether the block is run."""
        return self.language in ("console", "sh", "python") and not {"shown", "file"} & self.marks.keys()


FENCE = re.compile(r"^(`{3,})\s*(\S*)(?:\s.*)?$")


def blocks(page: Path, text: str | None = None) -> list[Block]:
    """All fenced blocks of a page, in order."""
    lines = (page.read_text(encoding="utf-8") if text is None else text).split("\n")
    found, at = [], 0
    while at < len(lines):
        opened = FENCE.match(lines[at])
        if opened is None:
            at += 1
            continue
        end = next((n for n in range(at + 1, len(lines)) if lines[n].rstrip() == opened[1]), None)
        if end is None:
            raise PageError(f"{page.name}:{at + 1}: this block is never closed. End it with a line {opened[1]}")
        inside = "\n".join(lines[at + 1 : end])
        found.append(Block(page, at, end + 1, opened[2], inside, _marks(page, lines, at)))
        at = end + 1
    return found


def _marks(page: Path, lines: list[str], at: int) -> dict[str, str]:
    """The options in the comments before a block."""
    marks: dict[str, str] = {}
    while at and (comment := re.fullmatch(r"<!--\s*(.+?)\s*-->", lines[at - 1].strip())):
        at -= 1
        whole = comment[1] if comment[1].startswith("shown") else comment[1].split(";")
        for part in [whole] if isinstance(whole, str) else whole:
            key, _, value = (piece.strip() for piece in part.partition(":"))
            if key in KEYS:  # otherwise a plain comment, or an option of another script
                marks[key] = value
        shown = marks.get("shown")
        if shown is not None and not re.fullmatch(r"not run: .+", shown):
            raise PageError(f"{page.name}:{at + 1}: say why it is not run: <!-- shown: not run: needs a key -->")
    return marks


def steps(block: Block) -> list[Step]:
    """The commands of a block with their output."""
    if block.language == "python":
        return [Step(block.text)]
    if block.language == "sh":
        return [Step(line) for line in re.split(r"(?<!\\)\n", block.text) if line.strip()]
    found: list[Step] = []
    more = False
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append(Step(line[2:]))
        elif found and (more or (line.startswith("> ") or line == ">")) and not found[-1].printed:
            found[-1].code += "\n" + (line[2:] if line.startswith(">") else line)
        elif found:
            found[-1].printed += line + "\n"
        elif line.strip():
            raise PageError(f"{block.where}: the block begins with {line!r}. A command begins with '$ '")
        more = found[-1].code.endswith("\\") and not found[-1].printed if found else False
    if not found:
        raise PageError(f"{block.where}: the block has no command. A command begins with '$ '")
    return found


def needs(page: Path) -> list[str]:
    """The numbers of the chapters that must be run before."""
    top = re.match(r"---\n(.*?)\n---\n", page.read_text(encoding="utf-8"), re.DOTALL)
    listed = re.search(r"^needs:\s*\[(.*)\]\s*$", top[1], re.MULTILINE) if top else None
    return [part.strip(" '\"") for part in listed[1].split(",") if part.strip()] if listed else []


def chapters(only: str | None = None) -> list[Path]:
    """The pages of the guide in order: all, or one after those that it needs."""
    pages = {page.name[:2]: page for page in sorted(GUIDE.glob("[0-9][0-9]_*.md"))}
    if only is None:
        return list(pages.values())
    wanted, todo = set(), [only]
    while todo:
        number = todo.pop()
        if number not in pages:
            raise PageError(f"there is no chapter {number!r}. There are: {', '.join(pages)}")
        wanted.add(number)
        todo += [one for one in needs(pages[number]) if one not in wanted]
    return [pages[number] for number in sorted(wanted)]


# ------------------------------------------------------------------------------------------------- running it


@dataclass
class CommandResult:
    """Output and exit code of one command."""

    printed: str
    code: int


# A replacement for `distillkit` that limits the training steps of `run`, unless the command sets them.
SHORT_RUNS = """\
#!{python}
import contextlib, os, sys

words = sys.argv[1:]
if words[:1] == ["run"]:
    from distillkit import DistillkitError
    from distillkit.recipe.recipe import load

    given = [word for word in words if word.startswith("train.steps=")]
    with contextlib.suppress(DistillkitError):  # distillkit reports it
        if "--resume" not in words and load(words[1], given).train.steps > {steps}:
            words += ["--set", "train.steps={steps}", "--set", "train.warmup=10"]
        elif "--resume" in words and given:  # it extends the run
            words += ["--set", "train.steps={more_steps}"]
os.execv("{distillkit}", ["distillkit", *words])
"""


class Workspace:
    """The folder in which commands run, and their environment."""

    def __init__(self, path: Path, steps: int | None = None, **variables: str) -> None:
        self.path = path.resolve()
        self.state = self.path / ".walk"
        self.variables = variables
        self.programs = Path(sys.executable).parent
        (self.state / "home").mkdir(parents=True, exist_ok=True)
        if steps is not None:
            self._shorten_runs(steps)

    def _shorten_runs(self, steps: int) -> None:
        """Put a replacement of `distillkit` on the path that trains for at most this many steps."""
        program = self.state / "bin" / "distillkit"
        program.parent.mkdir(exist_ok=True)
        real = self.programs / "distillkit"
        program.write_text(
            SHORT_RUNS.format(python=sys.executable, steps=steps, more_steps=steps + 20, distillkit=real),
            encoding="utf-8",
        )
        program.chmod(0o755)
        self.variables["PATH"] = os.pathsep.join(map(str, (program.parent, self.programs, os.environ.get("PATH", ""))))

    def environment(self) -> dict[str, str]:
        """The environment without API keys, colours and settings of distillkit."""
        dropped = ("DISTILLKIT_", "PYTHON", "VIRTUAL_ENV", "CLICOLOR", "FORCE_COLOR")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped) and not k.endswith("_API_KEY")}
        return kept | {
            "PATH": f"{self.programs}{os.pathsep}{os.environ.get('PATH', '')}",
            "HOME": str(self.state / "home"),
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),  # keeps the font cache
            "DISTILLKIT_HOME": str(self.path),
            "PYTHONPATH": str(self.path),
            "PYTHONDONTWRITEBYTECODE": "1",
            **{"COLUMNS": str(COLUMNS), "TERM": "dumb", "NO_COLOR": "1", "LC_ALL": "C.UTF-8", "PAGER": "cat"},
            **self.variables,
        }

    def write_file(self, block: Block) -> None:
        """Write the block to the file that its options name."""
        file = self.path / block.marks["file"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text + "\n", encoding="utf-8")

    def done_marker(self, page: Path) -> Path:
        """The file that marks a chapter as done in this folder."""
        return self.state / f"{page.stem}.done"

    def run_console(self, block: Block) -> list[CommandResult]:
        """Run all commands of a block in one bash. It stops at the first unexpected failure."""
        script = ""
        commands = steps(block)
        for number, step in enumerate(commands):
            last = number == len(commands) - 1
            script += f"{step.code}\ncode=$?; printf '\\n{MARK} %s\\n' $code\n"
            script += "" if last else "[ $code = 0 ] || exit $code\n"
        output, exit_code = self._run_bash(script, block)
        output = re.sub(r"\r+\n", "\n", output)
        *parts, rest = re.split(rf"\n{MARK} (\d+)\n", output)
        results = [
            CommandResult(self.normalize(text), int(code)) for text, code in zip(parts[::2], parts[1::2], strict=True)
        ]
        if len(results) < len(commands) and all(one.code == 0 for one in results):  # a command ended bash
            results.append(CommandResult(self.normalize(rest), exit_code))
        return results

    def run_python(self, block: Block) -> list[CommandResult]:
        """Run a block as a Python script."""
        file = self.state / f"{block.page.stem}_{block.line + 1}.py"
        file.write_text(block.text + "\n", encoding="utf-8")
        (result,) = self.run_console(Block(block.page, block.line, block.end, "console", f"$ python {file}"))
        return [result]

    def _run_bash(self, script: str, block: Block) -> tuple[str, int]:
        """Run a bash script; return its output and exit code. Background processes end with it."""
        master, screen = pty.openpty()  # a terminal, so that progress lines are overwritten as for a reader
        termios.tcsetwinsize(screen, (50, COLUMNS))
        child = subprocess.Popen(
            ["bash", "-c", script], cwd=self.path, env=self.environment(), stdin=subprocess.DEVNULL,
            stdout=screen, stderr=screen, start_new_session=True,
        )  # fmt: skip
        os.close(screen)
        printed: list[bytes] = []
        reader = threading.Thread(target=_read, args=(master, printed))
        reader.start()
        try:
            child.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise PageError(
                f"{block.where}: not done after {TIMEOUT} s. Split the block, or make it smaller."
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
            reader.join()
            os.close(master)
        return b"".join(printed).decode("utf-8", "replace"), child.returncode

    def normalize(self, printed: str) -> str:
        """The output without this machine's folders and with overwritten lines removed."""
        for path, name in ((self.path, "~/guide"), (HERE.parent.resolve(), "~/distillkit")):
            printed = printed.replace(str(path), name)
        lines = (line.split("\r")[-1].rstrip() for line in ESCAPES.sub("", printed).split("\n"))
        return "\n".join(lines).strip("\n")


def _read(screen: int, printed: list[bytes]) -> None:
    """Read everything that is written to a terminal until it is closed."""
    with contextlib.suppress(OSError):  # raised on Linux when the terminal is closed
        while piece := os.read(screen, 65536):
            printed.append(piece)


# ------------------------------------------------------------------------------------------------- comparing

MASKS = (
    (r"\b(?=[0-9a-f]*\d)[0-9a-f]{7,64}\b", "#"),  # a hash
    (r"\d[\d,]*(?:\.\d+)*(?:e[+-]?\d+)?", "#"),
    (r"(?<![\w#])[-+−](?=#)", ""),  # a sign
    (r"#(?:[-:T/]#)+Z?", "#"),  # a date, a time
    (r"#h#m|#m#s|#(?:h|m|s|ms)\b|# (?:min|s|ms)\b", "# s"),  # a duration
    (r"# (?:[kMG]i?B|bytes)\b", "# B"),
    (r"[ \t]+", " "),  # column widths depend on numbers
    (r"[─━╌]{2,}|-{3,}|[▁▂▃▄▅▆▇█]+", "-"),
)
TOKENS = re.compile(r"\w+|[^\w\s]")


def mask(text: str) -> str:
    """The text with numbers, times and column widths masked."""
    for pattern, instead in MASKS:
        text = re.sub(pattern, instead, text)
    return "\n".join(line.strip() for line in text.strip().split("\n"))


def same_output(one: str, other: str) -> bool:
    """Whether two outputs are the same except for numbers and line breaks."""
    one, other = mask(one), mask(other)
    return one == other or Counter(TOKENS.findall(one)) == Counter(TOKENS.findall(other))


def truncate(printed: str, marks: dict[str, str]) -> str:
    """The lines of an output that the page shows."""
    if not {"head", "tail"} & marks.keys():
        return printed
    head, tail = int(marks.get("head", 0)), int(marks.get("tail", 0))
    lines = printed.split("\n")
    if len(lines) <= head + tail + 1:
        return printed
    return "\n".join([*lines[:head], "...", *(lines[-tail:] if tail else [])])


@dataclass
class Problem:
    """A difference between a page and what its commands do."""

    block: Block
    text: str

    def __str__(self) -> str:
        return f"{self.block.where}: {self.text}"


def find_problems(block: Block, commands: list[Step], results: list[CommandResult], compare: bool) -> Iterator[Problem]:
    """The differences between a block and what its commands did."""
    expected = [0] * (len(commands) - 1) + [int(block.marks.get("exit", 0))]
    for step, one, code in zip(commands, results, expected, strict=False):
        if one.code != code:
            yield Problem(block, f"exit code {one.code} instead of {code}: {step.code}\n{one.printed}")
        elif compare and "loose" not in block.marks:
            now = truncate(one.printed, block.marks)
            if not same_output(step.printed, now):
                was, now = mask(step.printed), mask(now)
                lines = difflib.unified_diff(was.split("\n"), now.split("\n"), "the page", "printed", lineterm="", n=1)
                yield Problem(block, f"{step.code}\n" + "\n".join(lines))
    if len(results) < len(commands) and all(one.code == 0 for one in results):
        yield Problem(block, f"bash ended before: {commands[len(results)].code}")


# ------------------------------------------------------------------------------------------------- one chapter


def walk(page: Path, workspace: Workspace, write: bool, compare: bool) -> list[Problem]:
    """Run all blocks of a chapter, and compare or rewrite their outputs."""
    found: list[Problem] = []
    replacements: list[tuple[int, int, str]] = []  # lines to be replaced
    text_before = page.read_text(encoding="utf-8")
    every = blocks(page, text_before)
    for block, behind in zip(every, [*every[1:], None], strict=True):
        if "file" in block.marks:
            workspace.write_file(block)
        if not block.run:
            continue
        text = behind if behind is not None and _is_output_of(block, behind) else None
        commands = steps(block)
        if text is not None:
            commands[0].printed = text.text
        results = workspace.run_python(block) if block.language == "python" else workspace.run_console(block)
        found += find_problems(block, commands, results, compare and block.language != "sh")
        if block.language == "console" or (block.language == "python" and (text or results[0].printed)):
            replacements.append(_render(block, text, commands, results))
    if write:
        lines = text_before.split("\n")
        if page.read_text(encoding="utf-8") != text_before:
            raise PageError(f"{page.name} was changed while its commands ran. Run it again.")
        for start, end, made in reversed(replacements):
            lines[start:end] = made.split("\n")
        page.write_text("\n".join(lines), encoding="utf-8")
    if not found:
        workspace.done_marker(page).touch()
    return found


def _is_output_of(block: Block, behind: Block) -> bool:
    """Whether a text block is the output of the script before it."""
    lines = block.page.read_text(encoding="utf-8").split("\n")[block.end : behind.line]
    return block.language == "python" and behind.language == "text" and not any(line.strip() for line in lines)


def _render(
    block: Block, text: Block | None, commands: list[Step], results: list[CommandResult]
) -> tuple[int, int, str]:
    """The lines of a block and their replacement."""
    shown = [truncate(one.printed, block.marks) for one in results]
    if any("```" in one for one in shown):
        raise PageError(f"{block.where}: its output contains a fence, which would close the block. Change the output.")
    if block.language == "python":
        made = f"```text\n{shown[0]}\n```"
        return (text.line, text.end, made) if text else (block.end - 1, block.end, f"```\n\n{made}")
    lines = ["```console"]
    for step, one in zip(commands, [*shown, *[""] * len(commands)], strict=False):
        first, *rest = step.code.split("\n")
        lines += [f"$ {first}", *(f"> {line}".rstrip() for line in rest), *([one] if one else [])]
    return block.line, block.end, "\n".join([*lines, "```"])


# ------------------------------------------------------------------------------------------------- the whole walk


def walk_all(
    pages: list[Path], workspace: Workspace, selected: list[Path], write: bool, compare: bool
) -> list[Problem]:
    """Run the chapters in order and print how long each took."""
    found: list[Problem] = []
    started = time.monotonic()
    for page in pages:
        if page not in selected and workspace.done_marker(page).exists():
            continue
        start = time.monotonic()
        own = page in selected
        new = walk(page, workspace, write and own, compare and own)
        print(f"{page.stem:<20} {time.monotonic() - start:6.1f} s", flush=True)
        for problem in new:
            print(f"  {problem}", flush=True)
        found += new
    print(f"{'total':<20} {time.monotonic() - started:6.1f} s")
    return found


def main() -> None:
    """Parse the arguments and run the chapters."""
    parser = argparse.ArgumentParser(description="Run the commands of the guide.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="write the output into the pages")
    what.add_argument("--check", action="store_true", help="fail if an output differs")
    parser.add_argument("--chapter", help="run one chapter, after those that it needs")
    parser.add_argument("--folder", type=Path, help="work in this folder and keep it; by default in a temporary one")
    parser.add_argument("--steps", type=int, help="maximum number of training steps; not with --write or --check")
    args = parser.parse_args()
    if args.steps is not None and (args.write or args.check):
        parser.error("--steps changes the output, so it cannot be combined with --write or --check")
    try:
        pages = chapters(args.chapter)
        selected = pages if args.chapter is None else [page for page in pages if page.name.startswith(args.chapter)]
        with contextlib.ExitStack() as stack:
            path = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
            found = walk_all(pages, Workspace(path, args.steps), selected, args.write, args.check)
    except PageError as error:
        sys.exit(str(error))
    if found:
        sys.exit(f"{len(found)} blocks differ from the pages. `make walk WALK=--write` updates them.")


if __name__ == "__main__":
    main()
