"""Progress on a terminal and in a log."""

from __future__ import annotations

import io
import sys
import time

import pytest

from distillkit.core import console as console_module
from distillkit.core.console import Console, LiveConsole, PlainConsole, format_duration


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in a list: set the first element to let it pass."""
    time_is = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: time_is[0])
    return time_is


def screen(written: str) -> list[str]:
    """What a terminal shows after these characters."""
    return [line.rpartition("\r\x1b[K")[2] for line in written.split("\n")]


def test_a_log_gets_progress_at_most_every_five_seconds_and_always_the_last(now: list[float]) -> None:
    stream = io.StringIO()
    console = PlainConsole(stream)
    for i in range(101):
        now[0] = 1000 + i / 10
        console.progress(f"step {i}", last=i == 100)
    assert stream.getvalue().splitlines() == ["step 0", "step 50", "step 100"]


def test_a_log_gets_every_line_that_was_said(now: list[float]) -> None:
    stream = io.StringIO()
    console = PlainConsole(stream)
    console.print("one")
    console.warn("two")
    assert stream.getvalue() == "one\nwarning: two\n"


def test_the_first_progress_is_shown_even_on_a_machine_just_started(now: list[float]) -> None:
    now[0] = 0.05
    for console in (PlainConsole(io.StringIO()), LiveConsole(io.StringIO())):
        console.progress("step 1")
        assert "step 1" in console.stream.getvalue()  # type: ignore[attr-defined]


def test_a_terminal_shows_one_line_rewritten(now: list[float]) -> None:
    stream = io.StringIO()
    console = LiveConsole(stream)
    for i in range(11):
        now[0] = 1000 + i
        console.progress(f"step {10 ** (10 - i)}")
        assert screen(stream.getvalue()) == [f"step {10 ** (10 - i)}"]
    assert "\n" not in stream.getvalue()


def test_a_terminal_never_shows_half_a_line_before_what_is_said(now: list[float]) -> None:
    stream = io.StringIO()
    console = LiveConsole(stream)
    console.print("begun")
    console.progress("a long line of progress")
    console.print("said")
    console.progress("too soon to be shown")
    console.warn("mind")
    now[0] += 1
    console.progress("more progress")
    console.progress("all done", last=True)
    console.print("end")
    assert screen(stream.getvalue()) == ["begun", "said", "warning: mind", "all done", "end", ""]


def test_a_terminal_is_not_written_to_more_than_ten_times_a_second(now: list[float]) -> None:
    stream = io.StringIO()
    console = LiveConsole(stream)
    for i in range(1000):
        now[0] = 1000 + i / 1000
        console.progress(f"{i}")
    assert stream.getvalue().count("\r") <= 11


def test_a_live_line_is_never_wider_than_the_terminal(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = io.StringIO()
    LiveConsole(stream).progress("x" * 100)
    assert screen(stream.getvalue()) == ["x" * 19]


def test_a_live_line_is_wiped_before_a_result_and_a_file_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    console_module.clear_live_line()
    assert stream.getvalue() == ""
    monkeypatch.setattr(stream, "isatty", lambda: True)
    console_module.default_console().progress("packing: 2,000 documents")
    console_module.clear_live_line()
    assert screen(stream.getvalue() + "parameters") == ["parameters"]


def test_where_errors_go_decides_who_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert type(console_module.default_console()) is PlainConsole
    monkeypatch.setattr(stream, "isatty", lambda: True)
    assert type(console_module.default_console()) is LiveConsole
    Console().print("nothing")
    Console().progress("nothing")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (190, "3m10s"),
        (3599.6, "1h00m"),
        (7500, "2h05m"),
        (360000, "100h00m"),
    ],
)
def test_a_duration_is_said_as_people_say_it(seconds: float, said: str) -> None:
    assert format_duration(seconds) == said
