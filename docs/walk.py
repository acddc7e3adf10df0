"""Walk through the guide as a reader would: run every command of every chapter, in order, in one fresh folder.

    python docs/walk.py --check           fails where a command fails, or prints something else (numbers are masked)
    python docs/walk.py --write           writes what was printed into the pages
    python docs/walk.py --chapter 03      one chapter only, after those that its front matter names: `needs: [01]`
    python docs/walk.py --folder F ...    works in F, and leaves out needed chapters that were walked there before
    python docs/walk.py --steps 100       trains no run for more than 100 steps: faster, and outputs are not compared

What is run are ```` ```console ```` blocks (lines with `$ ` are commands, `> ` goes on with one, all others are what it
printed), ```` ```sh ```` blocks (a command a line, what it prints is not shown) and ```` ```python ```` blocks (what
they print stands in the ```` ```text ```` block behind them). An HTML comment in the line before a block tells what is
different about it; `;` divides several:

    <!-- exit: 2 -->                      the last command ends so
    <!-- loose -->                        what is printed is not compared
    <!-- head: 12; tail: 3 -->            so many lines are shown, of all that is printed
    <!-- shown: not run: needs a key -->  the block is not run, and why
    <!-- file: mine.toml -->              the block, of any language, is written into that file

Knows nothing about distillkit: a chapter is text, and a command is what bash does with it.
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
LONGEST = 1800  # seconds that one block may take
MARK = "=walk="
COLUMNS = 88  # as wide as distillkit's tables
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
KEYS = ("head", "tail", "exit", "loose", "shown", "file")


class Wrong(Exception):
    """A page that can not be read."""


# ------------------------------------------------------------------------------------------------- reading a page


@dataclass
class Step:
    """One command, or one script, and what the page says that it prints."""

    code: str
    printed: str = ""


@dataclass
class Block:
    """A fenced block: where it stands, and what it wants."""

    page: Path
    line: int  # of the opening fence, from 0
    end: int  # of the line behind the closing fence
    language: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.page.name}:{self.line + 1}"

    @property
    def run(self) -> bool:
        """Whether it is run at all."""
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
            raise Wrong(f"{page.name}:{at + 1}: this block is never closed. End it with a line {opened[1]}")
        inside = "\n".join(lines[at + 1 : end])
        found.append(Block(page, at, end + 1, opened[2], inside, _marks(page, lines, at)))
        at = end + 1
    return found


def _marks(page: Path, lines: list[str], at: int) -> dict[str, str]:
    """What the comments in the lines before a block say."""
    marks: dict[str, str] = {}
    while at and (comment := re.fullmatch(r"<!--\s*(.+?)\s*-->", lines[at - 1].strip())):
        at -= 1
        whole = comment[1] if comment[1].startswith("shown") else comment[1].split(";")
        for part in [whole] if isinstance(whole, str) else whole:
            key, _, value = (piece.strip() for piece in part.partition(":"))
            if key in KEYS:  # else it is a comment for people, or a mark of another script
                marks[key] = value
        shown = marks.get("shown")
        if shown is not None and not re.fullmatch(r"not run: .+", shown):
            raise Wrong(f"{page.name}:{at + 1}: say why it is not run: <!-- shown: not run: needs a key -->")
    return marks


def steps(block: Block) -> list[Step]:
    """The commands of a block, each with what it printed."""
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
            raise Wrong(f"{block.where}: the block begins with {line!r}. A command begins with '$ '")
        more = found[-1].code.endswith("\\") and not found[-1].printed if found else False
    if not found:
        raise Wrong(f"{block.where}: the block has no command. A command begins with '$ '")
    return found


def needs(page: Path) -> list[str]:
    """The numbers of the chapters that must have been walked before."""
    top = re.match(r"---\n(.*?)\n---\n", page.read_text(encoding="utf-8"), re.DOTALL)
    listed = re.search(r"^needs:\s*\[(.*)\]\s*$", top[1], re.MULTILINE) if top else None
    return [part.strip(" '\"") for part in listed[1].split(",") if part.strip()] if listed else []


def chapters(only: str | None = None) -> list[Path]:
    """The pages of the guide in order: all, or one behind those that it needs."""
    pages = {page.name[:2]: page for page in sorted(GUIDE.glob("[0-9][0-9]_*.md"))}
    if only is None:
        return list(pages.values())
    wanted, todo = set(), [only]
    while todo:
        number = todo.pop()
        if number not in pages:
            raise Wrong(f"there is no chapter {number!r}. There are: {', '.join(pages)}")
        wanted.add(number)
        todo += [one for one in needs(pages[number]) if one not in wanted]
    return [pages[number] for number in sorted(wanted)]


# ------------------------------------------------------------------------------------------------- running it


@dataclass
class Ran:
    """What one command did."""

    printed: str
    code: int


# A program that stands in for `distillkit`: `run` trains for fewer steps, unless the command names their number.
SHORT_RUNS = """\
#!{python}
import os, sys

