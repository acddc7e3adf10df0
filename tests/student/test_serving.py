"""A student behind an address, asked over real sockets by the clients that people have, and held against itself."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.student.generation.batching import Finished, GenerationTask, RunningBatch
from distillkit.student.generation.detokenizer import Detokenizer
from distillkit.student.generation.logprobs import ScoringQueue, ScoringTask, TokenLogprob, token_logprobs
from distillkit.student.generation.sampling import Sampling
from distillkit.student.model.gpt import GPT
from distillkit.student.serving.http import MAX_BODY_BYTES
from distillkit.student.serving.server import StudentServer
from distillkit.student.trained import Trained
from support.cli_process import TINY, distillkit
from support.serving import serving
from support.students import f64, log_softmax, random_array, small_model, tokenizer, with_cache, writer

BEGINNINGS = ["One day", "The hen", "They all", "a fox met", "Ünï", "", "kind, and the fox", "漢字 home. One day a fox"]

# ---------------------------------------------------------------------------------------------- rows come and go


def written(work: list[Any]) -> list[int]:
    return [event.token for event in work if isinstance(event, TokenLogprob)]


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_rows_that_join_and_leave_write_what_they_write_alone(data: st.DataObject) -> None:
    model, context, end = small_model(), 8, 22
    running, told, works = RunningBatch(model, context, end), [], []
    heats = [Sampling(0.0), Sampling(1.0), Sampling(1.3, top_k=5), Sampling(0.8, top_p=0.9, min_p=0.01)]
    for _ in range(data.draw(st.integers(1, 6))):
        new = []
        for _ in range(data.draw(st.integers(0, 3))):
            prompt = data.draw(st.lists(st.integers(0, 21), min_size=1, max_size=12))
            heat, most = data.draw(st.sampled_from(heats)), data.draw(st.integers(1, 16))
            told.append([])
            new.append(
                GenerationTask(prompt, len(told), heat, most, told[-1].append, data.draw(st.sampled_from([None, 3])))
            )
        works += new
        if new:
            running.admit(new)
        for _ in range(data.draw(st.integers(0, 6))):
            running.step()
    dropped = data.draw(st.lists(st.sampled_from(works), max_size=2)) if works else []
    for work in dropped:
        work.cancelled = True
    while running.rows:
        running.step()
    for work, heard in zip(works, told, strict=True):
        alone = with_cache(model, context, [work.prompt], [work.seed], work.sampling, work.max_tokens, end=end)[0]
        alone, ended = (alone[:-1], True) if end in alone else (alone, False)
        if work in dropped and not isinstance(heard[-1], Finished):
            assert written(heard) == alone[: len(heard)]
        else:
            assert written(heard) == alone
            assert heard[-1] == Finished("stop" if ended else "length")


def test_a_network_without_a_cache_is_served_too() -> None:
    class Plain:  # offers neither extend nor cache
        def __init__(self, model: GPT) -> None:
            self.head, self.model = model.head, model

        def __call__(self, tokens: mx.array) -> mx.array:
            return self.model(tokens)

    said: list[list[list[int]]] = []
    for model in (small_model(), Plain(small_model())):
        running, told = RunningBatch(model, 8, 22), [[] for _ in range(3)]  # type: ignore[arg-type, var-annotated]
        for row in range(3):
            running.admit([GenerationTask([row, 5], row, Sampling(0.7), 6, told[row].append)])
            running.step()
        while running.rows:
            running.step()
        said.append([written(row) for row in told])
    assert said[0] == said[1]


@pytest.mark.parametrize("most", [0, 1, 4, 50])
def test_alternatives_are_the_likeliest_by_float64(most: int) -> None:
    logits, tokens = random_array(1, 7, 40, scale=3.0), [3, 0, 39, 5, 5, 17, 2]
    for row, token, pick in zip(logits, tokens, token_logprobs(mx.array(logits), mx.array(tokens), most), strict=True):
        chances = log_softmax(row.astype(np.float64))
        best = np.argsort(-chances)[: min(most, 40)]
        assert pick.token == token
        assert pick.logprob == pytest.approx(chances[token], abs=1e-5)
        assert [name for name, _ in pick.top] == best.tolist()
        np.testing.assert_allclose([at for _, at in pick.top], chances[best], atol=1e-5)


def test_texts_that_are_read_together_are_judged_as_alone() -> None:
    student, told = writer(), []
    desk, rows = ScoringQueue(student.model, student.context), [[1], [5, 9], list(range(40)), [7] * 13]
    for row in rows:
        told.append([])
        desk.add(ScoringTask(row, 2, told[-1].extend))
    while desk.waiting:
        desk.step()
    for row, found in zip(rows, told, strict=True):
        assert [pick.token for pick in found] == row[1:]
    chances = log_softmax(f64(student.logits(mx.array([rows[1]])))[0])
    assert told[1][0].logprob == pytest.approx(chances[0, 9], abs=1e-4)


# ---------------------------------------------------------------------------------------------- tokens to words

LETTERS = st.text(st.sampled_from("ab Ü漢"), max_size=30)


@settings(max_examples=200, deadline=None)
@given(LETTERS, st.lists(st.text(st.sampled_from("ab Ü漢"), min_size=1, max_size=4), max_size=3), LETTERS)
def test_pieces_are_the_text_up_to_its_first_stop_word(text: str, stops: list[str], prompt: str) -> None:
    detokenizer, pieces, shown = Detokenizer(tokenizer(), stops), [], []
    detokenizer.echo([TokenLogprob(token) for token in prompt.encode()])  # the first 256 tokens are the bytes
    for byte in text.encode():
        detokenizer.add(TokenLogprob(byte))
        piece, placed = detokenizer.take()
        pieces.append(piece)
        shown += placed
    detokenizer.finish()
    piece, placed = detokenizer.take()
    begun = [text[:size] for size in range(len(text) + 1) if any(stop in text[:size] for stop in stops)]
    ends = [begun[0].find(stop) for stop in stops if stop in begun[0]] if begun else []  # the first that is complete
    assert "".join([*pieces, piece]) == detokenizer.text == prompt + text[: min(ends, default=len(text))]
    assert [*shown, *placed] == detokenizer.tokens
    told = b"".join(tokenizer().bytes_of(pick.token) for pick, _ in detokenizer.tokens)
    assert told.decode() == detokenizer.text
    assert detokenizer.stopped == bool(ends)


# ---------------------------------------------------------------------------------------------- the server


def client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def service() -> StudentServer:
    return StudentServer(writer(), ["writer/1", "writer"])


@pytest.fixture(scope="module")
def url(service: StudentServer) -> Iterator[str]:
    with serving(service) as found:
        yield found


@pytest.fixture
def ask(url: str) -> Iterator[Callable[..., Any]]:
    with client(url) as found:
        yield lambda **body: found.completions.create(model="writer", **body)


def student_says(prompt: str, seed: int, most: int, sampling: Sampling) -> str:
    return next(iter(writer().write([prompt], [seed], sampling, most))).text


def test_the_model_is_listed_and_found(url: str) -> None:
    with client(url) as found:
        assert [model.id for model in found.models.list()] == ["writer/1"]
        assert found.models.retrieve("writer/1").object == "model"
        with pytest.raises(openai.NotFoundError, match="writer/1"):
            found.models.retrieve("another")


@pytest.mark.parametrize("prompt", BEGINNINGS[:4])
def test_the_official_client_gets_what_the_student_writes(ask: Any, prompt: str) -> None:
    how = {"temperature": 0.8, "top_p": 0.9, "extra_body": {"top_k": 40, "min_p": 0.01}}
    answer = ask(prompt=prompt, seed=7, max_tokens=30, n=2, **how)
    sampling = Sampling(0.8, top_k=40, top_p=0.9, min_p=0.01)
    assert [choice.text for choice in answer.choices] == [student_says(prompt, 7 + i, 30, sampling) for i in (0, 1)]
    assert {choice.finish_reason for choice in answer.choices} <= {"stop", "length"}
    assert answer.usage.prompt_tokens == len(tokenizer().encode(prompt))
    assert answer.usage.completion_tokens <= 60


def test_a_chat_is_one_text(url: str) -> None:
    with client(url) as found:
        turns: Any = [{"role": "system", "content": "One day"}, {"role": "user", "content": "a fox"}]
        chat = found.chat.completions.create(model="writer", messages=turns, temperature=0, max_completion_tokens=12)
    assert chat.choices[0].message.content == student_says("One day\na fox", 0, 12, Sampling(0.0))


@pytest.mark.parametrize("stop", [None, "e", "he"])
def test_a_stream_says_what_the_whole_says(url: str, stop: str | None) -> None:
    body: Any = {"model": "writer", "messages": [{"role": "user", "content": "The fox"}], "seed": 3, "max_tokens": 60}
    body |= {"logprobs": True, "top_logprobs": 3, "stop": stop, "n": 2}
    with client(url) as found:
        whole = found.chat.completions.create(**body)
        parts = list(found.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    assert parts[-1].usage == whole.usage
    for i, choice in enumerate(whole.choices):
        own = [part.choices[0] for part in parts if part.choices and part.choices[0].index == i]
        assert "".join(part.delta.content or "" for part in own) == choice.message.content
        rows = [row for part in own if part.logprobs for row in part.logprobs.content or ()]
        assert [row.bytes for row in rows] == [row.bytes for row in choice.logprobs.content]
        assert own[-1].finish_reason == choice.finish_reason
        assert own[0].delta.role == "assistant"
        assert stop is None or stop not in choice.message.content


def test_stop_words_cut_the_text_and_its_tokens(ask: Any) -> None:
    whole = ask(prompt="One", temperature=0, max_tokens=20).choices[0].text
    stop = whole[5:8]
    cut = ask(prompt="One", temperature=0, max_tokens=20, stop=[stop, "never said"], logprobs=0).choices[0]
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"
    assert all(place < len(cut.text) for place in cut.logprobs.text_offset)


def test_log_probabilities_are_the_networks_own(url: str) -> None:
    body: Any = {"model": "writer", "messages": [{"role": "user", "content": "A"}], "max_tokens": 8, "seed": 1}
    with client(url) as found:
        chat = found.chat.completions.create(**body, temperature=1.5, logprobs=True, top_logprobs=4)
    words = tokenizer()
    ids = {words.bytes_of(token): token for token in range(words.vocab_size)}
    text = [words.end_of_text, *words.encode("A")]
    for row in chat.choices[0].logprobs.content:
        chances = log_softmax(f64(writer().logits(mx.array([text])))[0, -1])
        assert row.logprob == pytest.approx(chances[ids[bytes(row.bytes)]], abs=1e-4)
        best = [words.bytes_of(int(token)) for token in np.argsort(-chances)[:4]]
        assert [bytes(other.bytes) for other in row.top_logprobs] == best
        text.append(ids[bytes(row.bytes)])


@pytest.mark.parametrize("text", ["One day a fox met a hen.", "Ü", "The hen was kind, and the fox was not. 漢字" * 4])
def test_an_echo_scores_a_text_as_the_student_does(ask: Any, text: str) -> None:
    plain = ask(prompt=text, echo=True, logprobs=1, max_tokens=0).choices[0]
    assert plain.text == text
    (after,) = writer().score_after([""], [text])
    assert -sum(plain.logprobs.token_logprobs) == pytest.approx(after.nats, rel=1e-4)
    words = tokenizer()
    tokens = [words.end_of_text, *words.encode(text), words.end_of_text]
    whole = ask(prompt=[tokens, tokens], echo=True, logprobs=1, max_tokens=1).choices
    (scored,) = writer().score([text])
    for choice in whole:
        assert choice.logprobs.token_logprobs[0] is None
        assert choice.logprobs.top_logprobs[0] is None
        assert -sum(choice.logprobs.token_logprobs[1 : len(tokens)]) == pytest.approx(scored.nats, rel=1e-4)


def test_an_echo_is_streamed_too_and_needs_no_scores(ask: Any) -> None:
    whole = ask(prompt="The hen", echo=True, max_tokens=5, temperature=0).choices[0].text
    parts = ask(prompt="The hen", echo=True, max_tokens=5, temperature=0, stream=True)
    assert whole.startswith("The hen")
    assert "".join(part.choices[0].text for part in parts) == whole


def test_sixteen_clients_at_once_get_what_one_gets(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = [
        {"prompt": BEGINNINGS[i % 8], "temperature": 0, "max_tokens": 20 + 3 * i, "logprobs": 2} for i in range(16)
    ]
    alone = [ask(**body).choices[0] for body in bodies]
    steps: list[int] = []
    step = RunningBatch.step
    monkeypatch.setattr(RunningBatch, "step", lambda self: (steps.append(len(self.rows)), step(self))[1])
    with ThreadPoolExecutor(16) as pool:
        together = [answer.choices[0] for answer in pool.map(lambda body: ask(**body), bodies)]
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.logprobs.tokens for one in together] == [one.logprobs.tokens for one in alone]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.logprobs.token_logprobs, other.logprobs.token_logprobs, atol=1e-4)
    assert max(steps) > 4  # they were written together


def test_a_client_that_leaves_frees_its_rows(service: StudentServer, ask: Any) -> None:
    stream = ask(prompt="One", n=3, max_tokens=1_000_000, stream=True, extra_body={"min_p": 0.5})
    next(iter(stream))
    stream.close()
    patient = time.monotonic() + 20
    while service.engine.running.rows or service.engine.waiting:
        assert time.monotonic() < patient
        time.sleep(0.02)
    assert ask(prompt="One", max_tokens=3, temperature=0).choices[0].text


def test_a_fault_is_told_and_the_next_one_is_served(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise MemoryError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(RunningBatch, "step", broken)
        with pytest.raises(openai.InternalServerError, match="no room"):
            ask(prompt="One", max_tokens=3)
        with pytest.raises(openai.APIError, match="no room"):
            list(ask(prompt="One", max_tokens=3, stream=True))
    assert ask(prompt="One", max_tokens=3, temperature=0).choices[0].text


def test_a_key_is_asked_for_where_there_is_one() -> None:
    with serving(StudentServer(writer(), ["writer"], "sésame")) as url:
        for key in ("wrong", "none"):
            with client(url, key) as found, pytest.raises(openai.AuthenticationError, match="requires an API key"):
                found.models.list()
        line = HTTPConnection("127.0.0.1", int(url.split(":")[2].split("/")[0]))
        line.request("GET", "/v1/models", headers={"Authorization": "Bearer sésame".encode()})
        assert line.getresponse().status == 200


# ---------------------------------------------------------------------------------------------- bad requests


def post(url: str, body: bytes, path: str = "/v1/completions", method: str = "POST", **headers: str) -> tuple[int, Any]:
    line = HTTPConnection("127.0.0.1", port_of(url), timeout=20)
    line.request(method, path, body, headers)
    answer = line.getresponse()
    found = json.loads(answer.read())
    line.close()
    return answer.status, found


def port_of(url: str) -> int:
    return int(url.split(":")[2].split("/")[0])


CHAT = '"messages": [{"role": "user", "content": "One"}]'
BAD: dict[str, tuple[str, str | None, str]] = {
    "no JSON": ("{", None, "not JSON"),
    "no object": ("[]", None, "not a JSON object"),
    "an unknown key": ('{"temprature": 1}', "temprature", "Did you mean 'temperature'"),
    "heat below zero": ('{"temperature": -1}', "temperature", "temperature"),
    "a truth for a number": ('{"n": true}', "n", "integer"),
    "too many choices": ('{"n": 1000}', "n", "128"),
    "no share at all": ('{"top_p": 0}', "top_p", "greater than 0"),
    "a prompt that is none": ('{"prompt": {"a": 1}}', "prompt", "list of tokens"),
    "prompts of nothing": ('{"prompt": []}', "prompt", "list of tokens"),
    "a token that is none": ('{"prompt": [1, 300]}', "prompt", "no token 300"),
    "a stop word of nothing": ('{"stop": ""}', "stop", "empty"),
    "the best of many": ('{"best_of": 4}', None, "best_of"),
    "a penalty": ('{"presence_penalty": 1.0}', "presence_penalty", "less than or equal to 0"),
    "too many texts": (json.dumps({"prompt": ["One"] * 17, "n": 121, "max_tokens": 0}), None, "is 2,057"),
    "a prompt too many": (json.dumps({"prompt": ["One"] * 2049, "max_tokens": 0}), None, "at most 2,048 texts"),
    "a suffix": ('{"suffix": "end"}', "suffix", "at most 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_in_openais_shape(url: str, case: str) -> None:
    body, param, says = BAD[case]
    status, answer = post(url, body.encode())
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"] == param
    assert says in answer["error"]["message"]


@pytest.mark.parametrize(("count", "n"), [(2048, 1), (16, 128)])
def test_as_many_texts_as_one_request_gets_are_answered(url: str, count: int, n: int) -> None:
    status, answer = post(url, json.dumps({"prompt": ["One"] * count, "n": n, "max_tokens": 0}).encode())
    assert (status, len(answer["choices"])) == (200, 2048)


@pytest.mark.parametrize(
    "more",
    ['"tools": []', '"response_format": {"type": "json_object"}', '"top_logprobs": -1', '"messages": []'],
)
def test_a_chat_refuses_what_it_cannot_do(url: str, more: str) -> None:
    status, answer = post(url, f"{{{CHAT}, {more}}}".encode(), "/v1/chat/completions")
    assert (status, answer["error"]["param"]) == (400, json.loads(f"{{{more}}}").popitem()[0])


def test_paths_methods_and_models_that_are_not_there(url: str) -> None:
    assert post(url, b"{}", "/v1/embeddings")[0] == 404
    assert post(url, b"", "/v1/completions", "GET")[0] == 405
    status, answer = post(url, b'{"model": "gpt-4"}')
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


def test_a_body_that_is_too_large_is_refused_however_it_comes(url: str) -> None:
    assert post(url, b'"' + b"a" * MAX_BODY_BYTES + b'"')[0] == 413
    line = HTTPConnection("127.0.0.1", port_of(url), timeout=20)
    line.request("POST", "/v1/completions", iter([b"a" * (1 << 20)] * 9), encode_chunked=True)
    assert line.getresponse().status == 413
    line.close()


def test_what_is_not_http_is_told_so_and_others_are_served(url: str, ask: Any) -> None:
    for said in (b"hello\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\ncontent-length: x\r\nhost: a\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port_of(url)), timeout=20) as line:
            line.sendall(said)
            assert line.recv(100).startswith(b"HTTP/1.1 400")
    with socket.create_connection(("127.0.0.1", port_of(url)), timeout=20) as line:
        line.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 50\r\n\r\n{")  # and leaves
    assert ask(prompt="One", max_tokens=2).choices


# ---------------------------------------------------------------------------------------------- the program


HALF = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 50\r\nexpect: 100-continue\r\n\r\n{"

# What has begun may take all day: on a busy machine, too, only a second signal ends it.
PATIENT = """
from distillkit.cli.main import main
from distillkit.student.serving import server as serve
serve.SHUTDOWN_TIMEOUT = 86400
main()
"""


@contextmanager
def program(home: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`distillkit serve` and its address."""
    environment = {**os.environ, "DISTILLKIT_HOME": str(home)}
    environment.pop("DISTILLKIT_SERVE_KEY", None)
    command = [sys.executable, "-c", PATIENT, "serve", *words, "--port", "0"]
    with subprocess.Popen(command, cwd=home, env=environment, text=True, stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().split()[-1]
        finally:
            if process.poll() is None:
                process.kill()


def wait_until_closed(url: str) -> None:
    """Until nobody is let in any more."""
    patient = time.monotonic() + 60
    with suppress(ConnectionRefusedError):
        while time.monotonic() < patient:
            socket.create_connection(("127.0.0.1", port_of(url)), timeout=20).close()
            time.sleep(0.02)
        raise AssertionError("the server still lets clients in")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student, tiny/1."""
    home = tmp_path_factory.mktemp("served")
    (home / "tiny.toml").write_text(TINY)
    assert distillkit(home, "run", "tiny.toml").returncode == 0
    return home


PUPIL = """
extends = "tiny.toml"
name = "pupil"
[tokenizer]
kind = "tiny"
[mixer]
name = "alpha-temperature"
[teacher]
provider = "compatible"
api = "plain"
model = "tiny/1"
base_url = "{url}"
prompts = 3
prompt_tokens = 4
max_tokens = 6
top_logprobs = 5
"""


@pytest.mark.slow
def test_a_student_that_is_served_teaches_another_and_leaves_when_told(made: Path) -> None:
    with program(made, "tiny") as (process, url):
        (made / "pupil.toml").write_text(PUPIL.format(url=url))
        done = distillkit(made, "run", "pupil.toml", "--yes")
        assert done.returncode == 0, done.stderr
        report = json.loads((made / "reports/pupil/1/report.json").read_text())
        assert report["teacher"]["asked"] == 3
        with socket.create_connection(("127.0.0.1", port_of(url)), timeout=20) as line:
            line.sendall(HALF)
            assert line.recv(100).startswith(b"HTTP/1.1 100")  # the server waits for the other half
            process.send_signal(signal.SIGINT)
            wait_until_closed(url)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)  # at once, and not after the answer
            assert process.wait(60) == 130
            assert process.stderr is not None
            assert process.stderr.read().splitlines()[-1] == "interrupted"


def test_an_answer_ends_before_the_server_leaves(made: Path) -> None:
    with program(made, "tiny/1", "--host", "0.0.0.0") as (process, url), client(url) as found:
        stream = found.completions.create(model="tiny", prompt="One", max_tokens=300, stream=True)
        first = next(iter(stream))
        process.send_signal(signal.SIGTERM)
        *_, last = stream
        assert (first.choices[0].finish_reason, last.choices[0].finish_reason in ("stop", "length")) == (None, True)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert "can be reached from other machines" in process.stderr.read()


def test_a_port_that_is_taken_is_told(made: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = distillkit(made, "serve", "tiny", "--port", str(taken.getsockname()[1]))
    assert (done.returncode, "--port" in done.stderr) == (2, True)


# ---------------------------------------------------------------------------------------------- generate


def tiny_says(made: Path, prompt: str, seed: int, most: int, heat: float) -> str:
    student = Trained.load(made / "reports/tiny/1")
    return next(iter(student.write([prompt], [seed], Sampling(heat), most))).text


def test_a_file_of_prompts_makes_a_line_a_sample(made: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('"One day"\n{"prompt": "The hen"}\n')
    words = ("generate", "tiny", "--prompts", str(tmp_path / "prompts.jsonl"), "--max-tokens", "9", "--samples")
    misspelt = [*words[:1], "tinny", *words[2:]]
    assert distillkit(made, *misspelt, "2", "--to", str(tmp_path / "out.jsonl")).returncode == 2
    done = distillkit(made, *words, "2", "--to", str(tmp_path / "out.jsonl"))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["prompt"]) for row in rows] == [
        ("0#0", "One day"),
        ("0#1", "One day"),
        ("1#0", "The hen"),
        ("1#1", "The hen"),
    ]
    assert len({row["seed"] for row in rows}) == 4
    more = [json.loads(line) for line in distillkit(made, *words, "3").stdout.splitlines()]
    assert [row for row in more if not row["id"].endswith("#2")] == rows  # what was there stays
    for row in rows:
        assert tiny_says(made, row["prompt"], row["seed"], 9, 0.8) == row["completion"]
    assert distillkit(made, *words, "2", "--to", str(tmp_path / "out.jsonl")).returncode == 2


def test_samples_of_one_prompt_have_seeds_one_after_another(made: Path) -> None:
    words = ("generate", "tiny", "--prompt", "One", "--max-tokens", "4", "--samples", "2", "--seed", "5")
    assert [json.loads(line)["seed"] for line in distillkit(made, *words).stdout.splitlines()] == [5, 6]


def test_what_was_said_stays_until_it_is_forgotten(made: Path) -> None:
    words = ("generate", "tiny", "--interactive", "--max-tokens", "5", "--seed", "3")
    done = distillkit(made, *words, input="Tom\nSue\n\n/new\nTom\n")
    assert done.returncode == 0, done.stderr
    said = ["Tom" + tiny_says(made, "Tom", 3, 5, 0.8)]
    said.append("Sue" + tiny_says(made, f"{said[0]}\nSue", 4, 5, 0.8))
    said.append(tiny_says(made, f"{said[0]}\n{said[1]}", 5, 5, 0.8))
    said.append("Tom" + tiny_says(made, "Tom", 6, 5, 0.8))
    assert done.stdout.splitlines() == "\n".join(said).splitlines()


def test_ctrl_c_stops_the_answer_and_not_the_program(made: Path) -> None:
    command = [sys.executable, "-m", "distillkit", "generate", "tiny", "--interactive", "--max-tokens", "1000000"]
    environment = {**os.environ, "DISTILLKIT_HOME": str(made)}

    def heed() -> None:  # also where the tests themselves run in the background, whose children ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, cwd=made, env=environment, stdin=-1, stdout=-1, preexec_fn=heed) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for word in (b"Tom", b"Sue"):
            process.stdin.write(word + b"\n")
            process.stdin.flush()
            seen = b""
            while len(seen) < 60:
                assert select.select([process.stdout], [], [], 30)[0]
                seen += os.read(process.stdout.fileno(), 4096)
            assert word in seen
            process.send_signal(signal.SIGINT)
            while not re.search(rb" \.\.\.\n", seen):
                assert select.select([process.stdout], [], [], 30)[0]
                seen = seen[-8:] + os.read(process.stdout.fileno(), 4096)
        process.stdin.close()
        assert process.wait(60) == 0


def test_generate_wants_one_thing(made: Path) -> None:
    for words in ((), ("--prompt", "a", "--interactive"), ("--interactive", "--samples", "2")):
        assert distillkit(made, "generate", "tiny", *words).returncode == 2


# ---------------------------------------------------------------------------------------------- peers

TASK = """
task: endings
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{beginning}}}}"
doc_to_choice: endings
doc_to_target: right
target_delimiter: " "
metric_list:
  - metric: acc
