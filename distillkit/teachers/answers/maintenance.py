"""The cache looked after: what it holds, whether it is sound, and what may go. Asks nobody, and shows nothing."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ...core.errors import CorruptError, UsageError
from ...core.packing import is_packed, unpack_columns
from ...core.records import REFUSED, Answer, Usage
from .disk import DAMAGE, DiskAnswerStore, StoredRow, answer_key, parse_row

LATEST = datetime(9999, 12, 31, tzinfo=UTC).timestamp()  # there are no later dates
SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


# ------------------------------------------------------------------------------------------------- one row


def validate_row(key: str, text: str | None) -> dict[str, Any]:
    """What is stored under a key, held against all that it must be; a CorruptError says what is wrong."""
    if text is None:
        raise CorruptError("it is not text, and was not read")
    try:
        values = parse_row(text)
        _held(key, values)
    except DAMAGE as error:
        raise CorruptError(f"{type(error).__name__}: {error}") from error
    return values  # type: ignore[no-any-return]


def _held(key: str, values: dict[str, Any]) -> None:
    """Go through a row. What it is made of may be wrong in more ways than one would list."""
    _moment(values)
    if "answer" in values:
        answer = Answer.from_json(values["answer"])
        if not isinstance(answer.text, str):
            raise TypeError("its text is none")
        _bill(values["answer"])
        if is_packed(tokens := values["answer"]["tokens"]):
            unpack_columns(tokens)
    if (belongs := answer_key(values["asked"])) != key:
        raise ValueError(f"what was asked belongs to another key, {belongs[:12]}")


def _moment(values: dict[str, Any]) -> float:
    """When a row was written, if that has a date."""
    if not 0 <= values["time"] <= LATEST:
        raise ValueError("its time is none")
    return float(values["time"])


def _bill(answer: dict[str, Any]) -> Usage:
    """What an answer cost, nothing where that is not known, if it can be counted."""
    counts = [(answer.get("usage") or {}).get(f"{kind}_tokens", 0) for kind in ("prompt", "completion")]
    if any(count != int(count) or count < 0 for count in counts):
        raise ValueError(f"it cost {counts[0]!r} and {counts[1]!r} tokens")
    return Usage(int(counts[0]), int(counts[1]))


@dataclass(frozen=True)
class RowSummary:
    """What a row says of itself, its tokens not looked at."""

    provider: str
    models: tuple[str, ...]  # the one that was asked for, then the one that answered
    kind: str  # answer, refused or other
    values: dict[str, Any]
    bill: Usage
    time: float

    @property
    def model(self) -> str:
        """The name that a person knows it by."""
        return self.models[0] if self.models else ""


def summarise_row(row: StoredRow) -> RowSummary | None:
    """What a row says of itself, or None when it cannot be read."""
    try:
        values = json.loads(row.text or "")
        asked = values["asked"]
        identity = asked.get("identity")
        wanted = identity.get("model") if isinstance(identity, dict) else None
        answer = values.get("answer") or {}
        models = tuple(dict.fromkeys(name for name in (wanted, answer.get("model")) if isinstance(name, str)))
        kind = "answer" if "answer" in values and "request" in asked else "other"  # such as what an endpoint can do
        kind = "refused" if answer.get("finish") == REFUSED else kind
        return RowSummary(str(asked.get("provider", "")), models, kind, values, _bill(answer), _moment(values))
    except DAMAGE:
        return None


# ------------------------------------------------------------------------------------------------- stats


@dataclass
class SourceTotals:
    """The rows of one provider and model, counted."""

    answers: int = 0
    refused: int = 0
    other: int = 0
    truncated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    bytes: int = 0
    times: list[float] = field(default_factory=list)

    def add(self, row: StoredRow, summary: RowSummary) -> None:
        """Count one more."""
        answer = summary.values.get("answer") or {}
        self.answers += summary.kind == "answer"
        self.refused += summary.kind == "refused"
        self.other += summary.kind == "other"
        self.truncated += answer.get("finish") == "length"
        self.prompt_tokens += summary.bill.prompt_tokens
        self.completion_tokens += summary.bill.completion_tokens
        self.bytes += row.bytes
        ends = [*self.times, summary.time]
        self.times = [min(ends), max(ends)]

    def to_json(self) -> dict[str, Any]:
        """The figures, the times as dates."""
        values = {name: value for name, value in vars(self).items() if name != "times"}
        oldest, newest = (_date(moment) for moment in self.times) if self.times else (None, None)
        return {**values, "oldest": oldest, "newest": newest}


def stats(cache: DiskAnswerStore) -> dict[str, Any]:
    """What a cache holds, by provider and model."""
    sums: dict[tuple[str, str], SourceTotals] = {}
    damaged = 0
    for row in cache.rows():
        if (said := summarise_row(row)) is None:
            damaged += 1
        else:
            sums.setdefault((said.provider, said.model), SourceTotals()).add(row, said)
    by = [{"provider": provider, "model": model, **sums[provider, model].to_json()} for provider, model in sorted(sums)]
    counted = ("answers", "refused", "other", "truncated", "prompt_tokens", "completion_tokens", "bytes")
    total = {name: sum(row[name] for row in by) for name in counted}
    return {"schema": 1, "folder": str(cache.folder), **total, "damaged": damaged, "by": by}


def _date(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# ------------------------------------------------------------------------------------------------- verify


def verify(cache: DiskAnswerStore, repair: bool = False) -> dict[str, Any]:
    """Hold every row against what it must be; those that are not are named, and dropped if asked to."""
    bad: list[tuple[StoredRow, str]] = []
    seen = 0
    for row in cache.rows():
        seen += 1
        try:
            validate_row(row.key, row.text)
        except CorruptError as error:
            bad.append((row.without_text(), error.message))
    dropped = cache.drop(row for row, _ in bad) if repair and bad else 0
    named = [{"row": row.number, "key": row.key, "fault": fault} for row, fault in bad]
    return {"schema": 1, "folder": str(cache.folder), "rows": seen, "damaged": named, "dropped": dropped}


# ------------------------------------------------------------------------------------------------- prune


def select_rows(
    cache: DiskAnswerStore, provider: str | None = None, model: str | None = None, older_than: str | None = None
) -> Iterator[StoredRow]:
    """The rows that a person means: all that is said of them must be so. Damaged rows say nothing."""
    if provider is None and model is None and older_than is None:
        raise UsageError("nothing says what to drop", "Give --provider, --model or --older-than 30d.")
    before = math.inf if older_than is None else time.time() - parse_age(older_than)
    for row in cache.rows():
        said = summarise_row(row)
        if (
            said is not None
            and provider in (None, said.provider)
            and (model is None or model in said.models)
            and said.time < before
        ):
            yield row.without_text()


def parse_age(text: str) -> float:
    """An age as people write it: 12h, 30d, 2w."""
    found = re.fullmatch(r"(\d+)([hdw])", text)
    if found is None:
        raise UsageError(f"{text!r} is no age", "Write hours, days or weeks: 12h, 30d, 2w.")
    return float(found[1]) * SECONDS[found[2]]