words = sys.argv[1:]
if words[:1] == ["run"] and "--resume" not in words and not any("train.steps" in word for word in words):
    from distillkit.recipe.recipe import load

    if load(words[1]).train.steps > {steps}:
        words += ["--set", "train.steps={steps}", "--set", "train.warmup=10"]
os.execv("{distillkit}", ["distillkit", *words])
"""


class Folder:
    """Where the walk happens: a folder, and the variables of a shell in it."""

    def __init__(self, path: Path, steps: int | None = None, **variables: str) -> None:
        self.path = path.resolve()
        self.own = self.path / ".walk"
        self.variables = variables
        self.programs = Path(sys.executable).parent
        (self.own / "home").mkdir(parents=True, exist_ok=True)
        if steps is not None:
            self._shorten_runs(steps)

    def _shorten_runs(self, steps: int) -> None:
        """Put a program named `distillkit` before the real one that trains for at most so many steps."""
        program = self.own / "bin" / "distillkit"
        program.parent.mkdir(exist_ok=True)
        real = self.programs / "distillkit"
        program.write_text(SHORT_RUNS.format(python=sys.executable, steps=steps, distillkit=real), encoding="utf-8")
        program.chmod(0o755)
        self.variables["PATH"] = os.pathsep.join(map(str, (program.parent, self.programs, os.environ.get("PATH", ""))))

    def environment(self) -> dict[str, str]:
        """A shell without keys, colours, or anything that this one was told about distillkit."""
        dropped = ("DISTILLKIT_", "PYTHON", "VIRTUAL_ENV", "CLICOLOR", "FORCE_COLOR")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped) and not k.endswith("_API_KEY")}
        return kept | {
            "PATH": f"{self.programs}{os.pathsep}{os.environ.get('PATH', '')}",
            "HOME": str(self.own / "home"),
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),  # fonts are found once
            "DISTILLKIT_HOME": str(self.path),
            "PYTHONPATH": str(self.path),
            "PYTHONDONTWRITEBYTECODE": "1",
            **{"COLUMNS": str(COLUMNS), "TERM": "dumb", "NO_COLOR": "1", "LC_ALL": "C.UTF-8", "PAGER": "cat"},
            **self.variables,
        }

    def write(self, block: Block) -> None:
        """A file that the page shows, as its reader would save it."""
        file = self.path / block.marks["file"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text + "\n", encoding="utf-8")

    def walked(self, page: Path) -> Path:
        """The file that says that a chapter was walked here."""
        return self.own / f"{page.stem}.done"

    def console(self, block: Block) -> list[Ran]:
        """Every command of a block, in one bash; it ends where one fails that should not."""
        script = ""
        told = steps(block)
        for number, step in enumerate(told):
            last = number == len(told) - 1
            script += f"{step.code}\ncode=$?; printf '\\n{MARK} %s\\n' $code\n"
            script += "" if last else "[ $code = 0 ] || exit $code\n"
        whole, left_with = self._bash(script, block)
        whole = re.sub(r"\r+\n", "\n", whole)
        *parts, rest = re.split(rf"\n{MARK} (\d+)\n", whole)
        ran = [Ran(self.plain(text), int(code)) for text, code in zip(parts[::2], parts[1::2], strict=True)]
        if len(ran) < len(told) and all(one.code == 0 for one in ran):  # a command that ended bash itself
            ran.append(Ran(self.plain(rest), left_with))
        return ran

    def python(self, block: Block) -> list[Ran]:
        """A script."""
        file = self.own / f"{block.page.stem}_{block.line + 1}.py"
        file.write_text(block.text + "\n", encoding="utf-8")
        (ran,) = self.console(Block(block.page, block.line, block.end, "console", f"$ python {file}"))
        return [ran]

    def _bash(self, script: str, block: Block) -> tuple[str, int]:
        """What a bash prints, and its exit code. What it leaves running in the background ends with it."""
        ours, screen = pty.openpty()  # a terminal: progress is a line that is gone at the end, as for a reader
        termios.tcsetwinsize(screen, (50, COLUMNS))
        child = subprocess.Popen(
            ["bash", "-c", script], cwd=self.path, env=self.environment(), stdin=subprocess.DEVNULL,
            stdout=screen, stderr=screen, start_new_session=True,
        )  # fmt: skip
        os.close(screen)
        printed: list[bytes] = []
        reader = threading.Thread(target=_read, args=(ours, printed))
        reader.start()
        try:
            child.wait(LONGEST)
        except subprocess.TimeoutExpired:
            raise Wrong(f"{block.where}: not done after {LONGEST} s. Split it, or make it smaller.") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
            reader.join()
            os.close(ours)
        return b"".join(printed).decode("utf-8", "replace"), child.returncode

    def plain(self, printed: str) -> str:
        """What was printed, as it would be anywhere: without this machine's folders, and as a terminal leaves it."""
        for path, name in ((self.path, "~/guide"), (HERE.parent.resolve(), "~/distillkit")):
            printed = printed.replace(str(path), name)
        lines = (line.split("\r")[-1].rstrip() for line in ESCAPES.sub("", printed).split("\n"))
        return "\n".join(lines).strip("\n")


