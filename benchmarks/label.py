"""The overhead of labelling: 2,000 prompts through `label` against a bare loop over the same SDK, in the same run.

    python benchmarks/label.py               throughput: 50 ms latency, 64 concurrent calls, both in turn
    python benchmarks/label.py --rate 600    the request rate under a limit that the provider announces in its headers
    python benchmarks/label.py --load        CPU time per request, memory, and the longest block of the event loop

The server is a separate process on the loopback interface.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from distillkit_plugins.compatible import Compatible

from distillkit.core.records import Request
from distillkit.teachers.answers.disk import DiskAnswerStore
from distillkit.teachers.asking.label import label
from distillkit.teachers.asking.policy import RequestPolicy

SERVER = Path(__file__).parent.parent / "tests" / "support" / "chat_provider.py"
WORDS = "once upon a time there was a small fox who " * 4


@contextmanager
def server(**words: Any) -> Iterator[tuple[str, Any]]:
    """The server's address, and a function that stops it and returns every call it received."""
    told = [f"{name}={value}" for name, value in words.items()]
    child = subprocess.Popen(
        [sys.executable, str(SERVER), *told], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    try:
        yield child.stdout.readline().strip(), lambda: json.loads(child.communicate()[0])
    finally:
        child.kill()


def requests(count: int, run: int) -> list[Request]:
    return [Request(f"r{i}", prompt=f"{WORDS}{run}-{i}", max_tokens=96, seed=i) for i in range(count)]


Times = tuple[float, float]  # wall-clock seconds and CPU seconds


def bare(url: str, asked: list[Request], concurrency: int, retries: int = 0) -> Times:
    """The time of a loop over the SDK, without cache or limits, and only with the SDK's own retries."""
    import openai

    async def go() -> None:
        client = openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=retries, timeout=600.0)
        gate = asyncio.Semaphore(concurrency)

        async def one(request: Request) -> str | None:
            async with gate:
                reply = await client.chat.completions.create(
                    model="m",
                    messages=[{"role": "user", "content": request.prompt or ""}],
                    max_tokens=request.max_tokens,
                    temperature=1.0,
                    top_p=1.0,
                    seed=request.seed,
                )
                return reply.choices[0].message.content

        await asyncio.gather(*map(one, asked))
        await client.close()

    began, worked = time.perf_counter(), time.process_time()
    asyncio.run(go())
    return time.perf_counter() - began, time.process_time() - worked


def ours(url: str, asked: list[Request], concurrency: int) -> Times:
    """The time of `label` with an empty cache on disk, including the probe."""
    teacher = Compatible(Compatible.Options(model="m", base_url=url))
    with tempfile.TemporaryDirectory() as folder, DiskAnswerStore(Path(folder)) as cache:
        began, worked = time.perf_counter(), time.process_time()
        done = label(teacher, asked, cache, policy=RequestPolicy(concurrency=concurrency))
        times = time.perf_counter() - began, time.process_time() - worked
        assert len(done.answers) == len(asked)
    return times


def throughput(count: int, concurrency: int, rounds: int, delay: float) -> dict[str, Any]:
    """Run both in turn, so that other load on the machine affects both."""
    with server(delay=delay) as (url, _):
        bare(url, requests(50, -1), concurrency)
        ours(url, requests(50, -2), concurrency)
        pairs = [
            (bare(url, requests(count, i), concurrency), ours(url, requests(count, i), concurrency))
            for i in range(rounds)
        ]
    shares = [a[0] / b[0] for a, b in pairs]
    return {
        "prompts": count,
        "bare_per_second": round(count / median(a[0] for a, _ in pairs), 1),
        "label_per_second": round(count / median(b[0] for _, b in pairs), 1),
        "share": round(median(shares), 3),
        "shares": [round(share, 3) for share in shares],
        "processor_share": round(median(a[1] / b[1] for a, b in pairs), 3),
    }


# Under load -------------------------------------------------------------------------------------------------


class Watched(Compatible):
    """A teacher that also measures the longest time for which its event loop was blocked.

    The time before the first call, when nothing could be waiting, is measured separately.
    """

    BEAT = 0.01

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.before, self.longest, self.watch = 0.0, 0.0, None
        self.asked = False

    def check(self, requests: Any) -> None:
        """Start the measurement. This is the first call on the event loop."""
        if self.watch is None:
            self.watch = asyncio.ensure_future(self._watch(time.perf_counter(), _ready()))
        super().check(requests)

    async def answer(self, request: Request) -> Any:
        self.asked = True
        return await super().answer(request)

    async def _watch(self, began: float, ready: float) -> None:
        """Sleep repeatedly for a short time. Any delay beyond it means that the loop was blocked.

        Time in which the thread was runnable but had no core is known and is subtracted.
        """
        nap, asked = 0.0, False
        while True:
            stop = time.perf_counter() - began - (_ready() - ready) - nap
            if asked:
                self.longest = max(self.longest, stop)
            else:
                self.before = max(self.before, stop)
            began, ready, nap, asked = time.perf_counter(), _ready(), self.BEAT, self.asked
            await asyncio.sleep(nap)

    async def close(self) -> None:
        if self.watch is not None:
            self.watch.cancel()
        await super().close()


