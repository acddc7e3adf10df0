"""A student behind an address, speaking as OpenAI does: any tool that talks to a model can talk to this one.

One thread owns the network (`batching`); this one reads requests and gives each to a `Job`. Knows neither recipes nor
runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import unquote

import h11

from ...core.errors import UsageError, did_you_mean
from ..generation.batching import Engine
from ..trained import Trained
from .handlers import Job
from .http import LARGEST, Gone, Line, Request, TooLarge
from .requests import Asked, AskedChat, AskedCompletion, Refusal, fault, read
from .responses import ChatShape, CompletionShape, Shape

GRACE = 5.0  # seconds that answers have to end in when the server is asked to leave
ENDPOINTS: dict[str, tuple[type[Asked], type[Shape], str]] = {
    "/v1/completions": (AskedCompletion, CompletionShape, "cmpl"),
    "/v1/chat/completions": (AskedChat, ChatShape, "chatcmpl"),
}


class Service:
    """What is behind the address: who may ask, for what, and who answers."""

    def __init__(self, student: Trained, names: Sequence[str], key: str | None = None) -> None:
        self.student, self.names, self.key = student, names, key
        self.engine = Engine(student.model, student.context, student.tokenizer.end_of_text)
        self.born = int(time.time())
        self.lines: dict[asyncio.Task[None], Line] = {}
        self.leaving = False

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until it hangs up."""
        line, task = Line(reader, writer), asyncio.current_task()
        assert task is not None
        self.lines[task] = line
        try:
            await self._talk(line)
        except (Gone, ConnectionError, TimeoutError, asyncio.CancelledError):
            return  # nobody is there to be told, or the server leaves
        finally:
            del self.lines[task]
            await line.close()

    async def _talk(self, line: Line) -> None:
        try:
            while (request := await line.request()) is not None:
                await line.unless_gone(self._serve(request, line))
                if self.leaving or not line.next():
                    return
        except h11.RemoteProtocolError as error:
            await self._hang_up(line, Refusal(error.error_status_hint, f"that is not HTTP: {error}"))
        except TooLarge:
            await self._hang_up(line, Refusal(413, f"the body is larger than {LARGEST >> 20} MiB: send less at once"))

    async def _hang_up(self, line: Line, refusal: Refusal) -> None:
        """Refuse what has not been read to its end."""
        await line.answer(refusal.status, refusal.body, {"connection": "close"})
        await line.drain()

    async def _serve(self, request: Request, line: Line) -> None:
        """Answer one request."""
        try:
            self._admit(request)
            if request.path not in ENDPOINTS:
                await line.answer(200, self._models(request))
                return
            job = self._job(request)
            if job.asked.stream:
                await line.stream(job.pieces())
            else:
                await line.answer(200, await job.whole())
        except Refusal as refusal:
            await line.answer(refusal.status, refusal.body)
        except (Gone, ConnectionError):
            raise
        except Exception as error:
            if line.answering:
                raise
            await line.answer(500, fault(error).body)

    def _admit(self, request: Request) -> None:
        """Refuse strangers, unknown paths, and methods that a path does not have."""
        told = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.key and not hmac.compare_digest(told.encode("latin-1"), self.key.encode()):
            raise Refusal(401, "this server wants a key: Authorization: Bearer KEY", code="invalid_api_key")
        models = request.path == "/v1/models" or request.path.startswith("/v1/models/")
        if not models and request.path not in ENDPOINTS:
            paths = ["/v1/models", *ENDPOINTS]
            raise Refusal(404, f"there is no {request.path}. {did_you_mean(request.path, paths)}")
        method = "GET" if models else "POST"
        if request.method != method:
            raise Refusal(405, f"{request.path} takes {method}, not {request.method}")

    def _job(self, request: Request) -> Job:
        kind, shape, prefix = ENDPOINTS[request.path]
        asked = read(kind, request.body)
        model = self._named(asked.model or self.names[0])
        head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        return Job(asked, shape(self.student.tokenizer.bytes_of), self.student, self.engine, head)

    def _named(self, name: str) -> str:
        """A name of the student that is served."""
        if name not in self.names:
            raise Refusal(404, f"there is no model {name!r} here, only {self.names[0]!r}", "model", "model_not_found")
        return name

    def _models(self, request: Request) -> dict[str, Any]:
        """The list of models, or the one that was named."""
        name = unquote(request.path.removeprefix("/v1/models").removeprefix("/"))
        model = {"object": "model", "created": self.born, "owned_by": "distillkit"}
        if name:
            return {"id": self._named(name), **model}
        return {"object": "list", "data": [{"id": self.names[0], **model}]}


async def run(service: Service, host: str, port: int, ready: Callable[[str], None], leave: asyncio.Event) -> None:
    """Serve until somebody says leave; answers that have begun may end first, within reason."""
    try:
        server = await asyncio.start_server(service.connected, host, port)
    except OSError as error:
        raise UsageError(f"cannot listen at {host}, port {port}: {error.strerror}", "Choose another --port.") from error
    service.engine.start()
    port = server.sockets[0].getsockname()[1]
    ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/v1")
    try:
        await leave.wait()
        server.close()
        await _leave(service)
    finally:
        service.engine.close()


async def _leave(service: Service) -> None:
    """Hang up on those who wait for nothing, give the others some time, and then hang up on them, too."""
    service.leaving = True
    for task, line in service.lines.items():
        if line.idle:
            task.cancel()
    if service.lines:
        await asyncio.wait(service.lines, timeout=GRACE)
    left = list(service.lines)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def serve(service: Service, host: str, port: int, ready: Callable[[str], None]) -> int:
    """Serve until a signal comes, and say which one. A second one ends it at once."""
    came: list[int] = []

    async def until_told() -> None:
        leave, loop, own = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()
        assert own is not None

        def told(number: int) -> None:
            own.cancel() if came else leave.set()
            came.append(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, told, number)
        await run(service, host, port, ready, leave)

    with contextlib.suppress(asyncio.CancelledError):  # asked twice
        asyncio.run(until_told())
    return came[0]