def _read(screen: int, printed: list[bytes]) -> None:
    """All that comes on a terminal, until nobody writes to it any more."""
    with contextlib.suppress(OSError):  # how Linux says that it was closed
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
    (r"[ \t]+", " "),  # columns are as wide as their numbers
    (r"[─━╌]{2,}|-{3,}|[▁▂▃▄▅▆▇█]+", "-"),
)
PIECES = re.compile(r"\w+|[^\w\s]")


def masked(text: str) -> str:
    """A text without its numbers, times, and what they do to the columns around them."""
    for pattern, instead in MASKS:
        text = re.sub(pattern, instead, text)
    return "\n".join(line.strip() for line in text.strip().split("\n"))


def alike(one: str, other: str) -> bool:
    """Whether two texts say the same, numbers aside. A cell that a longer number breaks in two is no difference."""
    one, other = masked(one), masked(other)
    return one == other or Counter(PIECES.findall(one)) == Counter(PIECES.findall(other))


def shortened(printed: str, marks: dict[str, str]) -> str:
    """As much of it as the page wants to show."""
    if not {"head", "tail"} & marks.keys():
        return printed
    head, tail = int(marks.get("head", 0)), int(marks.get("tail", 0))
    lines = printed.split("\n")
    if len(lines) <= head + tail + 1:
        return printed
    return "\n".join([*lines[:head], "...", *(lines[-tail:] if tail else [])])


@dataclass
class Problem:
    """What is not as the page says."""

    block: Block
    text: str

    def __str__(self) -> str:
        return f"{self.block.where}: {self.text}"


def problems(block: Block, told: list[Step], ran: list[Ran], compare: bool) -> Iterator[Problem]:
    """Where a block did something else than the page says."""
    expected = [0] * (len(told) - 1) + [int(block.marks.get("exit", 0))]
    for step, one, code in zip(told, ran, expected, strict=False):
        if one.code != code:
            yield Problem(block, f"ended with {one.code}, not {code}: {step.code}\n{one.printed}")
        elif compare and "loose" not in block.marks:
            now = shortened(one.printed, block.marks)
            if not alike(step.printed, now):
                was, now = masked(step.printed), masked(now)
                lines = difflib.unified_diff(was.split("\n"), now.split("\n"), "the page", "printed", lineterm="", n=1)
                yield Problem(block, f"{step.code}\n" + "\n".join(lines))
    if len(ran) < len(told) and all(one.code == 0 for one in ran):
        yield Problem(block, f"bash left before: {told[len(ran)].code}")


# ------------------------------------------------------------------------------------------------- one chapter


