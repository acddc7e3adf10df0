"""The Batch API of providers, through the client that a teacher hands out: upload, make, look, fetch.

What may be asked for twice is tried again; making a batch is not. Knows files of requests, not what is in them.
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

HOPELESS = (400, 401, 403, 404, 413, 422)  # asking again gives the same
RETRIED = (408, 409, 429, 498, 500, 502, 503, 504)
UNREACHED = ("APIConnectionError", "APITimeoutError")  # as the SDKs of all providers call them


class Client(Protocol):
    """Who hands out a client."""

    @property
    def name(self) -> str:
        """The name of the teacher."""

    def client(self) -> Any:
        """A new client of the provider's SDK, plain or asynchronous, without retries; whoever asks for it closes it."""


class Provider:
    """The batches of one teacher at its provider."""

    def __init__(self, teacher: Client) -> None:
        self.teacher = teacher
        self._runner: asyncio.Runner | None = None
        self._client: Any = None

    @property
    def client(self) -> Any:
        """The client, made when it is first needed."""
        if self._client is None:
            self._client = self.teacher.client()
        return self._client

    def upload(self, part: BatchRecord, lines: bytes) -> str:
        """Hand over the file of requests; its id."""
        content = (f"distillkit-{part.id}.jsonl", lines)
        file = self._tried("upload requests", lambda: self.client.files.create(file=content, purpose="batch"))
        return str(file.id)

    def submit(self, part: BatchRecord) -> str:
        """Make a batch of an uploaded file; its id. A plain no is not a batch, and the next sitting begins anew."""
        try:
            batch = self._wait(
                self.client.batches.create(
                    input_file_id=part.file,
                    endpoint=part.endpoint,
                    completion_window="24h",
                    metadata={"distillkit": part.id},
                )
            )
        except Exception as error:  # noqa: BLE001 - whatever an SDK raises is said without the key
            failed = self._failed("make a batch", error)
            failed.hint = "The same command goes on from here; it first looks whether the batch was made all the same."
            if getattr(error, "status_code", None) in (*HOPELESS, 429):
                part.save(status="new", file=None)
                failed.hint = "No batch was made. The same command tries again."
            raise failed from None
        return str(batch.id)

    def find(self, part: BatchRecord) -> str | None:
        """The batch that was made of a part's file, if one was."""
        try:
            return next((str(one.id) for one in self._batches() if one.input_file_id == part.file), None)
        except TeacherError as error:
            error.hint = (
                f"So it is not known whether a batch was made of the file {part.file}. Try again; if that does not "
                f"help, look for it at the provider, and if there is none, delete {part.path}: it is asked again."
            )
            raise

    def _batches(self) -> Iterator[Any]:
        """All batches of the account, page by page where there are pages."""
        page = self._tried("list batches", lambda: self.client.batches.list())
        while True:
            yield from page.data or ()
            if not getattr(page, "has_next_page", lambda: False)():
                return
            page = self._tried("list batches", page.get_next_page)

    def look(self, part: BatchRecord) -> Any:
        """A batch as it stands at the provider."""
        try:
            return self._tried("look at a batch", lambda: self.client.batches.retrieve(part.batch))
        except TeacherError as error:
            error.hint = f"If the provider no longer has it, delete {part.path}: what it asked is asked again."
            raise

    def lines(self, batch: Any) -> Iterator[dict[str, Any]]:
        """What came of a batch: the lines of both of its files."""
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            for number, line in enumerate(self._content(file).split(b"\n"), 1):
                if line.strip():
                    yield self._line(line, f"line {number} of {file}")

    def _line(self, line: bytes, where: str) -> dict[str, Any]:
        """One line of a result file: whose it is, and what came of it."""
        try:
            values = api_keys.parse_json(line.decode(), self._secret)
            if isinstance(values["custom_id"], str) and isinstance(values.get("response") or {}, dict):
                return cast(dict[str, Any], values)
            raise ValueError("it is no line of a batch")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TeacherError(
                f"what came of a batch cannot be read: {where}: {error}", "The same command fetches it again."
            ) from error

    def _content(self, file: str) -> bytes:
        def fetch() -> Any:
            return self._wait(self.client.files.content(file)).read()

        return cast(bytes, self._tried("fetch answers", fetch))

    def close(self) -> None:
        """Close connections."""
        if self._client is not None:
            self._wait(self._client.close())
        if self._runner is not None:
            self._runner.close()

    def _tried(self, what: str, call: Callable[[], Any]) -> Any:
        """Call, and call again after what passes by."""
        try:
            return retry_batch_call(lambda: self._wait(call()), _passes)
        except Exception as error:  # noqa: BLE001 - whatever an SDK raises is said without the key
            raise self._failed(what, error) from None

    def _failed(self, what: str, error: Exception) -> TeacherError:
        """A failure in the SDK's words, without its traceback: both may quote the key."""
        told = self.hidden(f"{type(error).__name__}: {error}")
        return TeacherError(f"the teacher {self.teacher.name!r} could not {what}: {told}")

    def hidden(self, text: str) -> str:
        """What a provider said, without the key that its client holds."""
        return api_keys.redact(text, self._secret)

    @property
    def _secret(self) -> str | None:
        return getattr(self.client, "api_key", None)

    def _wait(self, value: Any) -> Any:
        """A value, or what an asynchronous client will give, on one loop for as long as its connections live."""
        if not inspect.isawaitable(value):
            return value
        if self._runner is None:
            self._runner = asyncio.Runner()

        async def waited() -> Any:
            return await value

        return self._runner.run(waited())


def _passes(error: BaseException) -> bool:
    """Whether a failure may be over in a moment."""
    status = getattr(error, "status_code", None)
    return status in RETRIED or (status is None and type(error).__name__ in UNREACHED)
