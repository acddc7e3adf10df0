"""Whether a process is alive, by its start time."""

from __future__ import annotations

import shutil

import pytest

from distillkit.core import processes


@pytest.mark.skipif(shutil.which("ps") is None, reason="there is no ps")
def test_where_there_is_no_proc_a_number_that_was_used_again_is_known_by_ps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STAT", "/nowhere/{}")
    where, pid, since = processes.current_process()
    assert since
    assert not processes.has_ended(where, pid, since)
    assert processes.has_ended(where, pid, "Thu Jan  1 00:00:00 1970")
    monkeypatch.setenv("PATH", "")  # nobody says when it began
    assert processes.current_process() == (where, pid, "")
    assert not processes.has_ended(where, pid, since)
    assert not processes.has_ended(where, pid, "")