def walk(page: Path, folder: Folder, write: bool, compare: bool) -> list[Problem]:
    """Run all blocks of a chapter."""
    found: list[Problem] = []
    fresh: list[tuple[int, int, str]] = []  # lines to be replaced
    text_before = page.read_text(encoding="utf-8")
    every = blocks(page, text_before)
    for block, behind in zip(every, [*every[1:], None], strict=True):
        if "file" in block.marks:
            folder.write(block)
        if not block.run:
            continue
        text = behind if behind is not None and _directly(block, behind) else None
        told = steps(block)
        if text is not None:
            told[0].printed = text.text
        ran = folder.python(block) if block.language == "python" else folder.console(block)
        found += problems(block, told, ran, compare and block.language != "sh")
        if block.language == "console" or (block.language == "python" and (text or ran[0].printed)):
            fresh.append(_fresh(block, text, told, ran))
    if write:
        lines = text_before.split("\n")
        if page.read_text(encoding="utf-8") != text_before:
            raise Wrong(f"{page.name} was changed while it was walked. Walk it again.")
        for start, end, made in reversed(fresh):
            lines[start:end] = made.split("\n")
        page.write_text("\n".join(lines), encoding="utf-8")
    if not found:
        folder.walked(page).touch()
    return found


def _directly(block: Block, behind: Block) -> bool:
    """Whether a block of text holds what the script before it printed."""
    lines = block.page.read_text(encoding="utf-8").split("\n")[block.end : behind.line]
    return block.language == "python" and behind.language == "text" and not any(line.strip() for line in lines)


def _fresh(block: Block, text: Block | None, told: list[Step], ran: list[Ran]) -> tuple[int, int, str]:
    """The lines of a block, and what shall stand there."""
    shown = [shortened(one.printed, block.marks) for one in ran]
    if any("```" in one for one in shown):
        raise Wrong(f"{block.where}: it prints a fence, which would close the block. Print something else.")
    if block.language == "python":
        made = f"```text\n{shown[0]}\n```"
        return (text.line, text.end, made) if text else (block.end - 1, block.end, f"```\n\n{made}")
    lines = ["```console"]
    for step, one in zip(told, [*shown, *[""] * len(told)], strict=False):
        first, *rest = step.code.split("\n")
        lines += [f"$ {first}", *(f"> {line}".rstrip() for line in rest), *([one] if one else [])]
    return block.line, block.end, "\n".join([*lines, "```"])


# ------------------------------------------------------------------------------------------------- the whole walk


def whole(pages: list[Path], folder: Folder, asked: list[Path], write: bool, compare: bool) -> list[Problem]:
    """Chapter after chapter, and how long each took."""
    found: list[Problem] = []
    begun = time.monotonic()
    for page in pages:
        if page not in asked and folder.walked(page).exists():
            continue
        start = time.monotonic()
        own = page in asked
        new = walk(page, folder, write and own, compare and own)
        print(f"{page.stem:<20} {time.monotonic() - start:6.1f} s", flush=True)
        for problem in new:
            print(f"  {problem}", flush=True)
        found += new
    print(f"{'in all':<20} {time.monotonic() - begun:6.1f} s")
    return found


def main() -> None:
    """Read the arguments, walk, and say how it went."""
    parser = argparse.ArgumentParser(description="Walk through the guide as a reader would.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="write what is printed into the pages")
    what.add_argument("--check", action="store_true", help="fail where something else is printed")
    parser.add_argument("--chapter", help="one chapter only, after those that it needs")
    parser.add_argument("--folder", type=Path, help="work here, and keep it; otherwise in a fresh one")
    parser.add_argument("--steps", type=int, help="train no run for more steps than this; not with --write or --check")
    said = parser.parse_args()
    if said.steps is not None and (said.write or said.check):
        parser.error("--steps changes what is printed, so it goes with neither --write nor --check")
    try:
        pages = chapters(said.chapter)
        asked = pages if said.chapter is None else [page for page in pages if page.name.startswith(said.chapter)]
        with contextlib.ExitStack() as stack:
            path = said.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
            found = whole(pages, Folder(path, said.steps), asked, said.write, said.check)
    except Wrong as error:
        sys.exit(str(error))
    if found:
        sys.exit(f"{len(found)} blocks are not as the pages say. `make walk WALK=--write` writes them again.")


if __name__ == "__main__":
    main()
