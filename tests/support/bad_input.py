"""Invalid and hostile input: recipes, texts, answers, database rows, file headers."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import sqlite3
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distillkit.teachers.answers.disk import DiskAnswerStore
from support.small_recipe import small

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x1b]8;;http://evil.example\x1b\\here\x1b]8;;\x1b\\\x9b31m\x08\x08\r\x00"
MARKUP = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "</script><svg/onload=document.title='owned'><a href=javascript:document.title='owned'>x</a>"
    "</style><style>body{display:none}</style><iframe srcdoc=\"<script>parent.document.title='owned'</script>\">"
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'><base href=http://127.0.0.1:9/>"
    "<form action=http://127.0.0.1:9/><input autofocus onfocus=document.title='owned'></form>"
    "{{ 7 * 7 }} {% raw %} ${7*7} <!-- ]]> &lt;b&gt; &#x3c;script&#x3e;"
)
TURNED = "\u202egnp.exe \u2066hidden\u2069 \u200f\u061c"
HEBREW = "שלום עולם, היה היה פעם שועל קטן. " * 4
EMOJI = "👩‍🚀🦊🏳️‍🌈👨‍👩‍👧‍👦🇩🇪 "
HALF = "\ud83e"  # the first half of an emoji
FORMULA = '=HYPERLINK("http://evil.example","x")'

# ------------------------------------------------------------------------------------------------ recipes

TINY = small(
    "tiny",
    """
