"""The bundled source: short stories written by rule, as many as asked for, with no network and no licence."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from distillkit import Document, Source, hookimpl


class Tales(Source):
    """Short stories in simple English, made on the spot."""

    name = "tales"

    class Options(Source.Options):
        """How many, and which."""

        stories: int = Field(20000, ge=1, description="how many")
        seed: int = Field(0, description="which: another seed tells other stories")

    options: Options

    def documents(self, split: str) -> Iterator[Document]:
        """The stories, in the order of their numbers."""
        from distillkit.data.tales import story

        for index in range(self.options.stories):
            yield Document(f"tales:{index}", story(self.options.seed, index))

    def fingerprint(self) -> Any:
        """The options and the generator itself: other rules tell other stories."""
        from distillkit.data.tales import generator

        state = hashlib.sha256()
        for file in sorted(Path(str(generator.__file__)).parent.glob("tales*.py")):
            state.update(file.read_bytes())
        return {**self.options.model_dump(mode="json"), "generator": state.hexdigest()}


@hookimpl
def register_sources() -> list[type[Source]]:
    """Offer the stories."""
    return [Tales]
