"""The HTTP server for one student, compatible with OpenAI's API: connections, endpoints, API key and shutdown.

The engine's thread owns the network (`generation.batching`); this thread receives requests and passes each to a
`GenerationHandler`. To add an endpoint, add it to `ENDPOINTS`. Independent of recipes and runs.
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
from .handlers import GenerationHandler
from .http import MAX_BODY_BYTES, BodyTooLarge, ClientDisconnected, HttpConnection, HttpRequest
from .requests import (
    ApiError,
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
    parse_request,
    server_error,
)
from .responses import ChatCompletionFormat, CompletionFormat, ResponseFormat

SHUTDOWN_TIMEOUT = 5.0  # seconds for current responses to end after the server is told to stop
# The request class, the response format and the prefix of response ids of each endpoint.
ENDPOINTS: dict[str, tuple[type[GenerationRequest], type[ResponseFormat], str]] = {
    "/v1/completions": (CompletionRequest, CompletionFormat, "cmpl"),
    "/v1/chat/completions": (ChatCompletionRequest, ChatCompletionFormat, "chatcmpl"),
}


class StudentServer:
    """Serves one student under one or more model names, with an optional API key."""

    def __init__(self, student: Trained, names: Sequence[str], key: str | None = None) -> None:
        self.student, self.names, self.key = student, names, key
        self.engine = Engine(student.model, student.context, student.tokenizer.end_of_text)
        self.created = int(time.time())
        self.connections: dict[asyncio.Task[None], HttpConnection] = {}
        self.stopping = False

    async def handle_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until it disconnects."""
        connection, task = HttpConnection(reader, writer), asyncio.current_task()
        assert task is not None
        self.connections[task] = connection
        try:
            await self._handle_requests(connection)
        except (ClientDisconnected, ConnectionError, TimeoutError, asyncio.CancelledError):
            return  # the client has left, or the server is stopping
        finally:
            del self.connections[task]
            await connection.close()

    async def _handle_requests(self, connection: HttpConnection) -> None:
        try:
            while (request := await connection.receive()) is not None:
                await connection.cancel_on_disconnect(self._handle_request(request, connection))
                if self.stopping or not connection.prepare_next():
                    return
        except h11.RemoteProtocolError as error:
            await self._refuse_unread(
                connection, ApiError(error.error_status_hint, f"not a valid HTTP request: {error}")
            )
        except BodyTooLarge:
            limit = f"{MAX_BODY_BYTES >> 20} MiB"
            await self._refuse_unread(connection, ApiError(413, f"the body is larger than {limit}: split the request"))

    async def _refuse_unread(self, connection: HttpConnection, error: ApiError) -> None:
        """Refuse a request that has not been read to its end, and close the connection."""
        await connection.send_json(error.status, error.body, {"connection": "close"})
        await connection.drain()

    async def _handle_request(self, request: HttpRequest, connection: HttpConnection) -> None:
        try:
            self._check(request)
            if request.path not in ENDPOINTS:
                await connection.send_json(200, self._models(request))
                return
            handler = self._handler(request)
            if handler.request.stream:
                await connection.send_events(handler.stream())
            else:
                await connection.send_json(200, await handler.respond())
        except ApiError as error:
            await connection.send_json(error.status, error.body)
        except (ClientDisconnected, ConnectionError):
            raise
        except Exception as error:
            if connection.response_started:
                raise
            await connection.send_json(500, server_error(error).body)

    def _check(self, request: HttpRequest) -> None:
        """Check the API key, the path and the method."""
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.key and not hmac.compare_digest(key.encode("latin-1"), self.key.encode()):
            raise ApiError(401, "this server requires an API key: Authorization: Bearer KEY", code="invalid_api_key")
        models = request.path == "/v1/models" or request.path.startswith("/v1/models/")
        if not models and request.path not in ENDPOINTS:
            paths = ["/v1/models", *ENDPOINTS]
            raise ApiError(404, f"there is no {request.path}. {did_you_mean(request.path, paths)}")
        method = "GET" if models else "POST"
        if request.method != method:
            raise ApiError(405, f"{request.path} takes {method}, not {request.method}")

    def _handler(self, request: HttpRequest) -> GenerationHandler:
        request_class, format_class, prefix = ENDPOINTS[request.path]
        parsed = parse_request(request_class, request.body)
        model = self._check_model(parsed.model or self.names[0])
        head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        response_format = format_class(self.student.tokenizer.bytes_of)
        return GenerationHandler(parsed, response_format, self.student, self.engine, head)

    def _check_model(self, name: str) -> str:
        """The name, if it is a name of the served student."""
        if name not in self.names:
            message = f"there is no model {name!r}: this server serves {self.names[0]!r}"
            raise ApiError(404, message, "model", "model_not_found")
        return name

    def _models(self, request: HttpRequest) -> dict[str, Any]:
        """The list of models, or the model that the path names."""
        name = unquote(request.path.removeprefix("/v1/models").removeprefix("/"))
        model = {"object": "model", "created": self.created, "owned_by": "distillkit"}
        if name:
            return {"id": self._check_model(name), **model}
        return {"object": "list", "data": [{"id": self.names[0], **model}]}


async def serve_until(
    server: StudentServer, host: str, port: int, on_ready: Callable[[str], None], stop: asyncio.Event
) -> None:
    """Serve until the event is set, then let current responses end. `on_ready` receives the base URL."""
    try:
        listener = await asyncio.start_server(server.handle_connection, host, port)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}, port {port}: {error.strerror}", "Choose another --port.") from error
    server.engine.start()
    port = listener.sockets[0].getsockname()[1]
    on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/v1")
    try:
        await stop.wait()
        listener.close()
        await _close_connections(server)
    finally:
        server.engine.close()


async def _close_connections(server: StudentServer) -> None:
    """Close idle connections at once, and the others when their responses have ended or time is up."""
    server.stopping = True
    for task, connection in server.connections.items():
        if connection.idle:
            task.cancel()
    if server.connections:
        await asyncio.wait(server.connections, timeout=SHUTDOWN_TIMEOUT)
    remaining = list(server.connections)
    for task in remaining:
        task.cancel()
    await asyncio.gather(*remaining, return_exceptions=True)


def serve(server: StudentServer, host: str, port: int, on_ready: Callable[[str], None]) -> int:
    """Serve until SIGINT or SIGTERM, and return its number. A second signal stops the server at once."""
    received: list[int] = []

    async def until_signal() -> None:
        stop, loop, main_task = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()
        assert main_task is not None

        def on_signal(number: int) -> None:
            main_task.cancel() if received else stop.set()
            received.append(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal, number)
        await serve_until(server, host, port, on_ready, stop)

    with contextlib.suppress(asyncio.CancelledError):  # by a second signal
        asyncio.run(until_signal())
    return received[0]