[train]
steps = 2
batch_size = 2
evaluate_every = 2
checkpoint_every = 2
[sampling]
count = 2
max_tokens = 8
""",
)

TAUGHT = f"""{TINY.replace('"tiny"', '"taught"')}
[teacher]
provider = "compatible"
model = "m"
base_url = "http://127.0.0.1:9/v1"
prompts = 3
prompt_tokens = 4
"""

VALUES = [
    *("true", "-1", "0", "1e400", "nan", "-inf", "1979-05-27T07:32:00Z", '""', '"\\u0000"', "[]", "[[[[[[1]]]]]]"),
    *("{}", "9223372036854775807", "9" * 400, "0x" + "f" * 100, f'"{"x" * 100_000}"', '"\\u001b[2J"', '"🦊\\n"'),
    *('"../../../../etc/passwd"', '"/dev/zero"', '"$(touch ran)"', '"; touch ran"', '"{0.__class__}"', '"%s%n"'),
]
KEYS = [
    *("name", "seed", "plugins", "extends", "data", "data.source", "data.stories", "data.path", "data.held_out"),
    *("data.block_chars", "data.documents", "data.tokens", "tokenizer", "tokenizer.kind", "tokenizer.vocab_size"),
    *("tokenizer.ranks", "tokenizer.model", "student", "student.arch", "student.layers", "student.heads"),
    *("student.width", "student.context", "student.from", "student.dropout", "teacher", "teacher.provider"),
    *("teacher.model", "teacher.prompts", "teacher.base_url", "teacher.max_tokens", "teacher.stop", "teacher.price"),
    *("teacher.template", "teacher.template.text", "teacher.template.words", "teacher.prompts_file", "teacher.extra"),
    *("mixer", "mixer.name", "mixer.alpha", "mixer.temperature", "train", "train.steps", "train.batch_size"),
    *("train.learning_rate", "train.betas", "train.schedule", "train.chunk", "train.precision", "sampling.count"),
    *("teacher.repeats", "teacher.concurrency", "teacher.timeout", "teacher.prompt_tokens", "teacher.top_logprobs"),
    *(
        "sampling.repeats",
        "sampling.max_tokens",
        "sampling.prompts",
        "sampling.temperature",
        "judge",
        "judge.0.name",
        "judge.0.teacher",
        "tracker",
        "stranger",
    ),
]


def base(key: str) -> str:
    """The recipe in which a key is valid: some keys need a teacher."""
    return "taught.toml" if key.partition(".")[0] in ("teacher", "mixer") else "tiny.toml"


def write_bases(home: Path) -> None:
    """The recipes whose keys the tests set."""
    (home / "tiny.toml").write_text(TINY)
    (home / "taught.toml").write_text(TAUGHT)


def recipes(home: Path) -> dict[str, bytes]:
    """Recipe files by name: not TOML, circular `extends`, far too large."""
    base = TINY.encode()
    return {
        "nothing": b"",
        "one byte": b"=",
        "a NUL": b"\0",
        "NULs": b"\0" * 10_000,
        "not UTF-8": b'name = "\xff\xfe"',
        "UTF-16": 'name = "x"'.encode("utf-16"),
        "10 MB of TOML": base + b"# and on it goes\n" * 600_000,
        "10 MB in one line": b'name = "' + b"x" * 10_000_000 + b'"',
        "deep lists": b"a = " + b"[" * 50_000,
        "deep tables": b"a." * 50_000 + b"a = 1",
        "deep inline tables": b"a = " + b"{a = " * 2_000,
        "many tables": b"".join(b"[t%d]\n" % i for i in range(15_000)),
        "many keys": b"".join(b"k%d = 1\n" % i for i in range(15_000)),
        "a table twice": base + b"[data]\n",
        "a key of emoji": base + '"🦊" = 1\n'.encode(),
        "a key of escapes": base + b'"\\u001b[2J" = 1\n',
        "a key that is empty": base + b'"" = 1\n',
        "a name of dots": base.replace(b'"tiny"', b'".."'),
        "a name with a path": base.replace(b'"tiny"', b'"../../tiny"'),
        "a name of escapes": base.replace(b'"tiny"', b'"\\u001b]0;owned\\u0007"'),
        "itself": b'extends = "itself.toml"\n',
        "extends a folder": f'extends = "{home}"\n'.encode(),
        "extends a device": b'extends = "/dev/zero"\n',
        "extends an escape": b'extends = "\\u001b[2J"\n',
        "extends 16 others": b'extends = "link 0.toml"\n',
        "a million stories": base.replace(b"stories = 60", b"stories = 99999999999"),
        "a vocabulary of billions": base.replace(b"vocab_size = 300", b"vocab_size = 99999999999"),
        "a student of petabytes": base.replace(b"width = 16", b"width = 20000").replace(b"layers = 1", b"layers = 200"),
        "a template of attributes": base + _template("{verb.__class__.__mro__}"),
        "a template of indices": base + _template("{0}{1[2]}{verb!r:>99999999}"),
        "a template that is cut": base + _template("{verb"),
        "words of nothing": base + _template("{verb}", "words = {verb = []}"),
        "words of a device": base + _template("{verb}", 'words = {verb = "/dev/full"}'),
        "a plugin of nobody": base.replace(b'name = "tiny"', b'name = "tiny"\nplugins = ["os; import os", "../x", ""]'),
    }


def _template(text: str, more: str = "") -> bytes:
    return f'[teacher]\nprovider = "groq"\nprompts = 3\n[teacher.template]\ntext = "{text}"\n{more}\n'.encode()


NAMES = ["with space.toml", "new\nline.toml", "🦊.toml", "\x1b[2J.toml", "a'b\"c.toml", "%n%s.toml", "é" * 60 + ".toml"]


def write_recipes(home: Path) -> list[str]:
    """Write all of them to a folder, and to unusual places; returns their names."""
    found = []
    for name, content in recipes(home).items():
        (home / f"{name}.toml").write_bytes(content)
        found.append(f"{name}.toml")
    for i in range(20):
        (home / f"link {i}.toml").write_text(f'extends = "link {i + 1}.toml"\n')
    for i in range(200):
        (home / f"long {i}.toml").write_text(f'extends = "long {i + 1}.toml"\n')
    (home / "circle a.toml").write_text('name = "a"\n[student]\nfrom = "circle b.toml"\n')
    (home / "circle b.toml").write_text('name = "b"\n[student]\nfrom = "circle a.toml"\n')
    (home / "its own.toml").write_text('name = "own"\n[student]\nfrom = "its own.toml"\n')
    outside = home.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "secret.toml").write_text("this is no recipe: it is a secret of somebody's\n")
    (home / "link out.toml").symlink_to(outside / "secret.toml")
    (home / "link to nothing.toml").symlink_to(outside / "gone.toml")
    (home / "link to itself.toml").symlink_to(home / "link to itself.toml")
    (home / "link to a folder.toml").symlink_to(outside)
    (home / "a folder.toml").mkdir()
    for name in NAMES:
        (home / name).write_text(TINY + "stpes = 1\n")
    links = ["link out.toml", "link to nothing.toml", "link to itself.toml", "link to a folder.toml", "a folder.toml"]
    return [*found, "link 0.toml", "long 0.toml", "circle a.toml", "its own.toml", *links, *NAMES]


# ------------------------------------------------------------------------------------------------ texts


def texts(megabytes: float) -> Iterator[tuple[str, bytes]]:
    """Text files; `size` is that of the large ones."""
    large = round(megabytes * 1_000_000)
    yield from {
        "empty": b"",
        "one byte": b"a",
        "one newline": b"\n",
        "spaces": b" " * 5000,
        "a NUL": b"once upon\0 a time",
        "NULs": b"\0" * 5000,
        "not UTF-8": b"once upon \xff\xfe a time",
        "half a character": "once upon a 🦊".encode()[:-1],
        "an encoded surrogate": b"once upon a \xed\xa0\xbd time",
        "too long an encoding": b"once upon a \xc0\xaf time",
        "UTF-16": HEBREW.encode("utf-16"),
        "a mark of bytes": b"\xef\xbb\xbf",
        "only emoji": (EMOJI * 300).encode(),
        "right to left": (HEBREW * 100).encode(),
        "turned around": (TURNED * 200).encode(),
        "escapes": (ESCAPES.replace("\x00", "") * 100).encode(),
        "markup": (MARKUP * 30).encode(),
        "marks without end": ("e" + "\u0301" * 5000 + " ").encode() * 3,
        "the end of text, written": b"<|endoftext|> once <|endoftext|><|endoftext|> upon " * 200,
    }.items()
    yield "a long line", b"once upon a time there was a small fox. " * (large // 40)
    yield "a long word", b"a" * large
    yield "a long word of many letters", bytes(97 + i * i % 23 for i in range(1000)) * (large // 1000)
    yield "a long space", b" " * (large // 2) + b"a" + b"\n" * (large // 2)
    yield "a long row of emoji", "🦊".encode() * (large // 4)


ROWS = {
    "no JSON": b"{nope}\n",
    "deep JSON": b"[" * 100_000 + b"\n",
    "another key": b'{"words": "a"}\n',
    "a number": b'{"text": 5}\n',
    "half an emoji": b'{"text": "a \\ud83e b"}\n' * 3,
    "a NUL": b'{"text": "a \\u0000 b"}\n' * 3,
    "a huge number": b'{"text": ' + b"9" * 10_000 + b"}\n",
    "a row that is cut": b'{"text": "once upon',
}

# ------------------------------------------------------------------------------------------------ answers

ANSWERS = {
    "a megabyte": "once upon a time " * 60_000,
    "a megabyte without a space": "x" * 1_000_000,
    "escapes": ESCAPES,
    "NULs": "\0" * 1000,
    "markup": MARKUP,
    "turned around": TURNED * 50,
    "half an emoji": f"a {HALF} b",
    "a formula": FORMULA,
    "the end of text": "<|endoftext|>" * 100,
    "only emoji": EMOJI * 100,
    "lines": "\n" * 10_000 + "x",
    "separators": "a\u2028b\u2029c\x85d\x0be\x0cf",
    "what looks like a row": '{"key": "x", "answer": {"text": "no"}}\n' * 3,
    "Markdown": "# a\n- b\n```\n![x](http://evil.example/a.png)\n| c | d |\n<b>e</b> [f](javascript:g)",
}

# ------------------------------------------------------------------------------------------------ code


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def bombs(ran: Path) -> list[bytes]:
    """The object in every pickle protocol."""
    return [pickle.dumps(Bomb(ran), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]


def plant(folder: Path, **columns: Any) -> None:
    """Insert a row into a cache's database directly."""
    names = ", ".join(columns)
    with contextlib.closing(sqlite3.connect(folder / "cache.db")) as rows, rows:
        rows.execute(f"INSERT INTO Cache ({names}) VALUES ({', '.join('?' * len(columns))})", [*columns.values()])


