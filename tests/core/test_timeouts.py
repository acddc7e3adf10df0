"""Time limits for Python code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from distillkit.core.timeouts import time_limit


@pytest.mark.parametrize("busy", ["while True: pass", "time.sleep(30)", "os.read(os.pipe()[0], 1)"])
def test_what_python_does_for_too_long_is_broken_off(busy: str) -> None:
    former = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"), time_limit(0.05):
        exec(busy, {"time": time, "os": os})
    assert signal.getsignal(signal.SIGALRM) is former
    time.sleep(0.06)  # nothing rings any more
    with time_limit(0.05):
        pass
    time.sleep(0.06)


def test_another_thread_and_no_limit_go_on_undisturbed() -> None:
    done = []

    def work() -> None:
        with time_limit(0.01):
            time.sleep(0.03)
            done.append("there")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    with time_limit(None):
        assert done == ["there"]


def test_code_that_never_comes_back_to_python_ends_with_its_process() -> None:
    code = """
        import itertools
        from distillkit.core.timeouts import time_limit

        with time_limit(0.1, grace=0.2):
            sum(itertools.repeat(0))  # in C, without end
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "Timeout (0:00:00.3" in ran.stderr
    assert "line 6 in <module>" in ran.stderr
