"""A fake Hub on the loopback interface for the `datasets` library: a repository's files at each commit."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAME = "me/mine"


class Hub(ThreadingHTTPServer):
    """`commits` maps the hash of a commit to its files; the last one is the newest."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, dict[str, bytes]] = {}
        self.asked: list[tuple[str, str]] = []  # commit and path of what was fetched
        self.url = f"http://127.0.0.1:{self.server_port}"

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        """The commit of a revision."""
        commit = revision if revision in self.commits else list(self.commits)[-1]
        return commit, self.commits[commit]


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub that serves until the end of the block."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()


def _listed(files: dict[str, bytes], folder: str) -> list[dict[str, Any]]:
    """The files and folders directly in a folder."""
    under, rows = f"{folder}/" if folder else "", {}
    for path in (path for path in files if path.startswith(under)):
        top, deeper, _ = path[len(under) :].partition("/")
        kind = {"type": "directory", "size": 0} if deeper else {"type": "file", "size": len(files[path])}
        rows[top] = {**kind, "path": under + top, "oid": hashlib.sha1(files.get(path, b"")).hexdigest()}
    return list(rows.values())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each answer waits 40 ms for an acknowledgement
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(rf"/api/datasets/{NAME}(?:/revision/([^/]+))?", path):
            commit, files = self.server.at(match[1] or "")
            self._json({"id": NAME, "sha": commit, "siblings": [{"rfilename": file} for file in files], "tags": []})
        elif match := re.fullmatch(rf"/api/datasets/{NAME}/tree/([^/]+)/?(.*)", path):
            self._json(_listed(self.server.at(match[1])[1], match[2]))
        elif (match := re.fullmatch(rf"/datasets/{NAME}/resolve/([^/]+)/(.+)", path)) and self._has(match):
            self._file(*self.server.at(match[1]), match[2])
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET  # noqa: N815 - as the library calls it

    def _has(self, match: re.Match[str]) -> bool:
        return match[2] in self.server.at(match[1])[1]

    def _file(self, commit: str, files: dict[str, bytes], path: str) -> None:
        content = files[path]
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if self.command == "GET":
            self.server.asked.append((commit, path))
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self._send(206, content[first : last + 1], headers)
        else:
            self._send(200, content, headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
