"""Runs of random students, and a fake Hub on the loopback interface, for tests of export and import."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from distillkit.core.run_folder import Run
from distillkit.data.tokenizer import GPT2_PATTERN, PUBLISHED, Tokenizer, build
from distillkit.student.interchange.importing import ImportedModel, create_imported_run
from distillkit.student.model.gpt import GPTConfig
from distillkit.student.trained import parameter_counts
from distillkit.student.training.optimizers import flatten
from support.paths import SHARED
from support.students import lively, tokenizer

RANKS = SHARED / "data" / "gpt2.tiktoken"
TINY = GPTConfig(vocab_size=300, layers=2, heads=4, width=32, hidden=128, context=80)


def run_with(shape: GPTConfig, name: str = "student", seed: int = 0, scale: float = 0.15, words: Any = None) -> Run:
    """A run of a student with random weights, in DISTILLKIT_HOME."""
    model = lively(shape, seed, scale)
    imported = {"from": "student.pt", "kind": "made by a test"}
    facts = {"imported": imported, "student": {"arch": "gpt", "parameters": parameter_counts(model)}}
    found = ImportedModel("test", shape, flatten(model.parameters()), tokenizer=words or tokenizer(), metadata=facts)
    return create_imported_run(found, name, {}, {"started": "2026-01-01T00:00:00Z"})


def gpt2_words() -> Tokenizer:
    """GPT-2's tokenizer if its ranks are available, or one with as many made-up tokens."""
    if RANKS.is_file():
        return build("gpt2", ranks=str(RANKS))
    letters = [bytes([byte]) for byte in range(256)]
    words = [*letters, *(one + other for one in letters for other in letters)][:50256]
    special = PUBLISHED["gpt2"].special
    return Tokenizer("bpe", GPT2_PATTERN, {word: i for i, word in enumerate(words)}, special)


@contextmanager
def hub() -> Iterator[tuple[str, dict[str, Any]]]:
    """An endpoint that accepts uploads as the Hub does, and the uploaded files."""
    given: dict[str, Any] = {"files": {}, "created": []}

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.answer(*self.reply(self.path.partition("?")[0], body))

        def do_GET(self) -> None:
            self.answer(404, {"error": "not here"})

        def reply(self, path: str, body: bytes) -> tuple[int, Any]:
            if self.headers.get("Authorization") != "Bearer hf_test":
                return 401, {"error": "Invalid username or password."}
            if path.endswith("/repos/create"):
                given["created"].append(json.loads(body))
                return 200, {"url": f"{address}/me/tiny", "name": "me/tiny"}
            if path.endswith("/validate-yaml"):
                given["card"] = json.loads(body)["content"]
                return 200, {"errors": [], "warnings": []}
            if "/preupload/" in path:
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                return 200, {"files": files}
            if "/commit/" in path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        given["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                return 200, {"commitUrl": f"{address}/me/tiny/commit/abc", "commitOid": "abc", "success": True}
            return 404, {"error": path}

        def answer(self, status: int, value: Any) -> None:
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield address, given
    finally:
        server.shutdown()
        server.server_close()
