"""Checks of sources: documents in a fixed order, and a fingerprint that identifies them.

Reads at most the first few hundred documents of a split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Any

from ..core.records import Document
from ..plugins.interfaces import Source
from .framework import Case, expect, plain_json, run_checks

MAX_DOCUMENTS = 300


def check_source(cls: type[Source], options: Mapping[str, Any] | None = None) -> list[str]:
    """Check a source. `options` are those of a recipe's [data] table.

    If the source reads files, create them first and pass their absolute paths in the options.
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


def first_documents(source: Source, split: str) -> list[Document]:
    """The first documents of a split."""
    return list(islice(source.documents(split), MAX_DOCUMENTS))


def names_its_splits(case: Case) -> None:
    """It has at least the split `train`."""
    splits = case.build().splits
    is_valid = isinstance(splits, tuple) and all(isinstance(split, str) for split in splits) and "train" in splits
    expect(is_valid, f"its splits are {splits!r}", 'Write splits = ("train",), or omit it.')


def has_a_json_fingerprint(case: Case) -> None:
    """Sources with the same options have the same fingerprint: if it is equal, the corpus is reused."""
    one, two = (plain_json(case.build().fingerprint(), "the fingerprint") for _ in range(2))
    remedy = "Derive it from what determines the documents: options, hashes of files; not times or addresses."
    expect(one == two, f"two sources with the same options have the fingerprints {one!r} and {two!r}", remedy)


def yields_documents(case: Case) -> None:
    """It yields documents of text, whose `meta` can be serialised as JSON."""
    source = case.build()
    for split in source.splits:
        found = first_documents(source, split)
        expect(found, f"the split {split!r} has no documents", "Yield at least one, or raise a DataError.")
        for document in found:
            is_valid = isinstance(document, Document) and isinstance(document.text, str)
            expect(is_valid, f"it yields {document!r:.80}", "Yield Document(id, text).")
            is_unicode = document.text.encode("utf-8", "replace").decode() == document.text
            remedy = 'Decode with errors="strict", and raise a DataError that names the file.'
            expect(is_unicode, f"the document {document.id!r} contains half a character (a lone surrogate)", remedy)
            plain_json(dict(document.meta), f"the meta of {document.id!r}")


def gives_unique_ids(case: Case) -> None:
    """Ids are unique across all splits: grades and errors refer to documents by id."""
    source = case.build()
    ids = [document.id for split in source.splits for document in first_documents(source, split)]
    expect(all(isinstance(each, str) and each for each in ids), "an id is not text, or is empty", "Use text for ids.")
    ((id_, count),) = Counter(ids).most_common(1)
    expect(count == 1, f"{count} documents have the id {id_!r}", "Number them, and include the split or file name.")


def keeps_document_order(case: Case) -> None:
    """The order is the same for repeated calls and for another instance."""
    source, other = case.build(), case.build()
    for split in source.splits:
        before = first_documents(source, split)
        remedy = "Sort the entries of folders and sets, and shuffle only with a fixed seed."
        expect(before == first_documents(source, split), f"the split {split!r} differs when read again", remedy)
        expect(before == first_documents(other, split), f"the split {split!r} differs for a new instance", remedy)


def allows_concurrent_readers(case: Case) -> None:
    """Each call of `documents` starts from the beginning, so two readers in turn see the same documents."""
    source = case.build()
    readers = (islice(source.documents("train"), MAX_DOCUMENTS) for _ in range(2))
    same = all(one == other for one, other in zip(*readers, strict=True))
    expect(same, "two interleaved readers see different documents", "Do not keep a position or open file on self.")
