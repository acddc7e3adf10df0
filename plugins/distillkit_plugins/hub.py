"""A source that streams datasets of the Hugging Face Hub, or local copies of them, through the `datasets` library.

What is fetched stays in `cache/downloads/`, and no more is fetched than is read: `data.tokens` is the budget.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import Field, model_validator

from distillkit import DataError, Document, Source, hookimpl

if TYPE_CHECKING:
    from typing import Self

    from distillkit.data.downloads import Download


class Ready(NamedTuple):
    """A dataset that goes by a short name here."""

    repository: str
    config: str | None
    column: str


READY = {
    "tinystories": Ready("roneneldan/TinyStories", None, "text"),
    "fineweb-edu": Ready("HuggingFaceFW/fineweb-edu", "sample-10BT", "text"),
}
FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".txt": "text", ".arrow": "arrow"}
AS_TEXT = '--set data.source=text --set data.path="FILES.parquet" (also .txt and .jsonl).'
COPY = f'Without a network, bring a copy: data.path = "FILE or FOLDER" here, or {AS_TEXT}'


class Hub(Source):
    """Datasets of the Hugging Face Hub, streamed as far as they are needed; or copies of them on the disk."""

    name = "hub"

    class Options(Source.Options):
        """Which dataset, and what of it."""

        paths: ClassVar[tuple[str, ...]] = ("path",)

        dataset: str | None = Field(None, description=f"{', '.join(READY)}, or owner/name on the Hub")
        path: str | None = Field(None, description="a local copy of it: a file, or a folder (of save_to_disk, too)")
        config: str | None = Field(None, description="the dataset's configuration, where it has several")
        split: str = Field("train", description="what to train on")
        held_out_split: str | None = Field(
            None, description="a split to judge on; if not set, documents are held out by their hash"
        )
        column: str | None = Field(None, description="where the text stands; text if not set")
        revision: str | None = Field(None, description="a commit or tag; the newest when first fetched if not set")

        @model_validator(mode="after")
        def _some_place(self) -> Self:
            if self.dataset is None and self.path is None:
                raise ValueError(f"expected dataset = {next(iter(READY))!r}, or path for a local copy")
            return self

    options: Options

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        ready = READY.get(self.options.dataset or "")
        named = ready.repository if ready else self.options.dataset
        self.repository = None if self.options.path else named  # a copy takes its place
        self.config = self.options.config or (ready.config if ready and self.repository else None)
        self.column = self.options.column or (ready.column if ready else "text")
        self.of = {"train": self.options.split, "held_out": self.options.held_out_split}
        if self.options.held_out_split:
            self.splits = ("train", "held_out")  # type: ignore[misc]

    @property
    def here(self) -> bool:
        """Whether all that it can give lies on this disk."""
        return self.options.path is not None or all(self._download(split).done for split in self.splits)

    def check(self) -> None:
        """Refuse to begin without the library, unless everything has come already."""
        if self.options.path is not None or not self.here:
            _library()

    def documents(self, split: str) -> Iterator[Document]:
        """The texts of a split, fetched as far as they are read."""
        name = self.of[split]
        for number, text in enumerate(self._download(split)):
            yield Document(f"{name}:{number}", text)

    def fingerprint(self) -> Any:
        """What is asked of whom; of a local copy, what it holds."""
        named = {"config": self.config, "column": self.column, "revision": self.options.revision}
        return {"dataset": self._dataset, **named, "splits": self.of}

    @cached_property
    def _dataset(self) -> Any:
        return self.repository if self.options.path is None else _contents(Path(self.options.path))

    def _download(self, split: str) -> Download:
        from distillkit.data.downloads import Download

        name, identity = self.of[split], self.fingerprint()
        label = re.sub(r"[^A-Za-z0-9-]+", "-", f"{self.repository or Path(self.options.path or '').name}-{name}")
        return Download(label, [identity, name], lambda origin, state: self._opened(origin, name, state), self._commit)

    def _commit(self) -> str | None:
        """The commit that all shards will be of, however long fetching takes; refuses quickly without a network."""
        if self.repository is None:
            return None
        _library()
        from huggingface_hub import HfApi

        try:
            info = HfApi().dataset_info(self.repository, revision=self.options.revision, timeout=20)
        except Exception as error:
            raise self._unreachable(error) from error
        return None if info.sha is None else str(info.sha)

    def _opened(self, commit: str | None, split: str | None, state: Any) -> Rows:
        try:
            return Rows(self, self._stream(commit, split), state)
        except DataError:
            raise
        except Exception as error:
            raise self._unreachable(error) from error

    def _stream(self, commit: str | None, split: str | None) -> Any:
        """The dataset, as the library streams it."""
        datasets = _library()
        path = self.options.path
        if path is None:
            return datasets.load_dataset(self.repository, self.config, split=split, streaming=True, revision=commit)
        if Path(path).is_file():
            if (kind := FORMATS.get(Path(path).suffix.lower())) is None:
                raise DataError(f"data.path: {path} is in no format that is known", f"Known: {', '.join(FORMATS)}.")
            return datasets.load_dataset(kind, data_files={split: path}, split=split, streaming=True)
        if any((Path(path) / name).is_file() for name in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(path)
            return (saved[split] if isinstance(saved, dict) else saved).to_iterable_dataset()
        return datasets.load_dataset(path, self.config, split=split, streaming=True)

    def _unreachable(self, error: Exception) -> DataError:
        """What the library said, in a line, and what to do about it."""
        said = (str(error).splitlines() or [type(error).__name__])[0][:160]
        if self.repository is None:
            return DataError(
                f"data.path: {self.options.path} cannot be read: {said}", "Check data.split and data.config."
            )
        what = f"the dataset {self.repository!r} cannot be fetched"
        if isinstance(error, ValueError):  # it was reached, and has no such split or configuration
            return DataError(f"{what}: {said}", "Check data.split and data.config.")
        return DataError(f"{what}: {said}", COPY)


class Rows:
    """A stream of the library at some place, as texts."""

    def __init__(self, source: Hub, stream: Any, state: Any) -> None:
        self.source, self.column = source, source.column
        columns = stream.column_names
        if columns is not None and self.column not in columns:
            raise DataError(f"the dataset has no column {self.column!r}", f"Set data.column: {', '.join(columns)}.")
        self.stream = stream.select_columns([self.column])
        if state is not None:
            self.stream.load_state_dict(state)

    def __iter__(self) -> Iterator[str]:
        rows = iter(self.stream)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:
                raise self.source._unreachable(error) from error
            yield self._text(row)

    def state(self) -> Any:
        """Where it stands, in plain JSON."""
        return json.loads(json.dumps(self.stream.state_dict()))

    def _text(self, row: Any) -> str:
        text = row[self.column]
        if text is not None and not isinstance(text, str):
            raise DataError(f"the column {self.column!r} holds no text: {str(text)[:40]!r}", "Set data.column.")
        return text or ""


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            'data.source = "hub" needs the package datasets, which is not installed',
            f'Install it: pip install "distillkit[hub]". Or bring a copy: {AS_TEXT}',
        ) from error
    return datasets


def _contents(path: Path) -> list[list[str]]:
    """The files of a local copy and what each holds; where it lies does not matter."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise DataError(f"data.path: there is nothing in {str(path)!r}", "Check the path.")
    return [[file.name if path.is_file() else str(file.relative_to(path)), _digest(file)] for file in files]


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@hookimpl
def register_sources() -> list[type[Source]]:
    """The source of this module."""
    return [Hub]
