"""Why two requests have different keys: what was asked, field by field. Reads the cache, and asks nobody."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import CorruptError, UsageError
from ...core.files import digest
from ...core.records import Request
from ...plugins.interfaces import Teacher
from ..asking.label import key_fields_of
from .disk import DAMAGE, DiskAnswerStore, answer_key
from .maintenance import summarise_row

Asked = Mapping[str, Any]
SHORT, BEFORE, AFTER = 48, 12, 28  # characters shown of a text: in all, and around where it differs
PROMPT = ("request.prompt", "request.messages")
FEWEST = 6  # characters of a key that name it


def differences(one: Asked, other: Asked) -> list[dict[str, Any]]:
    """The fields in which two requests differ, in the order of their names."""
    first, second = dict(flatten(one)), dict(flatten(other))
    names = sorted(first.keys() | second.keys())
    return [
        {"field": name, "one": first.get(name), "other": second.get(name)}
        for name in names
        if name not in first or name not in second or digest(first[name]) != digest(second[name])  # True is not 1
    ]


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value inside, under its dotted name."""
    named = enumerate(value) if isinstance(value, list | tuple) else ()
    inner = list(value.items() if isinstance(value, Mapping) else named)
    if not inner:
        yield name, [] if value == () else value  # a tuple is kept as a list
    for key, item in inner:
        yield from flatten(item, f"{name}.{key}" if name else str(key))


def find_request(cache: DiskAnswerStore, spec: str) -> dict[str, Any]:
    """What was asked: of a row, by the beginning of its key, or in a JSON file."""
    if Path(spec).is_file():
        values, where = _parsed(Path(spec)), spec
    else:
        where = _only(cache, spec)
        values = cache.row(where)
    what = values.get("asked", values) if isinstance(values, dict) else None
    if not isinstance(what, dict) or "request" not in what:
        raise UsageError(f"{where} does not say what was asked", "It should be a row of the cache, or its `asked`.")
    return what


def _parsed(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        values.keys()
    except DAMAGE as error:
        raise CorruptError(f"{file} cannot be read: {error}") from error
    return values  # type: ignore[no-any-return]


def _only(cache: DiskAnswerStore, prefix: str) -> str:
    """The one key that begins so."""
    found = cache.keys_with_prefix(prefix) if len(prefix) >= FEWEST else []
    if len(found) == 1:
        return found[0]
    hint = f"A key, its first {FEWEST} characters or more, or a JSON file; or one recipe alone."
    raise UsageError(f"{prefix!r} names {len(found) or 'no'} row{'s' * (len(found) != 1)} of the cache", hint)


def compare_requests(cache: DiskAnswerStore, one: str, other: str) -> dict[str, Any]:
    """Two requests side by side."""
    first, second = find_request(cache, one), find_request(cache, other)
    return {
        "schema": 1,
        "one": {"what": one, "key": answer_key(first)},
        "other": {"what": other, "key": answer_key(second)},
        "differences": differences(first, second),
    }


def explain_missing(
    cache: DiskAnswerStore, teacher: Teacher, requests: Sequence[Request], show: int = 5
) -> dict[str, Any]:
    """Which requests are not in the cache, and for each the nearest row that is."""
    whats = key_fields_of(teacher, requests)
    wanted = {answer_key(what): (request.id, what) for request, what in zip(requests, whats, strict=True)}
    absent = {key: pair for key, pair in wanted.items() if key not in cache}
    rows = _Rows(cache) if absent else None
    counted: Counter[str] = Counter()
    shown: list[dict[str, Any]] = []
    for key, (name, what) in absent.items():
        nearest, differ = rows.nearest(what) if rows else (None, [])
        counted.update(_group(difference["field"]) for difference in differ)
        if len(shown) < show:
            shown.append({"id": name, "key": key, "nearest": nearest, "differences": differ})
    return {
        "schema": 1,
        "requests": len(wanted),
        "cached": len(wanted) - len(absent),
        "missing": len(absent),
        "differ_in": dict(counted.most_common()),
        "examples": shown,
    }


def _group(name: str) -> str:
    """A field as it is counted: all parts of a prompt are one."""
    return next((whole for whole in PROMPT if name.startswith(whole)), name)


class _Rows:
    """What was asked by all rows, to find the nearest: the same prompt first, else whatever else was asked alike."""

    def __init__(self, cache: DiskAnswerStore) -> None:
        self.by_prompt: dict[str, list[tuple[str, Asked]]] = {}
        self.kinds: dict[str, tuple[str, Asked]] = {}
        for row in cache.rows():
            said = summarise_row(row)
            what = said.values["asked"] if said else {}
            if isinstance(what.get("request"), dict):
                prompt, rest = _cut(what)
                self.by_prompt.setdefault(prompt, []).append((row.key, what))
                self.kinds[rest] = (row.key, what)

    def nearest(self, what: Asked) -> tuple[str | None, list[dict[str, Any]]]:
        """The key of the row that differs in the fewest fields, and these fields."""
        candidates: Iterable[tuple[str, Asked]] = self.by_prompt.get(_cut(what)[0]) or self.kinds.values()
        compared = [(key, differences(what, other)) for key, other in candidates]
        return min(compared, key=lambda one: len(one[1]), default=(None, []))


def _cut(what: Asked) -> tuple[str, str]:
    """The prompt, and all else but the seed, which differs from prompt to prompt."""
    request = dict(what["request"])
    prompt = {name: request.pop(name, None) for name in ("prompt", "messages")}
    request.pop("seed", None)
    return json.dumps(prompt, sort_keys=True), json.dumps({**what, "request": request}, sort_keys=True)


# ------------------------------------------------------------------------------------------------- for readers


def format_differences(differ: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Differences for a reader; long texts are shown where they part."""
    width = max((len(row["field"]) for row in differ), default=0)
    for row in differ:
        one, other = _around(row["one"], row["other"])
        yield f"{row['field']:<{width}}  {one}  |  {other}"


def _around(one: Any, other: Any) -> tuple[str, str]:
    if not isinstance(one, str) or not isinstance(other, str) or max(len(one), len(other)) <= SHORT:
        return _shown(one), _shown(other)
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    begin = max(0, same - BEFORE)
    return _shown(one[begin : same + AFTER], begin), _shown(other[begin : same + AFTER], begin)


def _shown(value: Any, begin: int = 0) -> str:
    text = json.dumps(value, ensure_ascii=False)
    text = text if len(text) <= SHORT + 12 else f"{text[: SHORT + 9]}..."
    return f"{text} (from character {begin})" if begin else text
