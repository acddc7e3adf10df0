"""What a source owes the host: documents in an order that never changes, under a true fingerprint.

Does not know what the documents are about, and looks at no more than the first few hundred.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Any

from ..core.records import Document
from ..plugins.interfaces import Source
from .framework import Case, expect, plain_json, run_checks

FIRST = 300


def check_source(cls: type[Source], options: Mapping[str, Any] | None = None) -> list[str]:
    """Hold a source against its promises. `options` are those of a recipe's [data] table.

    What needs a file gets one: write it, and name it in the options by its absolute path.
    """
    checks = [
        names_its_splits,
        has_a_json_fingerprint,
        yields_documents,
        gives_unique_ids,
        keeps_document_order,
        allows_concurrent_readers,
    ]
    return run_checks("sources", cls, options, checks)


def first_of(source: Source, split: str) -> list[Document]:
    """The first documents of a split."""
    return list(islice(source.documents(split), FIRST))


def names_its_splits(case: Case) -> None:
    """At least one; `train` is the one that is learnt from."""
    splits = case.build().splits
    good = isinstance(splits, tuple) and all(isinstance(split, str) for split in splits) and "train" in splits
    expect(good, f"its splits are {splits!r}", 'Write splits = ("train",), or leave it out.')


def has_a_json_fingerprint(case: Case) -> None:
    """While it is equal nothing is read again, so two sources built alike have the same."""
    one, two = (plain_json(case.build().fingerprint(), "the fingerprint") for _ in range(2))
    remedy = "Make it of what decides the documents: options, sums of files; not of times or addresses."
    expect(one == two, f"two sources built alike have the fingerprints {one!r} and {two!r}", remedy)


def yields_documents(case: Case) -> None:
    """Documents of text, whose notes can be kept as JSON."""
    source = case.build()
    for split in source.splits:
        found = first_of(source, split)
        expect(found, f"the split {split!r} has no documents", "Yield at least one, or raise a DataError.")
        for document in found:
            good = isinstance(document, Document) and isinstance(document.text, str)
            expect(good, f"it yields {document!r:.80}", "Yield Document(id, text).")
            whole = document.text.encode("utf-8", "replace").decode() == document.text
            remedy = 'Decode with errors="strict", and raise a DataError that names the file.'
            expect(whole, f"the document {document.id!r} holds half a character", remedy)
            plain_json(dict(document.meta), f"the meta of {document.id!r}")


def gives_unique_ids(case: Case) -> None:
    """Over all splits: an id says in grades and errors which document is meant."""
    source = case.build()
    ids = [document.id for split in source.splits for document in first_of(source, split)]
    expect(all(isinstance(one, str) and one for one in ids), "an id is not text, or empty", "Make ids of text.")
    ((most, times),) = Counter(ids).most_common(1)
    expect(times == 1, f"{times} documents have the id {most!r}", "Number them, and name the split or the file.")


def keeps_document_order(case: Case) -> None:
    """The same documents in the same order, from the same object and from another."""
    source, other = case.build(), case.build()
    for split in source.splits:
        before = first_of(source, split)
        remedy = "Sort what comes from a folder or a set, and shuffle by a fixed seed only."
        expect(before == first_of(source, split), f"the split {split!r} is another the second time", remedy)
        expect(before == first_of(other, split), f"the split {split!r} is another from a new object", remedy)


def allows_concurrent_readers(case: Case) -> None:
    """Two readers side by side see the same: each call begins anew."""
    source = case.build()
    readers = (islice(source.documents("train"), FIRST) for _ in range(2))
    same = all(one == other for one, other in zip(*readers, strict=True))
    expect(same, "two readers side by side see different documents", "Keep no place or open file on self.")
