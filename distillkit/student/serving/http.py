"""HTTP/1.1 over asyncio, spelled by h11: one request after another on a line, and the news when a client has left.

Knows nothing of what is asked or answered.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import h11

T = TypeVar("T")
PIECE = 1 << 16
LARGEST = 8 << 20  # bytes of a request's body
LINGER = 1.0  # seconds for a client that is refused to hear of it
PATIENCE = 300.0  # seconds for a request to come


class Gone(Exception):
    """The client has left."""


class TooLarge(Exception):
    """A request's body is larger than anybody needs."""


@dataclass(frozen=True)
class Request:
    """One request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Line:
    """A connection to one client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.state = h11.Connection(h11.SERVER)
        self.idle = True  # nobody waits for an answer here

    async def request(self) -> Request | None:
        """The next request; None when the client has no more."""
        async with asyncio.timeout(PATIENCE):
            head = await self._event()
            if not isinstance(head, h11.Request):
                return None
            self.idle = False
            headers = {name.decode().lower(): value.decode("latin-1") for name, value in head.headers}
            if self.state.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            body = await self._body(int(headers.get("content-length", 0)))
        return Request(head.method.decode(), head.target.decode("latin-1").partition("?")[0], headers, body)

    async def _body(self, foretold: int) -> bytes:
        if foretold > LARGEST:
            raise TooLarge
        parts, size = [], 0
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise Gone
            parts.append(bytes(event.data))
            size += len(event.data)
            if size > LARGEST:
                raise TooLarge
        return b"".join(parts)

    async def _event(self) -> Any:
        while (event := self.state.next_event()) is h11.NEED_DATA:
            self.state.receive_data(await self.reader.read(PIECE))
        return event

    async def unless_gone(self, work: Awaitable[T]) -> T:
        """What comes of some work; it is given up when the client leaves first."""
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Gone
            return task.result()
        finally:
            for each in (task, gone):
                each.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def _gone(self) -> None:
        """Ends when the client closes its side; what else it sends is the beginning of its next request."""
        size = 0
        while data := await self.reader.read(PIECE):
            self.state.receive_data(data)
            size += len(data)
            if size > LARGEST:
                return
        self.state.receive_data(b"")

    async def answer(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        """Send a JSON object."""
        body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        lines = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        await self._send(h11.Response(status_code=status, headers=list(lines.items())))
        await self._send(h11.Data(data=body))
        await self._send(h11.EndOfMessage())

    async def stream(self, values: AsyncGenerator[Any, None]) -> None:
        """Send JSON objects as server-sent events while they come. Before the first one nothing is sent."""
        lines = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        async with aclosing(values):
            async for value in values:
                if not self.answering:
                    await self._send(h11.Response(status_code=200, headers=list(lines.items())))
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
                await self._send(h11.Data(data=f"data: {text}\n\n".encode()))
        await self._send(h11.EndOfMessage())

    async def _send(self, event: Any) -> None:
        data = self.state.send(event)
        if data:
            self.writer.write(data)
            await self.writer.drain()

    @property
    def answering(self) -> bool:
        """Whether an answer has been begun."""
        return self.state.our_state is not h11.SEND_RESPONSE

    def next(self) -> bool:
        """Make ready for another request, if there can be one."""
        if self.state.our_state is h11.DONE and self.state.their_state is h11.DONE:
            self.state.start_next_cycle()
            self.idle = True
        return self.idle

    async def drain(self) -> None:
        """Take what the other side still sends, for a while, or it would not read what it was told."""
        try:
            async with asyncio.timeout(LINGER):
                while await self.reader.read(PIECE):
                    pass
        except TimeoutError:
            return  # it had its time

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            return  # the other side was first
