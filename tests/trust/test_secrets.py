"""Secrets: keys are in no file, message or page; a recipe that holds one is refused, and is told what to do instead."""

from __future__ import annotations

import base64
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import click
import pytest

from distillkit.cli.main import cli
from distillkit.core import secrets
from distillkit.core.errors import RecipeError
from distillkit.recipe.recipe import load
from distillkit.teachers.client import api_keys, replies
from support import batch_provider
from support.bad_input import TINY
from support.chat_provider import PROBE, Act, Call, Provider, serving
from support.limited_commands import Outcome, faults, outcomes
from support.trust_ledger import held

pytestmark = pytest.mark.trust

# Put together here, so that nobody takes this file for one that leaks.
KEYS = {
    "DISTILLKIT_API_KEY": "dk/" + "Zx81vB/" * 4 + "+end=",  # letters that JSON may escape
    "OPENAI_API_KEY": "sk" + "-proj-" + "Qw92rT" * 6,
    "GROQ_API_KEY": "gs" + "k_" + "Er73yU" * 6,
    "HF_TOKEN": "h" + "f_" + "TyUiOp" * 5,
    "DISTILLKIT_SERVE_KEY": "serve-" + "Bn55mK" * 5,
}
NOTE = "what else stands in dotenv is nobody's business, 7f3a91"
SHAPES = {
    "a Groq key": KEYS["GROQ_API_KEY"],
    "an OpenAI or Anthropic key": KEYS["OPENAI_API_KEY"],
    "a Hugging Face token": KEYS["HF_TOKEN"],
    "a Google key": "AI" + "za" + "Sy0a1b2c3d4" * 4,
    "an AWS key": "AK" + "IA" + "ABCDEFGHIJKLMNOP",
    "a GitHub token": "gh" + "p_" + "a1B2c3" * 6,
    "a Slack token": "xo" + "xb-" + "123456789012-abc",
    "a signed token": "ey" + "JhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3." + "SflKxwRJSMeKKF2QT4",
    "a private key": "-----BEGIN RSA PRIVATE " + "KEY-----",
    "a password in an address": "http://me:hunter22" + "@127.0.0.1/v1",
    "a key in an address": "http://127.0.0.1/v1?api_key=" + "hunter2222",
    "a key in a header": "Bearer " + "hunter2222hunter",
}


# ------------------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("where", ["teacher.model", "teacher.extra.user", "plugins", "data.note", "--set", "a key"])
def test_a_recipe_that_holds_a_key_is_refused_with_advice(kind: str, where: str, tmp_path: Path) -> None:
    secret, file = SHAPES[kind], tmp_path / "mine.toml"
    value = json.dumps(f"before {secret} after")
    lines = {
        "teacher.model": f'[teacher]\nprovider = "groq"\nmodel = {value}',
        "teacher.extra.user": f'[teacher]\nprovider = "groq"\nextra = {{user = {value}}}',
        "plugins": f"plugins = [{value}]",
        "data.note": f"[data]\nnote = {value}",
        "--set": "",
        "a key": f"[data]\n{value} = 1",
    }
    file.write_text(f'name = "mine"\n{lines[where]}\n')
    with pytest.raises(RecipeError) as refused:
        load(str(file), [f"data.note={value}"] if where == "--set" else [])
    assert f"contains what looks like {kind}" in refused.value.message
    assert "environment or from .env" in refused.value.hint
    assert "hunter2" not in str(refused.value)
    assert secret not in str(refused.value)
    held(
        "Secrets: a recipe that contains something like an API key is refused with advice", 1, 1, f"{len(SHAPES)} kinds"
    )


@pytest.mark.parametrize(
    "name", ["api_key", "apikey", "API-KEY", "password", "authorization", "x-api-key", "hf_token_access_token"]
)
def test_what_stands_under_the_name_of_a_key_is_one(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        f'name = "x"\n[teacher]\nprovider = "groq"\n[teacher.extra]\n"{name}" = ["EMPTY"]'
    )
    with pytest.raises(RecipeError, match="contains what looks like a key"):
        load(str(tmp_path / "mine.toml"))
    held("Secrets: any value under a name such as api_key is refused", 1, 1)