"""
BOTH = ("the old dog ran home.", "dog the home old ran.")


def evaluated(home: Path, kind: str, model_args: str) -> tuple[float, list[list[float]]]:
    """EleutherAI's harness on the task of a folder: the accuracy, and the log-likelihood of each ending."""
    environment = {**os.environ, "HF_HOME": str(home / "hub"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "run",
        "--model",
        kind,
        "--model_args",
        model_args,
        "--tasks",
        "endings",
    ]
    command += ["--include_path", str(home / "task"), "--output_path", str(home / kind), "--log_samples"]
    command += ["--batch_size", "4", *(["--device", "cpu"] if kind == "hf" else [])]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (home / kind).rglob("results_*.json")
    (samples,) = (home / kind).rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    found = [[float(one[0]) for one in row["filtered_resps"]] for row in sorted(rows, key=lambda row: row["doc_id"])]
    return json.loads(results.read_text())["results"]["endings"]["acc,none"], found


@pytest.mark.slow
@pytest.mark.peer
def test_the_harness_scores_an_exported_student_and_the_served_one_alike(
    tmp_path: Path, peer: Callable[[str], ModuleType]
) -> None:
    for name in ("lm_eval", "transformers", "accelerate", "aiohttp", "tenacity"):
        peer(name)
    small = ("--set", "student.context=64", "--set", "train.steps=120", "--set", "train.batch_size=8")
    (tmp_path / "tiny.toml").write_text(TINY)
    assert distillkit(tmp_path, "run", "tiny.toml", *small).returncode == 0
    assert distillkit(tmp_path, "export", "tiny", "--format", "hf", "--to", "away").returncode == 0
    (tmp_path / "task").mkdir()
    file = tmp_path / "task" / "endings.jsonl"
    names = ("Tom", "Sue", "Peter", "Anna", "Ben", "Freya", "Henry", "Nora", "Adam", "Tara")
    docs = [
        {
            "beginning": f"One day {name} and {'then the hen and the fox and ' * (i % 3) * 4}",
            "endings": list(BOTH[:: 1 - 2 * (i % 2)]),
            "right": i % 2,
        }
        for i, name in enumerate(names)
    ]
    file.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "task" / "endings.yaml").write_text(TASK.format(file=file))
    exported = evaluated(tmp_path, "hf", f"pretrained={tmp_path}/away,dtype=float32")
    with program(tmp_path, "tiny") as (_, url):
        how = f"model=tiny,base_url={url}/completions,tokenizer_backend=huggingface,tokenizer={tmp_path}/away"
        served = evaluated(tmp_path, "local-completions", f"{how},max_length=66,num_concurrent=4")
    assert served[0] == exported[0]
    assert len(served[1]) == len(names)
    np.testing.assert_allclose(served[1], exported[1], rtol=1e-4, atol=1e-3)