def mine(folder: Path, ran: Path, keys: list[str]) -> int:
    """Insert pickles into a cache wherever diskcache would read one; returns their number."""
    DiskAnswerStore(folder).__exit__()
    count = 0
    for number, bomb in enumerate(bombs(ran)):
        (folder / f"bomb{number}.val").write_bytes(bomb)
        for mode in (1, 2, 3, 4):  # raw, binary, text, pickle
            for where in ({"value": bomb}, {"value": bomb.decode("latin-1")}, {"filename": f"bomb{number}.val"}):
                key = keys[count] if count < len(keys) else f"planted {count}"
                plant(folder, key=key, raw=1, mode=mode, store_time=1.0, **where)
                count += 1
        plant(folder, key=bomb, raw=0, mode=1, value="{}", store_time=1.0, tag=bomb)
        count += 1
    return count


# Rows of the table from which diskcache sets any of its attributes and pragmas.
SETTINGS: dict[str | bytes, Any] = {
    "disk_qickle_protocol": 5,  # one bit beside a real one
    "sqlite_writable_schema": 1,
    "sqlite_cache_size = 1; ATTACH": "'/tmp/ran'",
    "_sql": "SELECT 1",
    "_directory": "../../../outside",
    "__class__": "os",
    "disk_fetch": "print",
    "": None,
    "\x1b[2J": 1,
    b"\xff": 1,
}


