"""Compares tokenizers on one text: bytes per token, share of the vocabulary that is used, and time.

Trains on the beginning of the training split, and measures on held-out text, which no tokenizer has seen. Says nothing
about the quality of a student; compare runs for that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ...core.errors import DataError
from ...plugins.interfaces import Source
from ..corpus import Options, training_texts
from ..shards import utf8_size
from ..tokenizer import TRAINED, Tokenizer, build, is_trained

Table = Mapping[str, Any]


def candidate_tables(table: Table, also: Sequence[str]) -> list[Table]:
    """The tokenizers to compare: that of the recipe, both trained kinds at its size, and the `also` specifications."""
    size = table["vocab_size"] if is_trained(table) else 8192
    tables: list[Table] = [table, *({"kind": kind, "vocab_size": size} for kind in TRAINED)]
    tables += [_parse_spec(word) for word in also]
    return [one for i, one in enumerate(tables) if one not in tables[:i]]


def _parse_spec(word: str) -> Table:
    """Parse `gpt2`, `bpe:4096` or a folder: a kind, with its size for trained kinds."""
    kind, colon, size = word.rpartition(":")
    if colon and kind in TRAINED and size.isdecimal():
        return {"kind": kind, "vocab_size": int(size)}
    if word in TRAINED:
        raise DataError(f"{word!r} needs a size", f"Write it as {word}:4096.")
    return {"kind": word}


def compare_tokenizers(source: Source, options: Table, tables: Sequence[Table], megabytes: float) -> dict[str, Any]:
    """Measure each tokenizer, or record why it is missing. Both texts have at most this many megabytes."""
    chosen, most = Options.of(options), int(megabytes * 1e6)
    train = partial(_texts, source, chosen, "train", most)
    held_out = list(_texts(source, chosen, "held_out", most))
    if not held_out:
        raise DataError("no text is held out, so there is nothing to measure", "Raise data.held_out.")
    size = sum(map(utf8_size, held_out))
    return {
        "schema": 1,
        "text": {"documents": len(held_out), "bytes": size, "trained_on_bytes": sum(map(utf8_size, train()))},
        "tokenizers": [_row(table, train, held_out, size) for table in tables],
    }


def _texts(source: Source, options: Options, split: str, most: int) -> Iterator[str]:
    """Texts of a split up to a number of bytes. The last text is cut."""
    before = 0
    for size, text in training_texts(source, options, split, most):
        yield text if size <= most else text.encode()[: most - before].decode(errors="ignore")
        before = size


def _row(table: Table, train: Callable[[], Iterator[str]], texts: Sequence[str], size: int) -> dict[str, Any]:
    named = {"kind": table["kind"], "trained": is_trained(table)}
    started = time.perf_counter()
    try:
        tokenizer = build(**table, texts=train)
    except DataError as error:  # an unavailable tokenizer does not stop the others
        return {**named, "vocab_size": table.get("vocab_size"), "missing": error.message, "hint": error.hint}
    trained = time.perf_counter() - started
    return {**named, "vocab_size": tokenizer.vocab_size, "train_seconds": round(trained, 3)} | _measure(
        tokenizer, texts, size
    )


def _measure(tokenizer: Tokenizer, texts: Sequence[str], size: int) -> dict[str, Any]:
    """Token counts and encoding time of one tokenizer. The first call, which builds its tables, is not timed."""
    tokenizer.encode(texts[0][:100])
    started = time.perf_counter()
    tokens = np.concatenate(tokenizer.encode_arrays(texts))
    seconds = time.perf_counter() - started
    used = len(np.unique(tokens))
    return {
        "tokens": len(tokens),
        "bytes_a_token": round(size / max(1, len(tokens)), 4),
        "used": used,
        "used_share": round(used / tokenizer.vocab_size, 4),
        "encode_seconds": round(seconds, 3),
    }


def format_table(comparison: Mapping[str, Any]) -> str:
    """The comparison as a table in plain text."""
    of = comparison["text"]
    head = ("tokenizer", "tokens", "bytes a token", "vocabulary used", "trained in", "encoded in")
    rows = [head, *(_cells(row) for row in comparison["tokenizers"] if "missing" not in row)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(_align(row, widths)) for row in rows]
    for row in comparison["tokenizers"]:
        if "missing" in row:
            lines += [f"{_name(row)}: {row['missing']}", *(f"  {line}" for line in row["hint"].splitlines())]
    return "\n".join(
        [
            f"On {of['documents']:,} held-out documents, {of['bytes'] / 1e6:,.2f} MB; "
            f"trained on {of['trained_on_bytes'] / 1e6:,.2f} MB.",
            *lines,
        ]
    )


def _align(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """Align names to the left and numbers to the right."""
    for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield f"{cell:>{width}}" if i else f"{cell:<{width}}"


def _name(row: Mapping[str, Any]) -> str:
    return row["kind"] if row["vocab_size"] is None else f"{row['kind']}, {row['vocab_size']:,}"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        _name(row),
        f"{row['tokens']:,}",
        f"{row['bytes_a_token']:.3f}",
        f"{row['used']:,} ({row['used_share']:.0%})",
        f"{row['train_seconds']:.2f} s" if row["trained"] else "-",
        f"{row['encode_seconds']:.2f} s",
    )
