"""Speed of distillkit's tokenization and packing into files, against tiktoken with the same ranks and threads.

    python benchmarks/tokens.py [--megabytes 8] [--rounds 5] [--ranks gpt2.tiktoken] [--json FILE]

Input: many stories, once as they are and once joined to a few long documents. The methods take turns for some rounds;
figures are medians, ratios are within a round. tiktoken is called as documented: `encode_ordinary_batch`. GPT-2's ranks
are read from `--ranks`, by default `../shared/data/gpt2.tiktoken` if it exists. Exits with 1 if a ratio is below 0.9.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tiktoken
from measure import median, report

from distillkit.data import tokenizer as tokenizers
from distillkit.data.shards import Packer
from distillkit.data.tales import story
from distillkit.data.tokenizer import Tokenizer

HERE = Path(__file__).parent
RANKS = HERE.parent.parent / "shared" / "data" / "gpt2.tiktoken"
MARK = 0.9
LONG = 1 << 20  # characters of a long document
BARE, LISTS, ARRAYS, PACKED = "tiktoken", "encode_batch", "encode_arrays", "packed to files"


def main() -> int:
    """Measure and report."""
    options = _options()
    stories = list(_stories(options.megabytes * 1_000_000))
    texts = {"stories": stories, "long documents": list(_joined(stories))}
    rows, results = [], []
    for name, tokenizer in _tokenizers(options.ranks):
        for kind, documents in texts.items():
            result = {"tokenizer": name, "documents": kind, **_measured(tokenizer, documents, options.rounds)}
            results.append(result)
            rows += _rows(result)
    title = f"Tokenizing: {tokenizers.num_threads()} threads, {options.rounds} rounds, medians, ratios within a round"
    report(title, rows, {"mark": MARK, "threads": tokenizers.num_threads(), "results": results}, options.json)
    slow = [f"{r['tokenizer']}, {r['documents']}" for r in results if min(r["ratios"].values()) < MARK]
    print(f"Slower than {MARK} of tiktoken: {'; '.join(slow)}" if slow else f"All at least {MARK} of tiktoken.")
    return 1 if slow else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=Path, default=RANKS)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _stories(characters: int) -> Iterator[str]:
    """Generated stories, repeated as needed: their content does not affect speed, and generating them is slow."""
    some, written, number = [story(0, i) for i in range(2000)], 0, 0
    while written < characters:
        yield some[number % len(some)]
        written += len(some[number % len(some)])
        number += 1


def _joined(stories: list[str]) -> Iterator[str]:
    whole = "\n\n".join(stories)
    for start in range(0, len(whole), LONG):
        yield whole[start : start + LONG]


def _tokenizers(ranks: Path) -> Iterator[tuple[str, Tokenizer]]:
    yield "tales-teacher", tokenizers.build("tales-teacher")
    if ranks.is_file():
        yield "gpt2", tokenizers.build("gpt2", ranks=ranks)


def _measured(tokenizer: Tokenizer, documents: list[str], rounds: int) -> dict[str, Any]:
    """The speed of each method, absolute and relative to tiktoken's."""
    bare = tiktoken.Encoding(
        "bare", pat_str=tokenizer.pattern, mergeable_ranks=tokenizer.ranks, special_tokens=tokenizer.special
    )
    threads, folder = tokenizers.num_threads(), Path(tempfile.mkdtemp())
    ways: dict[str, Callable[[], Any]] = {
        BARE: lambda: bare.encode_ordinary_batch(documents, num_threads=threads),
        LISTS: lambda: tokenizer.encode_batch(documents),
        ARRAYS: lambda: tokenizer.encode_arrays(documents),
        PACKED: lambda: _pack(tokenizer, documents, folder),
    }
    _must_agree(ways)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in list(ways)[:: 1 if number % 2 else -1]:
            times[way].append(_seconds(ways[way]))
    shutil.rmtree(folder)
    size = sum(len(text.encode()) for text in documents)
    ratios = {way: median([b / o for b, o in zip(times[BARE], spent, strict=True)]) for way, spent in times.items()}
    return {
        "bytes": size,
        "bytes_per_second": {way: size / median(spent) for way, spent in times.items()},
        "ratios": {way: ratio for way, ratio in ratios.items() if way != BARE},
    }


def _must_agree(ways: dict[str, Callable[[], Any]]) -> None:
    """Exit with 1 unless all methods give the same tokens. Also warms them up."""
    expected = ways[BARE]()
    if ways[LISTS]() != expected or [tokens.tolist() for tokens in ways[ARRAYS]()] != expected:
        raise SystemExit("distillkit's tokens differ from tiktoken's")
    count = sum(len(tokens) + 1 for tokens in expected)  # with the end of each text
    if ways[PACKED]()["tokens"] != count:
        raise SystemExit("the packed tokens differ from tiktoken's")


def _pack(tokenizer: Tokenizer, documents: list[str], folder: Path) -> dict[str, Any]:
    packer = Packer(folder, tokenizer)
    for text in documents:
        packer.add(text)
    return packer.close()


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    result = work()
    spent = time.perf_counter() - began
    del result  # freeing millions of Python numbers takes time that is not measured
    return spent


def _rows(result: dict[str, Any]) -> Iterator[dict[str, str]]:
    for way, speed in result["bytes_per_second"].items():
        yield {
            "tokenizer": result["tokenizer"],
            "documents": result["documents"],
            "way": way,
            "MB/s": f"{speed / 1e6:.1f}",
            "of tiktoken": f"{result['ratios'].get(way, 1):.2f}",
        }


if __name__ == "__main__":
    sys.exit(main())