def preset(folder: Path, key: str | bytes, value: Any) -> None:
    """Insert a setting into a cache's database directly."""
    DiskAnswerStore(folder).__exit__()
    with contextlib.closing(sqlite3.connect(folder / "cache.db")) as rows, rows:
        rows.execute("INSERT OR REPLACE INTO Settings VALUES (?, ?)", (key, value))


def header(tensors: Any, data: bytes = b"\0" * 8, size: int | None = None, raw: bytes | None = None) -> bytes:
    """A .safetensors file with the given header."""
    text = json.dumps(tensors).encode() if raw is None else raw
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def one(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


HEADERS = {
    "nothing": b"",
    "seven bytes": b"\0" * 7,
    "a header beyond the file": header({}, size=2**40),
    "a header of all memory": header({}, size=2**63 - 1),
    "a header below nothing": header({}, size=2**64 - 1),
    "no JSON": header(None, raw=b"{nope"),
    "deep JSON": header(None, raw=b"[" * 1_000_000),
    "a list": header([]),
    "a number": header({"a": 5}),
    "an unknown type": header(one(dtype="PICKLE")),
    "a type that is a list": header(one(dtype=["F32"])),
    "a size that wraps around": header(one(shape=[65536] * 4, offsets=[0, 0])),
    "a dimension beyond 32 bits": header(one("U8", [2**32 + 8], [0, 8])),
    "a size below nothing": header(one(shape=[-2])),
    "a size of truth": header(one("U8", [True], [0, 1])),
    "a size of a half": header(one(shape=[1.5], offsets=[0, 4])),
    "a size in words": header(one(shape="2")),
    "too few bytes": header(one(), b"\0" * 4),
    "bytes beyond the file": header(one(offsets=[1000, 1008])),
    "bytes before the file": header(one(offsets=[-8, 0])),
    "bytes the wrong way round": header(one(offsets=[8, 0])),
    "one offset": header(one(offsets=[8])),
    "no offsets": header({"a": {"dtype": "F32", "shape": [2]}}),
    "a name twice": header(None, raw=b'{"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}, "a": 5}'),
    "a pickle": pickle.dumps({"a": [1.0]}),
    "a zip": b"PK\x03\x04 nothing",
    "other weights": header(one()),
}


def archives(ran: Path) -> dict[str, bytes]:
    """Files that end in .npz and do not contain weights."""
    found = {"nothing": b"", "text": b"once upon", "a pickle": pickle.dumps(Bomb(ran)), "a cut zip": b"PK\x03\x04"}
    for name, arrays in {
        "an object": {"token_embedding.weight": np.array([Bomb(ran)], dtype=object)},
        "a number": {"token_embedding.weight": np.array(5.0)},
        "words": {"token_embedding.weight": np.array(["a", "b"])},
        "a billion blocks": {"token_embedding.weight": np.zeros((4, 4)), "blocks.999999999999.ln1.weight": np.zeros(4)},
    }.items():
        stream = io.BytesIO()
        np.savez(stream, **arrays)
        found[name] = stream.getvalue()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as out:
        for member in ("../../ran", "/tmp/ran", "../outside/ran.npy", "token_embedding.weight.npy"):
            out.writestr(member, b"\x93NUMPY\x01\x00" + pickle.dumps(Bomb(ran)))
    return {**found, "members outside": stream.getvalue()}


CONFIGS: dict[str, Any] = {
    "no model": {},
    "a list": [],
    "another model": {"model_type": "evil", "auto_map": {"AutoModel": "evil.Evil"}},
    "words": {"model_type": "gpt2", "n_embd": "x", "n_head": "y", "n_layer": "z"},
    "nothing": {"model_type": "gpt2", "n_embd": 0, "n_head": 0, "n_layer": 0},
    "below nothing": {"model_type": "gpt2", "n_embd": -4, "n_head": -1, "n_layer": -1},
    "a billion layers": {"model_type": "gpt2", "n_embd": 4, "n_head": 1, "n_layer": 10**9},
    "a billion heads": {"model_type": "llama", "num_attention_heads": 10**9, "hidden_size": 4, "num_hidden_layers": 1},
    "half a configuration": {"model_type": "llama"},
    "no heads": {"model_type": "llama", "num_attention_heads": 0, "hidden_size": 4},
    "remote code": {"model_type": "nanogpt", "auto_map": {"AutoModelForCausalLM": "modeling.Evil"}},
}