def _ready() -> float:
    """The seconds for which this thread was runnable but not scheduled; 0 where the system does not say."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _peak() -> float:
    """The peak memory of this process in MB."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    status = Path("/proc/self/status").read_text()  # ru_maxrss starts at that of the parent process
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def part(name: str, url: str, count: int, concurrency: int) -> dict[str, Any]:
    """Measure the CPU time and memory of one of the two, in a separate process."""
    import openai  # imported beforehand, so that its cost is not measured

    assert openai
    asked = requests(count, 0)
    before = _peak()
    if name == "bare":
        _, worked = bare(url, asked, concurrency, retries=5)
        return {"processor": worked, "peak": _peak(), "before": before}
    teacher = Watched(Compatible.Options(model="m", base_url=url))
    with tempfile.TemporaryDirectory() as folder, DiskAnswerStore(Path(folder)) as cache:
        worked = time.process_time()
        done = label(teacher, asked, cache, policy=RequestPolicy(concurrency=concurrency))
        worked = time.process_time() - worked
        facts = {"answers": len(done.answers), "asked": done.asked}
        facts |= {"longest_stop": teacher.longest, "stop_before": teacher.before}
        assert len(cache) >= count
    return {"processor": worked, "peak": _peak(), "before": before, **facts}


def load(count: int, concurrency: int, delay: float, failing: float) -> dict[str, Any]:
    """Both under load, one after the other, each with its own server that fails some calls."""
    found, log = {}, {}
    for name in ("bare", "ours"):
        with server(delay=delay, failing=failing) as (url, stop):
            words = ["--part", name, "--url", url, "--prompts", str(count), "--concurrency", str(concurrency)]
            ran = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
            found[name], log[name] = json.loads(ran.stdout), counted(stop())
    ours_, bare_ = found["ours"], found["bare"]
    return {
        "prompts": count,
        "failing": failing,
        "answers": ours_["answers"],
        "asked": ours_["asked"],
        **log["ours"],
        "bare_faults": log["bare"]["faults"],
        "processor_ms": round(1e3 * ours_["processor"] / count, 3),
        "bare_processor_ms": round(1e3 * bare_["processor"] / count, 3),
        "processor_ratio": round(ours_["processor"] / bare_["processor"], 3),
        "peak_mb": round(ours_["peak"]),
        "bytes_an_answer": round(1e6 * (ours_["peak"] - ours_["before"]) / count),
        "longest_stop_ms": round(1e3 * ours_["longest_stop"], 1),
        "stop_before_ms": round(1e3 * ours_["stop_before"], 1),
    }


def counted(calls: list[tuple[str, float, int]]) -> dict[str, int]:
    """Counts from a server's log: calls except probes, failed calls, prompts answered, and repeated answers."""
    asked = [(prompt, status) for prompt, _, status in calls if prompt.startswith(WORDS)]
    good = Counter(prompt for prompt, status in asked if status == 200)
    faults = sum(status != 200 for _, status in asked)
    return {"calls": len(asked), "faults": faults, "once": len(good), "again": good.total() - len(good)}


def rate(per_minute: int, minutes: float) -> dict[str, Any]:
    """The request rate under a limit that is learnt from headers, over every minute, and the number of refusals."""
    with server(delay=0.05, per_minute=per_minute) as (url, stop):
        ours(url, requests(int(per_minute * minutes), 0), 64)
        calls = stop()
    times = [at for _, at, status in calls if status == 200]
    seconds = times[-1] - times[0]
    widest = max(b - a for a, b in pairwise(times))
    fullest = max(sum(start <= at < start + 60 for at in times) for start in times)
    return {
        "limit_per_minute": per_minute,
        "calls": len(times),
        "seconds": round(seconds, 2),
        "of_limit": round((len(times) - 1) / seconds * 60 / per_minute, 4),
        "fullest_minute": fullest,
        "longest_gap": round(widest, 3),
        "refused": sum(status == 429 for _, _, status in calls),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay", type=float, default=0.05)
    parser.add_argument("--rate", type=int, help="requests per minute that the server allows")
    parser.add_argument("--minutes", type=float, default=1.9)
    parser.add_argument("--load", action="store_true", help="measure CPU time, memory and the event loop under load")
    parser.add_argument("--failing", type=float, default=0.01, help="share of the prompts whose first call fails")
    parser.add_argument("--part", choices=["bare", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        print(json.dumps(part(chosen.part, chosen.url, chosen.prompts, chosen.concurrency)))
    elif chosen.load:
        print(json.dumps(load(chosen.prompts, chosen.concurrency, chosen.delay, chosen.failing)))
    elif chosen.rate:
        print(json.dumps(rate(chosen.rate, chosen.minutes)))
    else:
        print(json.dumps(throughput(chosen.prompts, chosen.concurrency, chosen.rounds, chosen.delay)))


if __name__ == "__main__":
    main()
