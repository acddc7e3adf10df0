"""What the host costs: 2,000 prompts through `label` against a bare loop over the same SDK, in the same run.

    python benchmarks/label.py               throughput: 50 ms latency, 64 calls at once, in turns
    python benchmarks/label.py --rate 600    the rate held at a limit that the provider tells in its headers

The server is a process of its own, on the loopback interface.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from distillkit_plugins.compatible import Compatible

from distillkit.records import Request
from distillkit.teachers.asking import Terms
from distillkit.teachers.cache import Cache
from distillkit.teachers.label import label

SERVER = Path(__file__).parent.parent / "tests" / "provider.py"
WORDS = "once upon a time there was a small fox who " * 4


@contextmanager
def server(**words: Any) -> Iterator[tuple[str, Any]]:
    """Its address, and a way to stop it that returns every call it saw."""
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


Times = tuple[float, float]  # by the clock, and of the processor


def bare(url: str, asked: list[Request], concurrency: int) -> Times:
    """Seconds of a loop over the SDK, with neither cache nor limits nor retries."""
    import openai

    async def go() -> None:
        client = openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0)
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
    """Seconds of `label`, from an empty cache on the disk, probe included."""
    teacher = Compatible(Compatible.Options(model="m", base_url=url))
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder)) as cache:
        began, worked = time.perf_counter(), time.process_time()
        done = label(teacher, asked, cache, terms=Terms(concurrency=concurrency))
        times = time.perf_counter() - began, time.process_time() - worked
        assert len(done.answers) == len(asked)
    return times


def throughput(count: int, concurrency: int, rounds: int, delay: float) -> dict[str, Any]:
    """Both in turns, so that a busy machine slows both."""
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


def rate(per_minute: int, minutes: float) -> dict[str, Any]:
    """The rate at a limit that is learnt from headers, over every whole minute; and how often it was refused."""
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
    parser.add_argument("--rate", type=int, help="requests a minute that the server allows")
    parser.add_argument("--minutes", type=float, default=1.9)
    chosen = parser.parse_args()
    if chosen.rate:
        print(json.dumps(rate(chosen.rate, chosen.minutes)))
    else:
        print(json.dumps(throughput(chosen.prompts, chosen.concurrency, chosen.rounds, chosen.delay)))


if __name__ == "__main__":
    main()
