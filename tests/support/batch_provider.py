"""A fake Batch API on the loopback interface: files, batches, their states and faults, over real sockets.

It is also a plugin: the teacher `batcher`, which asks it through the real SDK.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from distillkit import Answer, Request, Teacher, TeacherError, Usage, hookimpl

Fate = Callable[[str, dict[str, Any]], Any]


class Provider:
    """The provider's files and batches; `fate(custom_id, body)` decides each request: a status code or a word."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []  # the prompts of every request of every batch that was made
        self.alone: list[dict[str, Any]] = []  # what was asked in no batch: probes
        self.refuses: set[str] = set()  # parameters that the endpoint does not take
        self.looks = 1  # how often a batch is looked at until it has ended
        self.fate: Fate = lambda key, body: 200
        self.end = "completed"
        self.at_once = 1000  # batches that the provider takes in
        self.replies: dict[str, list[int]] = {}  # statuses to give instead, by "METHOD /path"
        self.hold: dict[str, tuple[threading.Event, threading.Event]] = {}  # reached, go on; by "METHOD /path after"
        self.words = ""  # of the faults that `replies` tells it to give
        self.echo = False  # whether it quotes the key that it was shown, wherever it says something
        self.heard = ""  # the key, as the last header had it
        self.lock = threading.RLock()

    # What the endpoints do.

    def upload(self, content: bytes) -> dict[str, Any]:
        name = f"file-{len(self.files) + 1}"
        self.files[name] = content
        return {
            "id": name,
            "object": "file",
            "bytes": len(content),
            "created_at": 1,
            "filename": "f",
            "purpose": "batch",
        }

    def make(self, values: dict[str, Any]) -> dict[str, Any]:
        lines = [json.loads(line) for line in self.files[values["input_file_id"]].splitlines()]
        assert all(line["url"] == values["endpoint"] and line["method"] == "POST" for line in lines)
        self.asked += [prompt_of(line["body"]) for line in lines]
        name = f"batch-{len(self.batches) + 1}"
        counts = {"total": len(lines), "completed": 0, "failed": 0}
        more = {"object": "batch", "created_at": 1, "status": "validating", "request_counts": counts, "looked": 0}
        self.batches[name] = {"id": name, **values, **more}
        return self.batches[name]

    def lines(self) -> list[dict[str, Any]]:
        """Every request of every batch, as uploaded."""
        files = [self.files[batch["input_file_id"]] for batch in self.batches.values()]
        return [json.loads(line) for content in files for line in content.splitlines()]

    def refusal(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """The error for a rejected request, in OpenAI's format."""
        found = sorted(self.refuses & body.keys())
        return {"error": {"message": f"Unsupported parameter: '{found[0]}'", "param": found[0]}} if found else None

    def look(self, name: str) -> dict[str, Any]:
        batch = self.batches[name]
        batch["looked"] += 1
        if batch["status"] == "validating" and self.running() >= self.at_once:
            full = {"code": "token_limit_exceeded", "message": "too many tokens are enqueued"}
            batch |= {"status": "failed", "errors": {"object": "list", "data": [full]}}
        if batch["status"] in ("failed", "completed"):
            return batch
        batch["status"] = "in_progress"
        if batch["looked"] >= self.looks:
            self.finish(batch)
        return batch

    def running(self) -> int:
        return sum(batch["status"] == "in_progress" for batch in self.batches.values())

    def finish(self, batch: dict[str, Any]) -> None:
        """Answer the requests that `fate` accepts, and list the others as errors."""
        batch["status"] = self.end
        if self.end == "failed":
            why = self.quoting({"code": "invalid", "message": "no such model to be had"})
            batch["errors"] = {"object": "list", "data": [why]}
            return
        good, bad = [], []
        for line in map(json.loads, self.files[batch["input_file_id"]].splitlines()):
            key, body = line["custom_id"], line["body"]
            fate = self.fate(key, body)
            if fate == "expired":
                bad.append({"custom_id": key, "response": None, "error": {"code": "batch_expired", "message": "late"}})
            elif fate == "forgotten":
                continue
            elif fate == 200:
                said = self.quoting(reply(body))
                good.append({"custom_id": key, "response": {"status_code": 200, "body": said}, "error": None})
            elif isinstance(fate, int):
                error = self.quoting({"error": {"message": f"no, {fate} to you"}})
                bad.append({"custom_id": key, "response": {"status_code": fate, "body": error}, "error": None})
            else:
                good.append(fate)
        for field, lines in (("output_file_id", good[::-1]), ("error_file_id", bad)):  # in no order
            if lines:
                content = "".join(json.dumps(line) + "\n" for line in lines).encode()
                batch[field] = self.upload(content)["id"]

    def quoting(self, said: dict[str, Any]) -> dict[str, Any]:
        """A response; a provider that quotes puts the API key into every text of it."""
        if not self.echo:
            return said
        quoted = json.loads(json.dumps(said).replace("to ", f"to {self.heard} "))
        return {**quoted, "model": self.heard, "metadata": {self.heard: [self.heard]}}


def prompt_of(body: dict[str, Any]) -> str:
    """The prompt: the content of the last message."""
    return str(body["messages"][-1]["content"] if "messages" in body else body["prompt"])


def reply(body: dict[str, Any]) -> dict[str, Any]:
    """The response to a request, in the format of its endpoint."""
    text, usage = f"to {prompt_of(body)}", {"prompt_tokens": 2, "completion_tokens": 3}
    if "messages" not in body:
        return {"text": text, "usage": usage}
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if body.get("logprobs"):
        alternatives = [_token(word, -1.0 - i) for i, word in enumerate(("other", text))][: body["top_logprobs"]]
        choice["logprobs"] = {"content": [_token(text, -0.5) | {"top_logprobs": alternatives}]}
    return {"model": body["model"], "choices": [choice], "usage": usage}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


class Handler(BaseHTTPRequestHandler):
    """The endpoints."""

    provider: Provider
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each answer waits 40 ms for an acknowledgement

    def do_POST(self) -> None:
        self.provider.heard = self.headers["authorization"]
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.where() == "/v1/files":
            boundary = self.headers["content-type"].partition("boundary=")[2].encode()
            parts = [part for part in body.split(b"--" + boundary) if b"filename=" in part]
            self.reply(lambda: self.provider.upload(parts[0].partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")))
        elif self.where() == "/v1/chat/completions":
            self.answer(json.loads(body))
        else:
            self.reply(lambda: self.provider.make(json.loads(body)))

    def answer(self, body: dict[str, Any]) -> None:
        """Answer one request alone."""
        self.provider.alone.append(body)
        if refusal := self.provider.refusal(body):
            self.send(400, json.dumps(self.provider.quoting(refusal)).encode())
        else:
            self.reply(lambda: self.provider.quoting(reply(body)))

    def do_GET(self) -> None:
        path, query = self.where(), self.path.partition("?")[2]
        if found := re.fullmatch(r"/v1/files/(.*)/content", path):
            self.reply(lambda: self.provider.files[found[1]])
        elif found := re.fullmatch(r"/v1/batches/(.*)", path):
            self.reply(lambda: self.provider.look(found[1]))
        else:
            self.reply(lambda: self.page(dict(pair.split("=") for pair in query.split("&") if pair)))

    def where(self) -> str:
        """The path, in one form for all providers."""
        return self.path.partition("?")[0].removeprefix("/openai")

    def page(self, query: dict[str, str]) -> dict[str, Any]:
        """Two batches a page, newest first."""
        names = list(self.provider.batches)[::-1]
        start = names.index(query["after"]) + 1 if "after" in query else 0
        data = [self.provider.batches[name] for name in names[start : start + 2]]
        return {"object": "list", "data": data, "has_more": start + 2 < len(names)}

    def reply(self, act: Callable[[], Any]) -> None:
        what = f"{self.command} {self.where()}"
        provider = self.provider
        with provider.lock:
            statuses = provider.replies.get(what, [])
            status = statuses.pop(0) if statuses else 200
            told = provider.words or f"told to say {status}"
            value = act() if status in (200, 599) else provider.quoting({"error": {"message": told}})
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
        if what in provider.hold:
            reached, go_on = provider.hold[what]
            reached.set()
            go_on.wait(30)
        if status == 599:  # done, but the answer is lost on the way
            self.close_connection = True
            return
        self.send(status, content)

    def send(self, status: int, content: bytes) -> None:
        with contextlib.suppress(OSError):  # the client was killed meanwhile
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *words: Any) -> None:
        """Log nothing."""


@contextlib.contextmanager
def serving() -> Iterator[tuple[Provider, str]]:
    """A provider, and its base URL."""
    provider = Provider()
    handler = type("Here", (Handler,), {"provider": provider})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield provider, f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


class Batcher(Teacher):
    """A teacher that uses the Batch API through the SDK."""

    name = "batcher"

    class Options(Teacher.Options):
        """The address and the client."""

        model: str = "m"
        base_url: str
        sdk: str = "openai"

    endpoint = "/v1/completions"

    def identity(self) -> Any:
        return {"model": self.options.model}

    def answer(self, request: Request) -> Answer:
        raise TeacherError("it was asked alone")

    def body(self, request: Request) -> dict[str, Any]:
        return {"model": self.options.model, "prompt": request.prompt, "max_tokens": request.max_tokens}

    def answer_of(self, body: dict[str, Any], request: Request) -> Answer:
        if "text" not in body:
            raise TeacherError("it is malformed")
        assert request.prompt
        return Answer(body["text"], usage=Usage(**body["usage"]), model=self.options.model)

    def client(self) -> Any:
        import groq
        import openai

        kinds: dict[str, Any] = {
            "openai": openai.OpenAI,
            "openai async": openai.AsyncOpenAI,
            "groq": groq.Groq,
            "groq async": groq.AsyncGroq,
        }
        url = self.options.base_url
        url = url.removesuffix("/v1") if self.options.sdk.startswith("groq") else url
        return kinds[self.options.sdk](base_url=url, api_key="none", max_retries=0, timeout=20)


def batcher(url: str, **options: Any) -> Batcher:
    """The teacher for a provider's URL."""
    return Batcher(Batcher.Options(base_url=url, **options))


@hookimpl
def register_teachers() -> list[type[Teacher]]:
    """The teacher as a plugin."""
    return [Batcher]
