"""A fake chat completions API on the loopback interface: a real server on real sockets, one thread, one event loop.

Each prompt is answered by the next act of its script, and normally when the script has ended. Calls are recorded.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

PROBE = "Count: one, two,"  # what the capability probe says


@dataclass
class Act:
    """How the server treats one call."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None  # instead of an answer
    change: Callable[[dict[str, Any]], Any] | None = None  # of the answer
    delay: float = 0.0
    reset: int | None = None  # bytes of the response after which the connection is reset
    length: int | None = None  # a false Content-Length
    drip: float = 0.0  # seconds between the bytes of the body
    good: bool = True  # whether what it sends, if changed, is an answer all the same

    @property
    def answers(self) -> bool:
        return self.good and self.status == 200 and self.body is None and self.reset is None and self.length is None


@dataclass
class Call:
    """One call: its request and its time."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float
    status: int = 200  # of what was sent

    @property
    def prompt(self) -> str:
        return str(self.body["messages"][-1]["content"] if "messages" in self.body else self.body.get("prompt"))


def error(status: int, message: str, code: str | None = None, param: str | None = None, **headers: str) -> Act:
    """An error response in OpenAI's format."""
    told = {"error": {"message": message, "type": "some_error", "code": code, "param": param}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Act(status, named, json.dumps(told).encode())


class Provider:
    """The server, its script and the calls that it received."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.script: dict[str, deque[Act]] = defaultdict(deque)
        self.rule: Callable[[Call], Act | None] = lambda call: None  # for whole classes of calls
        self.calls: list[Call] = []
        self.served: Counter[str] = Counter()  # good answers that were sent to their end, by prompt
        self.loop = asyncio.new_event_loop()
        self.port = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._ready = threading.Event()
        self._open: set[asyncio.StreamWriter] = set()

    # ------------------------------------------------------------------------------------------ for tests

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def prompts(self) -> list[str]:
        """The prompts of all calls except probes."""
        return [call.prompt for call in self.calls if call.prompt != PROBE]

    def on(self, prompt: str, *acts: Act) -> None:
        self.script[prompt].extend(acts)

    def forget(self) -> None:
        self.calls.clear()

    def start(self, port: int = 0) -> Provider:
        self.port = port
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def stop(self) -> None:
        """Stop serving; a second time does nothing."""
        if self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)

    # ------------------------------------------------------------------------------------------ serving

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(asyncio.start_server(self._client, "127.0.0.1", self.port, backlog=512))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self.loop.run_forever()
        server.close()
        for writer in list(self._open):
            writer.transport.abort()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while await self._call(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:]) if name}
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
        call = Call(head[0].split()[1], headers, body, time.monotonic())
        self.calls.append(call)
        acts = self.script[call.prompt]
        act = acts.popleft() if acts else (self.rule(call) or Act())
        call.status = act.status
        await asyncio.sleep(self.delay + act.delay)
        goes_on = await self._send(writer, act, act.body if act.body is not None else self._answer(call, act))
        if act.answers and call.prompt != PROBE:
            self.served[call.prompt] += 1
        return goes_on

    async def _send(self, writer: asyncio.StreamWriter, act: Act, body: bytes) -> bool:
        length = len(body) if act.length is None else act.length
        named = {"Content-Type": "application/json", "Content-Length": str(length), **act.headers}
        head = f"HTTP/1.1 {act.status} X\r\n" + "".join(f"{n}: {v}\r\n" for n, v in named.items()) + "\r\n"
        whole = head.encode() + body
        if act.reset is not None:
            writer.write(whole[: len(head) + act.reset] if act.reset else b"")
            await writer.drain()
            await asyncio.sleep(0.01)
            return False
        if act.drip:
            for i in range(len(whole)):
                writer.write(whole[i : i + 1])
                await writer.drain()
                await asyncio.sleep(act.drip)
        else:
            writer.write(whole)
            await writer.drain()
        return act.length is None

    def _answer(self, call: Call, act: Act) -> bytes:
        text = f"to {call.prompt}"
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
        if "messages" in call.body:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        if call.body.get("logprobs"):
            choice["logprobs"] = logprobs(text, int(call.body.get("top_logprobs", 1)))
        body: Any = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": call.body["model"],
            "system_fingerprint": "f",
            "choices": [choice],
            "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
        }
        if act.change is not None:
            changed = act.change(body)
            body = body if changed is None else changed
        return json.dumps(body).encode()


def logprobs(text: str, most: int) -> dict[str, Any]:
    """A log-probability for each word, in OpenAI's format."""
    words = [text[: text.find(" ")], *(f" {word}" for word in text.split(" ")[1:])]

    def entry(word: str, value: float) -> dict[str, Any]:
        return {"token": word, "logprob": value, "bytes": list(word.encode())}

    rows = [
        {**entry(word, -0.1), "top_logprobs": [entry(f"{word}{'x' * i}", -0.1 - 3 * i) for i in range(most)]}
        for word in words
    ]
    return {"content": rows}


class PerMinute:
    """A rule that allows this many calls per minute and sends the rate limit headers; the minute may be shortened."""

    def __init__(self, limit: int, minute: float = 60.0) -> None:
        self.limit, self.minute = limit, minute
        self.log: deque[float] = deque()
        self.refused = 0

    def __call__(self, call: Call) -> Act:
        while self.log and self.log[0] <= call.at - self.minute:
            self.log.popleft()
        allowed = len(self.log) < self.limit
        if allowed:
            self.log.append(call.at)
        else:
            self.refused += 1
        reset = (self.log[0] + self.minute - call.at) * 60.0 / self.minute
        told = {"limit": self.limit, "remaining": self.limit - len(self.log), "reset": f"{reset:.2f}s"}
        headers = {f"x-ratelimit-{kind}-requests": str(value) for kind, value in told.items()}
        return Act(headers=headers) if allowed else error(429, "slow down", retry_after=f"{reset:.2f}", **headers)


class Failing:
    """A rule that fails the first call of every n-th prompt."""

    def __init__(self, share: float) -> None:
        self.every, self.failed = round(1 / share), set[int]()

    def __call__(self, call: Call) -> Act | None:
        mark = zlib.crc32(call.prompt.encode())
        if mark % self.every or mark in self.failed or call.prompt == PROBE:
            return None
        self.failed.add(mark)
        return error(500, "try again", retry_after="0.1")


@contextmanager
def serving(delay: float = 0.0, port: int = 0) -> Iterator[Provider]:
    """A provider that serves until the end of the block."""
    provider = Provider(delay).start(port)
    try:
        yield provider
    finally:
        provider.stop()


def main() -> None:
    """Serve until standard input ends; the address is printed to standard output."""
    words = dict(word.split("=") for word in sys.argv[1:])
    with serving(float(words.get("delay", 0))) as provider:
        if "per_minute" in words:
            provider.rule = PerMinute(int(words["per_minute"]))
        if "failing" in words:
            provider.rule = Failing(float(words["failing"]))
        print(provider.url, flush=True)
        sys.stdin.read()
        print(json.dumps([[call.prompt, call.at, call.status] for call in provider.calls]), flush=True)


if __name__ == "__main__":
    main()
