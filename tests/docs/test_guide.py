"""The guide: its commands run and print what it says, its links lead somewhere, what it quotes stands in the code."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import click
import pytest

from support.paths import ROOT
from support.scripts import script

DOCS = ROOT / "docs"
CHAPTERS = sorted((DOCS / "guide").glob("[0-9][0-9]_*.md"))
HOUR = 3600.0


def written() -> list[Path]:
    """Every page of Markdown of the repository."""
    listed = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("plugins/*/*.md")]
    return sorted(set(listed))


walk = script("docs/walk.py")

# ------------------------------------------------------------------------------------------------- reading a page

PAGE = """\
---
needs: [01, 02]
---
# A page

```console
$ echo one \\
    two
one two
$ cat > here.txt <<'END'
> line
>
> $ last
> END
$ cat here.txt
line
```

<!-- exit: 2 -->
<!-- head: 3; tail: 1 -->
```console
$ exit 2
```

<!-- shown: not run: it needs a key -->
```console
$ distillkit run groq
```

```python
print("6 x 7")
```

```text
6 x 7
```

```toml
name = "x"
```
"""


def test_a_page_is_read_as_blocks_commands_and_what_they_print(tmp_path: Path) -> None:
    page = tmp_path / "03_x.md"
    page.write_text(PAGE)
    first, second, third, script, printed, recipe = walk.blocks(page)
    assert [(step.code, step.printed) for step in walk.steps(first)] == [
        ("echo one \\\n    two", "one two\n"),
        ("cat > here.txt <<'END'\nline\n\n$ last\nEND", ""),
        ("cat here.txt", "line\n"),
    ]
    assert second.marks == {"exit": "2", "head": "3", "tail": "1"}
    assert third.marks == {"shown": "not run: it needs a key"}
    assert [block.run for block in (first, second, third, script, printed, recipe)] == [1, 1, 0, 1, 0, 0]
    assert (script.text, printed.language) == ('print("6 x 7")', "text")
    assert walk.needs(page) == ["01", "02"]
    assert first.where == "03_x.md:6"


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("```console\n$ ls\n", "x.md:1: this block is never closed"),
        ("```console\nls\n```\n", "begins with 'ls'"),
        ("```console\n```\n", "has no command"),
        ("<!-- shown: not run -->\n```console\n$ ls\n```\n", "say why"),
    ],
)
def test_a_page_that_cannot_be_read_is_refused_by_its_line(page: str, says: str) -> None:
    with pytest.raises(walk.PageError, match=re.escape(says)):
        assert [walk.steps(block) for block in walk.blocks(Path("x.md"), page)]


SAME = [
    ("loss 3.141 at step 10", "loss 2.9 at step 300"),
    ("about 4m59s to 1h02m", "about 3s to 58s"),
    ("took 2 min", "took 58 s"),
    ("1.5 MB in 3 ms", "800 kB in 12 s"),
    ("a   1.0 | b", "a 22.05 | b"),
    ("+0.05 [-0.01, 0.11]", "-1.5 [-2.0, 3]"),
    ("on 2026-11-21 19:30:05", "on 2027-01-02 03:04:05"),
    ("hash 0f3a9b12cd, 1e-05", "hash deadbeef99, 0.1"),
    ("┃ name ┃\n━━━━━", "┃ name    ┃\n━━━━━━━━━"),
    ("curve ▁▂▅", "curve ▇▂▁▁▁"),
    ("time  1m00s, judge 9s,\n      report 1s", "time  9s, judge 9s, report 1s"),
    ("loss  -0.0046 [-0.0058,  0.0018 better\n      -0.0033]", "loss  -0.046 [-0.058, -0.033]  0.0018 better"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_numbers_and_times_do_not_count(one: str, other: str) -> None:
    assert walk.same_output(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("better", "worse"), ("loss 1.0", "grade 1.0"), ("[1, 2]", "[1]"), ("one\ntwo", "one"), ("facade", "deadly")],
)
def test_words_count(one: str, other: str) -> None:
    assert not walk.same_output(one, other)


def test_a_long_output_is_shortened_on_the_page() -> None:
    lines = [f"line {n}" for n in range(9)]
    assert walk.truncate("\n".join(lines), {"head": "2", "tail": "1"}) == "line 0\nline 1\n...\nline 8"
    assert walk.truncate("\n".join(lines), {"head": "2"}) == "line 0\nline 1\n..."
    assert walk.truncate("a\nb\nc", {"head": "2"}) == "a\nb\nc"
    assert walk.truncate("a\nb", {}) == "a\nb"


# ------------------------------------------------------------------------------------------------- walking

SMALL = """\
<!-- file: sub/recipe.toml -->
```toml
name = "x"
```

```console
$ cat sub/recipe.toml
$ word=hello
$ echo $word 3.5; pwd
$ echo more > file.txt
```