@pytest.mark.parametrize(
    "text",
    [
        "Basic understanding of bearer animals, task-oriented and risk-averse as they are.",
        "http://127.0.0.1:8000/v1",
        "http://[::1]:8000/v1",
        "openai/gpt-oss-20b",
        "a1b2c3d4" * 8,
        "The key to the password is: authorization.",
        "stories/*.txt",
        "s3://bucket/a@b:c",
    ],
)
def test_what_is_none_is_let_through(text: str, tmp_path: Path) -> None:
    assert secrets.find_secret(text) is None
    assert secrets.redact(text) == text
    words = 'words = {password = ["open", "sesame"]}\ntext = "Say {password}."'
    teacher = f'[teacher]\nprovider = "groq"\nmodel = {json.dumps(text)}\nprompts = 2\n[teacher.template]\n{words}'
    (tmp_path / "mine.toml").write_text(f'name = "x"\n{teacher}')
    assert load(str(tmp_path / "mine.toml")).teacher is not None


def test_a_line_that_is_quoted_is_quoted_without_its_key(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(f'name = "x"\nkey = {KEYS["OPENAI_API_KEY"]}\n')
    with pytest.raises(RecipeError, match=r"key = \[key\]") as refused:
        load(str(tmp_path / "mine.toml"))
    assert KEYS["OPENAI_API_KEY"] not in str(refused.value)


# ------------------------------------------------------------------------------------------------ what is said


@pytest.mark.parametrize("before", range(350, 402, 3))
def test_half_a_key_is_not_shown_either(before: int) -> None:
    key = KEYS["DISTILLKIT_API_KEY"]
    said = replies.error_message({"error": "x" * before + key}, "", lambda text: api_keys.redact(text, key))
    assert not any(key[:length] in said for length in range(8, len(key)))


@pytest.mark.parametrize("escape", ["/", "\\/", "\\u002f"])
def test_a_key_is_found_however_json_writes_it(escape: str) -> None:
    key = KEYS["DISTILLKIT_API_KEY"]
    written = key.replace("/", escape)
    text = '{"a": ["KEY", {"KEY": "b KEY c"}], "n": 1.5}'.replace("KEY", written)
    assert api_keys.parse_json(text, key) == {
        "a": [api_keys.REDACTED, {api_keys.REDACTED: f"b {api_keys.REDACTED} c"}],
        "n": 1.5,
    }
    assert api_keys.parse_json('{"a": "\\u00e9 \\/ b"}', key) == {"a": "é / b"}


def test_a_word_that_stands_for_a_key_stays_in_what_is_said() -> None:
    assert api_keys.redact("the box was EMPTY", "EMPTY") == "the box was EMPTY"
    assert api_keys.parse_json('{"a": "\\u0041 none"}', "none") == {"a": "A none"}


# ------------------------------------------------------------------------------------------------ every command


def forms(key: str) -> set[bytes]:
    """A key as it might be found again: any part of it that is long enough to know it by, and in other spellings."""
    pieces = {key[i : i + 12] for i in range(len(key) - 11)}
    whole = {quote(key, safe=""), key.replace("/", "\\/"), base64.b64encode(key.encode()).decode()[4:-4]}
    return {piece.encode() for piece in pieces | whole}


def leaks(content: bytes, wanted: dict[str, set[bytes]]) -> list[str]:
    """Whose key is in some bytes."""
    return [name for name, pieces in wanted.items() if any(piece in content for piece in pieces)]


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file under a folder, unpacked where it is packed; but for the one where the keys belong."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / ".env":
            content = path.read_bytes()
            yield path, gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


WIRED = """
extends = "tiny.toml"
name = "NAME"
[teacher]
provider = "compatible"
model = "m"
base_url = "URL"
prompts = 4
prompt_tokens = 4
max_tokens = 20
attempts = 1
"""
BATCHED = WIRED.replace("compatible", "openai").replace("attempts = 1\n", "")
PRICED = ("--set", "teacher.price={input=1.0, output=1.0}")


def echo(call: Call) -> Act:
    """An answer that quotes the header in every place, and writes it as JSON may."""
    told = call.headers["authorization"]
    if call.prompt == PROBE:
        return Act()
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": f"it is {told} indeed"}}
    body = {
        "id": told,
        "model": told,
        "choices": [choice],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
        told: [told],
    }
    plain = json.dumps(body)
    return Act(body=plain.replace("/", "\\/" if len(call.prompt) % 2 else "\\u002f").encode())


def faulty() -> list[Any]:
    """Refusals that quote the header, in all the ways in which a server may refuse."""

    def refusing(status: int, words: str, code: str | None = None) -> Any:
        def rule(call: Call) -> Act:
            message = words.replace("KEY", call.headers["authorization"])
            return Act(
                status, {"X-Echo": message[:200]}, json.dumps({"error": {"message": message, "code": code}}).encode()
            )

        return rule

    return [
        refusing(401, "Incorrect API key provided: KEY."),
        *(refusing(400, "x" * padding + " KEY") for padding in (375, 385, 392)),
        refusing(429, "no more for KEY", "insufficient_quota"),
        lambda call: Act(500, {"Content-Type": "text/html"}, f"<b>{call.headers}</b>".encode()),
        lambda call: Act(body=call.headers["authorization"].encode()),
        lambda call: Act(body=json.dumps([call.headers]).encode()),
        lambda call: Act(body=json.dumps({"choices": call.headers}).encode()),
        *(lambda call, to=to, status=status: redirected(call, to, status) for to, status in REDIRECTS),
    ]


REDIRECTS = [("/v1/chat/completions", 307), ("http://127.0.0.1:9/", 302), ("http://127.0.0.1:9/", 308), ("ftp:", 302)]


def redirected(call: Call, to: str, status: int) -> Act:
    """Elsewhere, with the key in the address: to itself, again and again, or where nobody is."""
    key = call.headers["authorization"].removeprefix("Bearer ")
    return Act(status, {"Location": f"{to}?key={key}&again={quote(key, safe='')}"}, key.encode())


class Echo(BaseHTTPRequestHandler):
    """A hub that takes nothing, and quotes the header wherever a refusal may say something."""

    def do_POST(self) -> None:
        told = self.headers["authorization"]
        body = json.dumps({"error": f"no: {told}", told: told}).encode()
        self.send_response(403, told)
        for name in ("X-Request-Id", "X-Error-Message", "X-Error-Code", "WWW-Authenticate"):
            self.send_header(name, told)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST  # noqa: N815 - as it is named there

    def log_message(self, *words: Any) -> None:
        """Nothing."""


@contextmanager
def hub() -> Iterator[str]:
    """Where it answers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def served(home: Path, environment: dict[str, str]) -> Outcome:
    """`serve`, asked with the key, with half of it and with none, and then ended."""
    words = ["serve", "wired", "--port", "0"]
    variables = {**os.environ, "DISTILLKIT_HOME": str(home), **environment}
    command = [sys.executable, "-m", "distillkit", *words]
    with subprocess.Popen(command, cwd=home, env=variables, text=True, stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        try:
            url = urlsplit(process.stdout.readline().split()[-1])
            key, statuses, said = KEYS["DISTILLKIT_SERVE_KEY"], [], ""
            for shown in (key, key[:-6], ""):
                connection = HTTPConnection(url.hostname or "", url.port or 0)
                body = json.dumps({"model": "wired", "prompt": "Once", "max_tokens": 2})
                connection.request("POST", f"{url.path}/completions", body, {"Authorization": f"Bearer {shown}"})
                reply = connection.getresponse()
                statuses.append(reply.status)
                said += f"{reply.headers}{reply.read().decode()}"
                connection.close()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert statuses == [200, 401, 401]
    assert process.returncode == 130, err
    return Outcome(words, 0, out + said, err)


def commands() -> list[list[str]]:
    """Every command that there is, in an order in which each finds what it needs."""
    return [
        ["run", "wired.toml", "--yes"],
        ["label", "batched.toml", "--batch", "--wait", "--yes", *PRICED],
        *(
            ["label", "wired", "--yes"],
            ["train", "wired"],
            ["judge", "wired", "--yes", "--samples", "2"],
            ["report", "wired"],
        ),
        *(["plan", "wired.toml", "--json"], ["runs", "--json"], ["bench", "wired", "--steps", "1"]),
        *(["doctor"], ["doctor", "--json"]),
        ["compare", "wired", "wired/1", "--html", "c.html", "--markdown", "c.md", "--csv", "compared"],
        ["generate", "wired", "--prompt", "Once", "--samples", "2", "--max-tokens", "3", "--to", "out.jsonl"],
        *(["export", "wired", "--format", "hf", "--to", "exported"], ["import", "exported", "--name", "back"]),
        *(["plugins"], ["plugins", "new", "mine", "--kind", "mixer"], ["init", "first"]),
        *(["recipe", "check", "wired.toml"], ["recipe", "show", "wired.toml"], ["recipe", "schema"]),
        *(["cache", "stats"], ["cache", "verify"], ["cache", "explain", "wired.toml"]),
        *(["cache", "export", "a.jsonl"], ["cache", "export", "a.jsonl.gz"], ["cache", "import", "a.jsonl.gz"]),
        *(["data", "tokenizers", "wired.toml", "--megabytes", "0.02"], ["--debug", "run", "wired.toml", "--yes"]),
        ["cache", "prune", "--provider", "compatible", "--yes"],
    ]


def every_command(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))
        else:
            yield (*path, name)


def homely(home: Path, provider: Provider, batches: str) -> dict[str, str]:
    """A home with recipes, one key in .env and the others in the environment, which is returned."""
    (home / "tmp").mkdir()
    (home / "tiny.toml").write_text(TINY)
    (home / "wired.toml").write_text(WIRED.replace("URL", provider.url).replace("NAME", "wired"))
    (home / "bad.toml").write_text(
        WIRED.replace("URL", provider.url).replace("NAME", "bad").replace("= 4\nm", "= 5\nm")
    )
    (home / "batched.toml").write_text(BATCHED.replace("URL", batches).replace("NAME", "batched"))
    bad = BATCHED.replace("URL", batches).replace("NAME", "bad-batch").replace("= 4\nm", "= 5\nm")
    (home / "bad-batch.toml").write_text(bad)
    (home / ".env").write_text(f"# {NOTE}\nexport DISTILLKIT_API_KEY='{KEYS['DISTILLKIT_API_KEY']}'\n")
    given = {name: key for name, key in KEYS.items() if name != "DISTILLKIT_API_KEY"}
    return {**given, "DISTILLKIT_API_KEY": "", "TMPDIR": str(home / "tmp"), "HOME": str(home)}


def refusals(home: Path, provider: Provider, batches: batch_provider.Provider, given: dict[str, str]) -> list[Outcome]:
    """Every way in which a provider, a batch, a hub or a recipe is refused, with the key in what is said."""
    found: list[Outcome] = []
    for rule in faulty():
        provider.rule = rule
        found += outcomes([["--debug", "run", "bad.toml", "--yes"]], home, **given)
    found += outcomes([["run", "bad.toml", "--yes"]], home, **given)
    batching = ["label", "bad-batch.toml", "--batch", "--wait", "--yes", *PRICED]
    batches.words = "it is to be refused"
    for what in ("POST /v1/files", "POST /v1/batches", "GET /v1/batches/batch-2"):
        batches.replies[what] = [401] * 5
        found += outcomes([["--debug", *batching]], home, **given)
        batches.replies.clear()
    batches.fate = lambda key, body: 400
    found += outcomes([batching], home, **given)
    batches.end = "failed"
    found += outcomes([["--debug", *batching, "--set", "teacher.max_tokens=21"]], home, **given)
    with hub() as url:
        push = ["export", "wired", "--format", "hf", "--to", "pushed", "--push", "me/tiny", "--yes"]
        found += outcomes([["--debug", *push]], home, **given, HF_ENDPOINT=url)
    return found


def in_addresses() -> list[list[str]]:
    """Commands whose recipe has a key in an address."""
    key = KEYS["DISTILLKIT_API_KEY"]
    urls = (f"http://127.0.0.1:9/v1?api_key={key}", f"http://me:{quote(key, safe='')}@127.0.0.1:9/v1")
    return [["run", "wired.toml", "--set", f"teacher.base_url={url}"] for url in urls]


WANTED = {name: forms(key) for name, key in KEYS.items()} | {".env": {NOTE.encode()}}


def scanned(home: Path) -> dict[str, list[str]]:
    """The files under a home that hold a key, and whose."""
    return {str(path): names for path, content in contents(home) if (names := leaks(content, WANTED))}


@pytest.mark.slow
def test_no_command_leaves_a_key_anywhere(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with serving() as provider, batch_provider.serving() as (batches, url):
        batches.echo, batches.looks = True, 2
        environment = homely(home, provider, url)
        provider.rule = echo
        sent = outcomes([["label", "batched.toml", "--batch", "--yes", *PRICED]], home, **environment)
        assert [one.code for one in sent] == [3], sent[0].err  # until it is collected, its parts lie there
        assert scanned(home) == {}
        done = [*outcomes(commands(), home, seconds=60, **environment), served(home, environment)]
        assert [(one.words, one.err) for one in done if one.code] == []
        refused = [*sent, *refusals(home, provider, batches, environment)]
        assert KEYS["OPENAI_API_KEY"] in batches.heard
        assert {one.code for one in refused} <= {1, 3}, [(one.words, one.err) for one in refused if one.code == 0]
        assert all(KEYS["DISTILLKIT_API_KEY"] in call.headers["authorization"] for call in provider.calls)
        addressed = outcomes(in_addresses(), home, **environment)
        assert {one.code for one in addressed} == {2}
        refused += addressed
    assert not faults(done + [one for one in refused if "--debug" not in one.words])
    asked = {path for path in every_command() if any(one.words[: len(path)] == list(path) for one in done)}
    assert set(every_command()) == asked
    found = scanned(home)
    said = {i: leaks((one.out + one.err).encode(), WANTED) for i, one in enumerate(done + refused)}
    assert found == {}
    leaking = [(done + refused)[i] for i, names in said.items() if names]
    assert leaking == []
    files = sum(1 for _ in contents(home))
    assert files > 100
    figure = f"{files} files of {len(said)} commands, secrets found 0"
    held(
        "Secrets: no API key, and nothing from .env, is in any file that any command writes",
        files,
        files - len(found),
        figure,
    )
    held("Secrets: no API key is in the output of any command, successful or not", len(said), len(said))


def test_the_scan_would_find_a_key(tmp_path: Path) -> None:
    wanted = {"K": forms(KEYS["OPENAI_API_KEY"])}
    key = KEYS["OPENAI_API_KEY"]
    (tmp_path / "a.gz").write_bytes(gzip.compress(f"... {key[5:25]} ...".encode()))
    (tmp_path / "b").write_bytes(base64.b64encode(key.encode()))
    (tmp_path / "c").write_text(key[:10])
    found = [path.name for path, content in contents(tmp_path) if leaks(content, wanted)]
    assert found == ["a.gz", "b"]
