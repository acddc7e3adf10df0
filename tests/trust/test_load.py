"""Load: many prompts, many runs, much text, and what they take of the processor and of memory."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT
from support.run_folders import make
from support.trust_ledger import held, size

pytestmark = [pytest.mark.trust, pytest.mark.slow, pytest.mark.timing]

MOST_STOP = 100.0  # milliseconds in which the event loop did nothing else
CALLS = 32  # out at once: all may end together, and the SDK takes over a millisecond for each, in turn


def test_many_prompts_cost_little_more_than_a_bare_loop_over_the_sdk() -> None:
    count = size(1_500, full=100_000)
    words = ["--load", "--prompts", str(count), "--concurrency", str(CALLS), "--delay", "0.02"]
    ran = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "label.py"), *words], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    ratio, stop, peak = found["processor_ratio"], found["longest_stop_ms"], found["peak_mb"]
    before = found["stop_before_ms"]
    assert found["answers"] == found["asked"] == count
    assert found["calls"] == count + found["faults"]
    assert 0.004 * count < found["faults"] < 0.02 * count
    assert found["bare_faults"] == found["faults"]
    lost, doubled = count - min(found["once"], found["answers"]), found["again"]
    most = 250 + count * 0.006  # MB: what Python and the SDKs take, and 6 kB an answer
    figures = f"{found['processor_ms']} ms a request, {ratio} of a bare loop's {found['bare_processor_ms']} ms"
    told = f"{found['faults']:,} faults, answers lost {lost}, doubled {doubled}"
    held(
        "Load: with 1% faults all prompts are answered, none lost, none duplicated", count, count - lost - doubled, told
    )
    most_ratio = size(1.6, full=1.25)  # beside other tests, and of so few prompts, the figure is rough
    held(
        "Load: a request takes at most 1.25 times as long as in a bare loop over the SDK",
        1,
        int(ratio <= most_ratio),
        figures,
    )
    held("Load: memory is bounded", 1, int(peak <= most), f"{peak} MB at {count:,} answers")
    most_stop = size(3, full=1) * MOST_STOP  # beside other tests the disk has its queue, too
    stops = f"{stop} ms at most with {CALLS} calls out; {before} ms before the first call, to load and make the client"
    held("Load: with calls in flight the event loop is never blocked for 100 ms", 1, int(stop <= most_stop), stops)


def used(home: Path, *words: str) -> tuple[float, str]:
    """Seconds of the processor that a command took, and what it said."""
    environment = {**os.environ, "DISTILLKIT_HOME": str(home), "COLUMNS": "100"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "distillkit", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def test_a_thousand_runs_are_listed_and_fifty_of_them_compared_in_seconds(tmp_path: Path) -> None:
    count = size(100, full=1_000)
    for number in range(count):
        make(tmp_path / "reports", f"recipe{number // 10}/{number % 10 + 1}", seed=number)
    names = [f"recipe{i}/{j + 1}" for i in range(count // 10) for j in range(10)]
    listing, out = used(tmp_path, "runs", "--json")
    assert len(json.loads(out)) == count
    shown, out = used(tmp_path, "runs")
    assert len(out.splitlines()) >= count
    latest, _ = used(tmp_path, "report")
    some = random.Random(1).sample(names, 50)
    compared, out = used(tmp_path, "compare", *some, "--html", "c.html", "--json")
    assert len(json.loads(out)["rows"]) >= 49
    seconds = {"listed": max(listing, shown), "the newest found and reported": latest, "50 of them compared": compared}
    figures = ", ".join(f"{what} in {one:.1f} s" for what, one in seconds.items())
    fine = sum(one < 15 for one in seconds.values())
    promise = "Load: a thousand runs are listed, and 50 of them compared, within seconds"
    held(promise, len(seconds), fine, f"{count:,} runs: {figures}")


TOKENIZE = """
import json, resource, sys, time
from pathlib import Path
from distillkit.student import blas
from distillkit.plugins.manager import Plugins
from distillkit.data.corpus import prepare
blas.load()
source = Plugins.load().build("sources", "text", {"path": sys.argv[1], "separator": "<|endoftext|>"})
bpe = {"kind": "bpe", "vocab_size": 4096}
corpus = prepare(source, tokenizer=bpe, options={"held_out": 0.01}, folder=Path(sys.argv[2]))
if sys.platform == "darwin":
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
else:  # the other figure begins with that of the process which started this one
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1e3
print(json.dumps({"peak": peak, "seconds": time.process_time(), "tokens": corpus.train.tokens, **corpus.counts}))
"""


def write_corpus(path: Path, megabytes: int) -> int:
    """Stories of a kilobyte, no two alike, made of the bundled tales; how many."""
    from distillkit.data.tales import story

    text = "\n".join(story(0, i) for i in range(3_000))
    rng, written, count = random.Random(3), 0, 0
    with path.open("w", encoding="utf-8") as out:
        while written < megabytes * 1_000_000:
            start = rng.randrange(len(text) - 1_000)
            written += out.write(f"Story {count}. {text[start : start + 1_000]}<|endoftext|>")
            count += 1
    return count


def test_a_gigabyte_of_text_is_tokenized_within_a_gigabyte_of_memory(tmp_path: Path) -> None:
    megabytes, most = size(25, full=1_000), size(550, full=1_000)
    count = write_corpus(tmp_path / "text.txt", megabytes)
    command = [sys.executable, "-c", TOKENIZE, str(tmp_path / "text.txt"), str(tmp_path / "cache")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["train"]["documents"] + found["held_out"]["documents"] == count
    figure = f"{megabytes:,} MB of text, {found['tokens']:,} tokens, {found['peak']:.0f} MB of memory at most"
    held("Load: a gigabyte of text is tokenized within a gigabyte of memory", 1, int(found["peak"] <= most), figure)
