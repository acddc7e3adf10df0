"""The API server in a thread of the test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from distillkit.student.serving.server import StudentServer, serve_until


@contextmanager
def serving(service: StudentServer) -> Iterator[str]:
    """Run a service in a thread; yields its address."""
    there, urls, handles = threading.Event(), [], []

    def ready(url: str) -> None:
        urls.append(url)
        there.set()

    async def work() -> None:
        leave = asyncio.Event()
        handles.extend([asyncio.get_running_loop(), leave])
        await serve_until(service, "127.0.0.1", 0, ready, leave)

    thread = threading.Thread(target=lambda: asyncio.run(work()))
    thread.start()
    assert there.wait(20)
    try:
        yield urls[0]
    finally:
        handles[0].call_soon_threadsafe(handles[1].set)
        thread.join(20)
        assert not thread.is_alive()
