"""Why two requests have different keys: their key fields, compared. Reads the cache and calls no teacher."""

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

KeyFields = Mapping[str, Any]
MAX_SHOWN, BEFORE, AFTER = 48, 12, 28  # characters of a text: in all, and before and after the first difference
PROMPT = ("request.prompt", "request.messages")
MIN_PREFIX = 6  # characters of a key that may stand for it


def differences(one: KeyFields, other: KeyFields) -> list[dict[str, Any]]:
    """The fields in which two requests differ, sorted by name."""
    first, second = dict(flatten(one)), dict(flatten(other))
    names = sorted(first.keys() | second.keys())
    return [
        {"field": name, "one": first.get(name), "other": second.get(name)}
        for name in names
        if name not in first
        or name not in second
        or digest(first[name]) != digest(second[name])  # by digest: True is not 1
    ]


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of every leaf."""
    indexed = enumerate(value) if isinstance(value, list | tuple) else ()
    items = list(value.items() if isinstance(value, Mapping) else indexed)
    if not items:
        yield name, [] if value == () else value  # tuples are stored as lists
    for key, item in items:
        yield from flatten(item, f"{name}.{key}" if name else str(key))


def find_request(cache: DiskAnswerStore, spec: str) -> dict[str, Any]:
    """The key fields of a row of the cache, given by the start of its key, or of a JSON file."""
    if Path(spec).is_file():
        values, source = _parse_file(Path(spec)), spec
    else:
        source = _unique_key(cache, spec)
        values = cache.row(source)
    fields = values.get("asked", values) if isinstance(values, dict) else None
    if not isinstance(fields, dict) or "request" not in fields:
        raise UsageError(f"{source} contains no request", "It should be a row of the cache, or its `asked` object.")
    return fields


def _parse_file(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        values.keys()
    except DAMAGE as error:
        raise CorruptError(f"{file} cannot be read: {error}") from error
    return values  # type: ignore[no-any-return]


def _unique_key(cache: DiskAnswerStore, prefix: str) -> str:
    """The only key with a prefix."""
    found = cache.keys_with_prefix(prefix) if len(prefix) >= MIN_PREFIX else []
    if len(found) == 1:
        return found[0]
    hint = f"Give a key, at least {MIN_PREFIX} of its first characters, or a JSON file; or a single recipe."
    raise UsageError(f"{prefix!r} matches {len(found) or 'no'} row{'s' * (len(found) != 1)} of the cache", hint)


def compare_requests(cache: DiskAnswerStore, one: str, other: str) -> dict[str, Any]:
    """The keys and the differences of two requests."""
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
    """The requests that are not in the cache, and for each the most similar row that is."""
    every = key_fields_of(teacher, requests)
    wanted = {answer_key(fields): (request.id, fields) for request, fields in zip(requests, every, strict=True)}
    absent = {key: pair for key, pair in wanted.items() if key not in cache}
    rows = _CachedRequests(cache) if absent else None
    counts: Counter[str] = Counter()
    examples: list[dict[str, Any]] = []
    for key, (name, fields) in absent.items():
        nearest, differing = rows.nearest(fields) if rows else (None, [])
        counts.update(_field_group(difference["field"]) for difference in differing)
        if len(examples) < show:
            examples.append({"id": name, "key": key, "nearest": nearest, "differences": differing})
    return {
        "schema": 1,
        "requests": len(wanted),
        "cached": len(wanted) - len(absent),
        "missing": len(absent),
        "differ_in": dict(counts.most_common()),
        "examples": examples,
    }


def _field_group(name: str) -> str:
    """The name under which a field is counted: all parts of a prompt are counted as one."""
    return next((prompt for prompt in PROMPT if name.startswith(prompt)), name)


class _CachedRequests:
    """The key fields of all rows, to find the most similar: with the same prompt, or else one of each kind."""

    def __init__(self, cache: DiskAnswerStore) -> None:
        self.by_prompt: dict[str, list[tuple[str, KeyFields]]] = {}
        self.kinds: dict[str, tuple[str, KeyFields]] = {}
        for row in cache.rows():
            summary = summarise_row(row)
            fields = summary.values["asked"] if summary else {}
            if isinstance(fields.get("request"), dict):
                prompt, rest = _split_prompt(fields)
                self.by_prompt.setdefault(prompt, []).append((row.key, fields))
                self.kinds[rest] = (row.key, fields)

    def nearest(self, fields: KeyFields) -> tuple[str | None, list[dict[str, Any]]]:
        """The key of the row that differs in the fewest fields, and these differences."""
        candidates: Iterable[tuple[str, KeyFields]]
        candidates = self.by_prompt.get(_split_prompt(fields)[0]) or self.kinds.values()
        compared = [(key, differences(fields, other)) for key, other in candidates]
        return min(compared, key=lambda pair: len(pair[1]), default=(None, []))


def _split_prompt(fields: KeyFields) -> tuple[str, str]:
    """The prompt, and all other fields except the seed, which differs from prompt to prompt; each as JSON."""
    request = dict(fields["request"])
    prompt = {name: request.pop(name, None) for name in ("prompt", "messages")}
    request.pop("seed", None)
    return json.dumps(prompt, sort_keys=True), json.dumps({**fields, "request": request}, sort_keys=True)


# ------------------------------------------------------------------------------------------------- formatting


def format_differences(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One line for each difference. Of long texts the part around the first difference is shown."""
    width = max((len(row["field"]) for row in rows), default=0)
    for row in rows:
        one, other = _excerpts(row["one"], row["other"])
        yield f"{row['field']:<{width}}  {one}  |  {other}"


def _excerpts(one: Any, other: Any) -> tuple[str, str]:
    if not isinstance(one, str) or not isinstance(other, str) or max(len(one), len(other)) <= MAX_SHOWN:
        return _format(one), _format(other)
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = max(0, same - BEFORE)
    return _format(one[start : same + AFTER], start), _format(other[start : same + AFTER], start)


def _format(value: Any, start: int = 0) -> str:
    text = json.dumps(value, ensure_ascii=False)
    text = text if len(text) <= MAX_SHOWN + 12 else f"{text[: MAX_SHOWN + 9]}..."
    return f"{text} (from character {start})" if start else text
