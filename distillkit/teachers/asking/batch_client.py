"""A client of the Batch API, on top of the SDK client that a teacher provides: upload, submit, poll, download.

Calls are retried, except for the one that makes a batch. Knows files of requests, but not what is in them.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

from ...core.errors import TeacherError
from ..client import api_keys
from .batch_state import BatchRecord
from .retries import retry_batch_call

PERMANENT_STATUSES = (400, 401, 403, 404, 413, 422)  # a retry would get the same response
RETRYABLE_STATUSES = (408, 409, 429, 498, 500, 502, 503, 504)
CONNECTION_ERRORS = ("APIConnectionError", "APITimeoutError")  # class names, the same in the SDKs of all providers


class ClientFactory(Protocol):
    """The part of a teacher that creates the SDK's client."""

    @property
    def name(self) -> str:
        """The name of the teacher."""

    def client(self) -> Any:
        """A new SDK client, synchronous or asynchronous, without retries. The caller closes it."""


class BatchClient:
    """The batches of one teacher at its provider."""

    def __init__(self, teacher: ClientFactory) -> None:
        self.teacher = teacher
        self._runner: asyncio.Runner | None = None
        self._client: Any = None

    @property
    def client(self) -> Any:
        """The SDK client, created on first use."""
        if self._client is None:
            self._client = self.teacher.client()
        return self._client

    def upload(self, record: BatchRecord, lines: bytes) -> str:
        """Upload the file of requests, and return its id."""
        content = (f"distillkit-{record.id}.jsonl", lines)
        file = self._retry("upload requests", lambda: self.client.files.create(file=content, purpose="batch"))
        return str(file.id)

    def submit(self, record: BatchRecord) -> str:
        """Make a batch of an uploaded file, and return its id. After a rejection the record is reset to "new"."""
        try:
            batch = self._wait(
                self.client.batches.create(
                    input_file_id=record.file,
                    endpoint=record.endpoint,
                    completion_window="24h",
                    metadata={"distillkit": record.id},
                )
            )
        except Exception as error:  # noqa: BLE001 - errors of any SDK are reported without the key
            failure = self._failure("make a batch", error)
            failure.hint = "The same command continues; it first looks whether the batch was made all the same."
            if getattr(error, "status_code", None) in (*PERMANENT_STATUSES, 429):
                record.save(status="new", file=None)
                failure.hint = "No batch was made. The same command tries again."
            raise failure from None
        return str(batch.id)

    def find(self, record: BatchRecord) -> str | None:
        """The id of the batch that was made of the record's file, if there is one."""
        try:
            return next((str(batch.id) for batch in self._batches() if batch.input_file_id == record.file), None)
        except TeacherError as error:
            error.hint = (
                f"It is not known whether a batch was made of the file {record.file}. Try again; if that does not "
                f"help, look for it at the provider, and if there is none, delete {record.path}: it is requested again."
            )
            raise

    def _batches(self) -> Iterator[Any]:
        """All batches of the account, page by page."""
        page = self._retry("list batches", lambda: self.client.batches.list())
        while True:
            yield from page.data or ()
            if not getattr(page, "has_next_page", lambda: False)():
                return
            page = self._retry("list batches", page.get_next_page)

    def retrieve(self, record: BatchRecord) -> Any:
        """The provider's current state of a batch."""
        try:
            return self._retry("look at a batch", lambda: self.client.batches.retrieve(record.batch))
        except TeacherError as error:
            error.hint = f"If the provider no longer has the batch, delete {record.path}: it is requested again."
            raise

    def results(self, batch: Any) -> Iterator[dict[str, Any]]:
        """The result lines of a batch, from its file of answers and its file of errors."""
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            for number, line in enumerate(self._content(file).split(b"\n"), 1):
                if line.strip():
                    yield self._result(line, f"line {number} of {file}")

    def _result(self, line: bytes, where: str) -> dict[str, Any]:
        """One result line: `custom_id`, and a `response` or an `error`."""
        try:
            values = api_keys.parse_json(line.decode(), self._secret)
            if isinstance(values["custom_id"], str) and isinstance(values.get("response") or {}, dict):
                return cast(dict[str, Any], values)
            raise ValueError("it is not a result of a batch")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TeacherError(
                f"the results of a batch cannot be read: {where}: {error}", "The same command downloads them again."
            ) from error

    def _content(self, file: str) -> bytes:
        def download() -> Any:
            return self._wait(self.client.files.content(file)).read()

        return cast(bytes, self._retry("download answers", download))

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._wait(self._client.close())
        if self._runner is not None:
            self._runner.close()

    def _retry(self, action: str, call: Callable[[], Any]) -> Any:
        """The result of a call, which is repeated after temporary failures."""
        try:
            return retry_batch_call(lambda: self._wait(call()), _is_temporary)
        except Exception as error:  # noqa: BLE001 - errors of any SDK are reported without the key
            raise self._failure(action, error) from None

    def _failure(self, action: str, error: Exception) -> TeacherError:
        """A failure in the SDK's words, without its traceback and without the key: both may contain it."""
        message = self.redact(f"{type(error).__name__}: {error}")
        return TeacherError(f"the teacher {self.teacher.name!r} could not {action}: {message}")

    def redact(self, text: str) -> str:
        """A provider's text without the client's key."""
        return api_keys.redact(text, self._secret)

    @property
    def _secret(self) -> str | None:
        return getattr(self.client, "api_key", None)

    def _wait(self, value: Any) -> Any:
        """The value; an awaitable is awaited, on one loop for as long as the client's connections live."""
        if not inspect.isawaitable(value):
            return value
        if self._runner is None:
            self._runner = asyncio.Runner()

        async def await_value() -> Any:
            return await value

        return self._runner.run(await_value())


def _is_temporary(error: BaseException) -> bool:
    """Whether a retry may succeed."""
    status = getattr(error, "status_code", None)
    return status in RETRYABLE_STATUSES or (status is None and type(error).__name__ in CONNECTION_ERRORS)
