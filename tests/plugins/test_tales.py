"""The tales source."""

from __future__ import annotations

import hashlib

from distillkit_plugins.tales import Tales

from distillkit.core.records import Document


def test_tales_are_the_same_every_time_and_others_for_another_seed() -> None:
    def told(**options: int) -> list[Document]:
        return list(Tales(Tales.Options(stories=20, **options)).documents("train"))

    assert told() == told()
    assert told()[3].id == "tales:3"
    assert not {d.text for d in told()} & {d.text for d in told(seed=1)}


def test_the_fingerprint_of_tales_names_the_generator() -> None:
    assert len(Tales().fingerprint()["generator"]) == 64
    assert Tales().fingerprint()["generator"] != hashlib.sha256().hexdigest()  # of no file at all
    assert Tales().fingerprint() != Tales(Tales.Options(seed=1)).fingerprint()