<!-- exit: 3 -->
```console
$ cat file.txt; exit 3
```

```python
print(open("file.txt").read() * 2)
```

Words.
"""


def walked(folder: Path, page: Path, write: bool = False) -> list[str]:
    """What is not as the page says."""
    return [str(problem) for problem in walk.walk(page, walk.Workspace(folder), write, not write)]


def test_what_is_printed_is_written_into_the_page_and_then_compared(tmp_path: Path) -> None:
    page = tmp_path / "01_x.md"
    page.write_text(SMALL)
    assert walked(tmp_path / "one", page, write=True) == []
    assert '```console\n$ cat sub/recipe.toml\nname = "x"\n$ word=hello\n' in page.read_text()
    assert "$ echo $word 3.5; pwd\nhello 3.5\n~/guide\n$ echo more" in page.read_text()
    assert "```console\n$ cat file.txt; exit 3\nmore\n```" in page.read_text()
    assert "* 2)\n```\n\n```text\nmore\nmore\n```\n\nWords.\n" in page.read_text()
    text = page.read_text()
    assert walked(tmp_path / "two", page, write=True) == []
    assert page.read_text() == text
    page.write_text(text.replace("hello 3.5", "hello 4,000"))
    assert walked(tmp_path / "three", page) == []
    page.write_text(text.replace("hello 3.5", "hallo 3.5"))
    (problem,) = walked(tmp_path / "four", page)
    assert "01_x.md:6: echo $word 3.5; pwd" in problem
    assert "-hallo #" in problem
    assert "+hello #" in problem


def test_a_command_that_ends_otherwise_is_named_and_ends_its_block(tmp_path: Path) -> None:
    page = tmp_path / "01_x.md"
    page.write_text("```console\n$ (echo no >&2; exit 4)\n$ touch never\n```\n\n```console\n$ touch ever\n```\n")
    (problem,) = walked(tmp_path / "w", page)
    assert "exit code 4 instead of 0: (echo no >&2; exit 4)\nno" in problem
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == [".walk", "ever"]
    assert not list((tmp_path / "w" / ".walk").glob("*.done"))


def test_what_runs_in_the_background_ends_with_its_block_and_no_key_is_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "secret")
    monkeypatch.setenv("DISTILLKIT_DEVICE", "x")
    page = tmp_path / "01_x.md"
    page.write_text("```console\n$ sleep 60 & echo $! > pid\n$ env | grep -c -e secret -e DEVICE || true\n0\n```\n")
    assert walked(tmp_path / "w", page) == []
    pid = int((tmp_path / "w" / "pid").read_text())
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.02)
    pytest.fail("it runs on")


def test_a_chapter_is_walked_after_those_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "GUIDE", tmp_path)
    for name, needed in {"01_a": "", "02_b": "01", "03_c": "", "04_d": "02"}.items():
        (tmp_path / f"{name}.md").write_text(f"---\nneeds: [{needed}]\n---\n")
    assert [page.stem for page in walk.chapters("04")] == ["01_a", "02_b", "04_d"]
    assert [page.stem for page in walk.chapters()] == ["01_a", "02_b", "03_c", "04_d"]
    with pytest.raises(walk.PageError, match=r"no chapter '09'\. There are: 01, 02, 03, 04"):
        walk.chapters("09")


# ------------------------------------------------------------------------------------------------- the guide itself


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_a_chapter_can_be_walked_and_ends_with_something_to_try(page: Path) -> None:
    for block in walk.blocks(page):
        assert block.language not in ("bash", "sh", "shell"), f"{block.where}: say console, so that it is run"
        if block.language == "console":
            walk.steps(block)
    headings = re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)
    assert headings[-1] == "Try it"


def test_every_picture_is_made_by_a_script_and_says_what_it_shows() -> None:
    for page in CHAPTERS:
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            picture = (page.parent / target).resolve()
            assert picture.exists(), f"{page.name}: {target}"
            assert picture.with_suffix(".py").exists(), f"{page.name}: no script draws {target}"
            assert len(words) > 15, f"{page.name}: say what {target} shows, for those who cannot see it"


# ------------------------------------------------------------------------------------------------- commands


def invocations(page: Path) -> Iterator[str]:
    """Every command line of distillkit's that a page shows: in its blocks, and in the midst of a sentence."""
    text = page.read_text(encoding="utf-8")
    for block in walk.blocks(page):
        if block.language in ("bash", "sh", "console"):
            told = block.language == "console" and "\n".join(step.code for step in walk.steps(block))
            joined = (told or block.text).replace("\\\n", " ")
            yield from re.findall(r"(?:^|-- |&& |; )(distillkit .*?)(?: &&.*|; .*)?$", joined, re.MULTILINE)
    bare = re.sub(r"^(`{3,}).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from (found for found in re.findall(r"`(distillkit [^`\n]+)`", bare) if "|" not in found)


ADDED = {path.name.removeprefix("distillkit-") for path in ROOT.glob("plugins/distillkit-*")}  # those add their own


def misread(line: str) -> str:
    """What of a command line does not exist, or nothing."""
    from distillkit.cli.main import cli

    words = shlex.split(re.sub(r"\s+#.*$|\s*[<>|&].*$|\s\.\.\.", "", line))[1:]
    command: click.Command = cli
    known = {name: option for option in cli.params for name in option.opts}
    while words:
        word = words.pop(0)
        if word.startswith("-") and not re.fullmatch(r"-+\d*", word):
            name, equals, _ = word.partition("=")
            if name not in known and name != "--help":
                return f"{command.name} has no option {name}"
            if name != "--help" and not getattr(known[name], "is_flag", False) and not equals:
                words = words[1:]
        elif isinstance(command, click.Group) and word in command.commands:
            command = command.commands[word]
            known = {name: option for option in command.params for name in option.opts}
        elif isinstance(command, click.Group) and not command.invoke_without_command:
            return "" if word in ADDED else f"there is no command {word}"
    return ""


def test_the_test_of_command_lines_sees_what_does_not_exist() -> None:
    assert misread("distillkit run quickstart --set a=b --resume") == ""
    assert misread("distillkit -p hello.py run mine.toml --set=x=1 # words") == ""
    assert misread("distillkit plugins --json") == ""
    assert misread("distillkit cache prune --older-than 30d") == ""
    assert misread("distillkit walk quickstart") == "there is no command walk"
    assert misread("distillkit run quickstart --sett a=b") == "run has no option --sett"
    assert misread("distillkit cache empty") == "there is no command empty"


def test_every_command_line_on_every_page_names_commands_and_options_that_exist() -> None:
    lines = [(page, line) for page in written() for line in invocations(page)]
    wrong = [f"{page.relative_to(ROOT)}: {line}: {said}" for page, line in lines if (said := misread(line))]
    assert not wrong, "\n".join(wrong)
    assert len(lines) > 100


# ------------------------------------------------------------------------------------------------- links


@cache
def anchors(page: Path) -> frozenset[str]:
    """What can be linked to on a page: its headings, as a forge names them."""
    bare = re.sub(r"^(`{3,}).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    slugs: list[str] = []
    for heading in re.findall(r"^#{1,6} (.+)$", bare, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        slugs.append(slug if slug not in slugs else f"{slug}-{slugs.count(slug)}")
    return frozenset(slugs)


def links(page: Path) -> Iterator[str]:
    bare = re.sub(r"^(`{3,}).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", bare))


