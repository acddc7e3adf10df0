"""Maintenance of the answer cache: counts, validation, selection of rows to delete. Calls no teacher."""

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

LATEST_TIME = datetime(9999, 12, 31, tzinfo=UTC).timestamp()  # the last date of `datetime`
SECONDS_PER_UNIT = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


# ------------------------------------------------------------------------------------------------- one row


def validate_row(key: str, text: str | None) -> dict[str, Any]:
    """The row in a text, validated. Raises CorruptError with the reason if it is invalid."""
    if text is None:
        raise CorruptError("it is not text; it was not read")
    try:
        values = parse_row(text)
        _validate(key, values)
    except DAMAGE as error:
        raise CorruptError(f"{type(error).__name__}: {error}") from error
    return values  # type: ignore[no-any-return]


def _validate(key: str, values: dict[str, Any]) -> None:
    """Check time, answer, usage and key of a row. Raises one of the errors in DAMAGE."""
    _time(values)
    if "answer" in values:
        answer = Answer.from_json(values["answer"])
        if not isinstance(answer.text, str):
            raise TypeError("its text is not a string")
        _usage(values["answer"])
        if is_packed(tokens := values["answer"]["tokens"]):
            unpack_columns(tokens)
    if (expected := answer_key(values["asked"])) != key:
        raise ValueError(f"its request belongs to another key, {expected[:12]}")


def _time(values: dict[str, Any]) -> float:
    """When a row was written, in seconds since the epoch."""
    if not 0 <= values["time"] <= LATEST_TIME:
        raise ValueError("its time is not a valid time")
    return float(values["time"])


def _usage(answer: dict[str, Any]) -> Usage:
    """The token counts of an answer; 0 if they are unknown."""
    counts = [(answer.get("usage") or {}).get(f"{kind}_tokens", 0) for kind in ("prompt", "completion")]
    if any(count != int(count) or count < 0 for count in counts):
        raise ValueError(f"its token counts are {counts[0]!r} and {counts[1]!r}")
    return Usage(int(counts[0]), int(counts[1]))


@dataclass(frozen=True)
class RowSummary:
    """The source, kind and cost of a row. Its tokens are not validated."""

    provider: str
    models: tuple[str, ...]  # the requested one, then the one that the response names
    kind: str  # answer, refused or other
    values: dict[str, Any]
    usage: Usage
    time: float

    @property
    def model(self) -> str:
        """The requested model, or the one that answered; "" if neither is known."""
        return self.models[0] if self.models else ""


def summarise_row(row: StoredRow) -> RowSummary | None:
    """A row's summary, or None if the row cannot be parsed."""
    try:
        values = json.loads(row.text or "")
        asked = values["asked"]
        identity = asked.get("identity")
        wanted = identity.get("model") if isinstance(identity, dict) else None
        answer = values.get("answer") or {}
        models = tuple(dict.fromkeys(name for name in (wanted, answer.get("model")) if isinstance(name, str)))
        kind = "answer" if "answer" in values and "request" in asked else "other"  # "other": findings about an endpoint
        kind = "refused" if answer.get("finish") == REFUSED else kind
        return RowSummary(str(asked.get("provider", "")), models, kind, values, _usage(answer), _time(values))
    except DAMAGE:
        return None


# ------------------------------------------------------------------------------------------------- stats


@dataclass
class SourceTotals:
    """Counts over the rows of one provider and model."""

    answers: int = 0
    refused: int = 0
    other: int = 0
    truncated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    bytes: int = 0
    times: list[float] = field(default_factory=list)

    def add(self, row: StoredRow, summary: RowSummary) -> None:
        """Count a row."""
        answer = summary.values.get("answer") or {}
        self.answers += summary.kind == "answer"
        self.refused += summary.kind == "refused"
        self.other += summary.kind == "other"
        self.truncated += answer.get("finish") == "length"
        self.prompt_tokens += summary.usage.prompt_tokens
        self.completion_tokens += summary.usage.completion_tokens
        self.bytes += row.bytes
        ends = [*self.times, summary.time]
        self.times = [min(ends), max(ends)]

    def to_json(self) -> dict[str, Any]:
        """The counts, with the times as ISO dates."""
        values = {name: value for name, value in vars(self).items() if name != "times"}
        oldest, newest = (_date(time) for time in self.times) if self.times else (None, None)
        return {**values, "oldest": oldest, "newest": newest}


def stats(cache: DiskAnswerStore) -> dict[str, Any]:
    """Counts of a cache by provider and model, and in total."""
    totals: dict[tuple[str, str], SourceTotals] = {}
    damaged = 0
    for row in cache.rows():
        if (summary := summarise_row(row)) is None:
            damaged += 1
        else:
            totals.setdefault((summary.provider, summary.model), SourceTotals()).add(row, summary)
    by = [
        {"provider": provider, "model": model, **totals[provider, model].to_json()}
        for provider, model in sorted(totals)
    ]
    counted = ("answers", "refused", "other", "truncated", "prompt_tokens", "completion_tokens", "bytes")
    total = {name: sum(row[name] for row in by) for name in counted}
    return {"schema": 1, "folder": str(cache.folder), **total, "damaged": damaged, "by": by}


def _date(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# ------------------------------------------------------------------------------------------------- verify


def verify(cache: DiskAnswerStore, repair: bool = False) -> dict[str, Any]:
    """Validate every row. Damaged rows are listed, and deleted with `repair`."""
    damaged: list[tuple[StoredRow, str]] = []
    count = 0
    for row in cache.rows():
        count += 1
        try:
            validate_row(row.key, row.text)
        except CorruptError as error:
            damaged.append((row.without_text(), error.message))
    dropped = cache.drop(row for row, _ in damaged) if repair and damaged else 0
    listed = [{"row": row.number, "key": row.key, "fault": fault} for row, fault in damaged]
    return {"schema": 1, "folder": str(cache.folder), "rows": count, "damaged": listed, "dropped": dropped}


# ------------------------------------------------------------------------------------------------- prune


def select_rows(
    cache: DiskAnswerStore, provider: str | None = None, model: str | None = None, older_than: str | None = None
) -> Iterator[StoredRow]:
    """The rows that match all given conditions. Damaged rows match none."""
    if provider is None and model is None and older_than is None:
        raise UsageError("no rows were selected for deletion", "Give --provider, --model or --older-than 30d.")
    before = math.inf if older_than is None else time.time() - parse_age(older_than)
    for row in cache.rows():
        summary = summarise_row(row)
        if (
            summary is not None
            and provider in (None, summary.provider)
            and (model is None or model in summary.models)
            and summary.time < before
        ):
            yield row.without_text()


def parse_age(text: str) -> float:
    """The seconds of an age such as 12h, 30d or 2w."""
    found = re.fullmatch(r"(\d+)([hdw])", text)
    if found is None:
        raise UsageError(f"{text!r} is not an age", "Write hours, days or weeks: 12h, 30d, 2w.")
    return float(found[1]) * SECONDS_PER_UNIT[found[2]]
