"""HTTP/1.1 over asyncio streams, parsed by h11: requests, JSON responses, server-sent events and disconnects.

Independent of what is requested.
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
READ_SIZE = 1 << 16
MAX_BODY_BYTES = 8 << 20
DRAIN_TIMEOUT = 1.0  # seconds for a refused client to read the response
REQUEST_TIMEOUT = 300.0  # seconds for a request to arrive


class ClientDisconnected(Exception):
    """The client has closed the connection."""


class BodyTooLarge(Exception):
    """The body of a request exceeds MAX_BODY_BYTES."""


@dataclass(frozen=True)
class HttpRequest:
    """One HTTP request. Header names are in lower case; the path is without a query string."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class HttpConnection:
    """The connection to one client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.h11 = h11.Connection(h11.SERVER)
        self.idle = True  # no request is being received or answered

    async def receive(self) -> HttpRequest | None:
        """The next request; None when the client sends no more."""
        async with asyncio.timeout(REQUEST_TIMEOUT):
            head = await self._next_event()
            if not isinstance(head, h11.Request):
                return None
            self.idle = False
            headers = {name.decode().lower(): value.decode("latin-1") for name, value in head.headers}
            if self.h11.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            body = await self._receive_body(int(headers.get("content-length", 0)))
        path = head.target.decode("latin-1").partition("?")[0]
        return HttpRequest(head.method.decode(), path, headers, body)

    async def _receive_body(self, content_length: int) -> bytes:
        if content_length > MAX_BODY_BYTES:
            raise BodyTooLarge
        parts, size = [], 0
        while not isinstance(event := await self._next_event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise ClientDisconnected
            parts.append(bytes(event.data))
            size += len(event.data)
            if size > MAX_BODY_BYTES:
                raise BodyTooLarge
        return b"".join(parts)

    async def _next_event(self) -> Any:
        while (event := self.h11.next_event()) is h11.NEED_DATA:
            self.h11.receive_data(await self.reader.read(READ_SIZE))
        return event

    async def cancel_on_disconnect(self, work: Awaitable[T]) -> T:
        """Await some work, and cancel it with `ClientDisconnected` when the client disconnects first."""
        task, disconnect = asyncio.ensure_future(work), asyncio.ensure_future(self._wait_for_disconnect())
        try:
            await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientDisconnected
            return task.result()
        finally:
            for each in (task, disconnect):
                each.cancel()
            await asyncio.gather(task, disconnect, return_exceptions=True)

    async def _wait_for_disconnect(self) -> None:
        """Return when the client closes its side. Other data that arrives belongs to its next request."""
        size = 0
        while data := await self.reader.read(READ_SIZE):
            self.h11.receive_data(data)
            size += len(data)
            if size > MAX_BODY_BYTES:
                return
        self.h11.receive_data(b"")

    async def send_json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        """Send a JSON response."""
        body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        fields = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        await self._send(h11.Response(status_code=status, headers=list(fields.items())))
        await self._send(h11.Data(data=body))
        await self._send(h11.EndOfMessage())

    async def send_events(self, values: AsyncGenerator[Any, None]) -> None:
        """Send JSON values as server-sent events as they come. The response starts with the first value."""
        fields = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        async with aclosing(values):
            async for value in values:
                if not self.response_started:
                    await self._send(h11.Response(status_code=200, headers=list(fields.items())))
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
                await self._send(h11.Data(data=f"data: {text}\n\n".encode()))
        await self._send(h11.EndOfMessage())

    async def _send(self, event: Any) -> None:
        data = self.h11.send(event)
        if data:
            self.writer.write(data)
            await self.writer.drain()

    @property
    def response_started(self) -> bool:
        """Whether a response has been started."""
        return self.h11.our_state is not h11.SEND_RESPONSE

    def prepare_next(self) -> bool:
        """Prepare for another request. Returns whether there can be one."""
        if self.h11.our_state is h11.DONE and self.h11.their_state is h11.DONE:
            self.h11.start_next_cycle()
            self.idle = True
        return self.idle

    async def drain(self) -> None:
        """Read what the client still sends, for DRAIN_TIMEOUT seconds, or it may not read the response."""
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT):
                while await self.reader.read(READ_SIZE):
                    pass
        except TimeoutError:
            return

    async def close(self) -> None:
        """Close the connection."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            return  # the client closed it first