def test_every_link_leads_somewhere() -> None:
    broken = []
    for page in written():
        for link in links(page):
            if re.match(r"https?://|mailto:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken, "\n".join(broken)


# ------------------------------------------------------------------------------------------------- messages


def templates() -> Iterator[str]:
    """Every text in the code; what is filled in later is an ellipsis."""
    for file in [*(ROOT / "distillkit").rglob("*.py"), *(ROOT / "plugins" / "distillkit_plugins").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)


def test_every_message_of_the_chapter_on_trouble_stands_in_the_code() -> None:
    page = DOCS / "guide" / "15_troubleshooting.md"
    quoted = re.findall(r"^### `(.+)`$", page.read_text(encoding="utf-8"), re.MULTILINE)
    known = [" ".join(text.split()) for text in templates()]
    patterns = [".*".join(re.escape(part.strip()) for part in message.split("...")) for message in quoted]
    gone = [
        message
        for message, pattern in zip(quoted, patterns, strict=True)
        if not any(re.search(pattern, text) for text in known)
    ]
    assert not gone, "\n".join(gone)
    assert len(quoted) > 25


# ------------------------------------------------------------------------------------------------- the whole


@pytest.mark.slow
def test_the_whole_guide_walked_as_a_new_user_would(tmp_path: Path) -> None:
    begun = time.monotonic()  # every command must succeed; `make walk` trains in full and compares what is printed
    ran = subprocess.run(
        [sys.executable, "docs/walk.py", "--folder", str(tmp_path), "--steps", "100"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert time.monotonic() - begun < HOUR


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_needs_no_network(
    peer: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    peer("furo")
    peer("myst_nb")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-E", "-W", "-d", tmp_path / "trees", DOCS, tmp_path / "site"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert built.returncode == 0, built.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe)[^>]+src=\"((?:https?:)?//[^\"]+)", text)
        fetched += re.findall(r"<link[^>]+href=\"((?:https?:)?//[^\"]+)", text)
        assert fetched == [], page.name
    assert len(list((tmp_path / "site" / "guide").glob("*.html"))) == len(CHAPTERS)
