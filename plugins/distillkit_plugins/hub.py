"""The source `hub`: streams datasets of the Hugging Face Hub, or local copies, through the `datasets` library.

Downloaded data stays in `cache/downloads/`. No more is downloaded than is read, which `data.tokens` limits.
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


class KnownDataset(NamedTuple):
    """A dataset with a short name."""

    repository: str
    config: str | None
    column: str


KNOWN_DATASETS = {
    "tinystories": KnownDataset("roneneldan/TinyStories", None, "text"),
    "fineweb-edu": KnownDataset("HuggingFaceFW/fineweb-edu", "sample-10BT", "text"),
}
FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".txt": "text", ".arrow": "arrow"}
TEXT_HINT = '--set data.source=text --set data.path="FILES.parquet" (also .txt and .jsonl).'
LOCAL_COPY_HINT = f'Without a network, use a local copy: data.path = "FILE or FOLDER" here, or {TEXT_HINT}'


class Hub(Source):
    """Datasets of the Hugging Face Hub, streamed as far as needed, or local copies of them."""

    name = "hub"

    class Options(Source.Options):
        """Options of the source `hub`."""

        paths: ClassVar[tuple[str, ...]] = ("path",)

        dataset: str | None = Field(None, description=f"{', '.join(KNOWN_DATASETS)}, or owner/name on the Hub")
        path: str | None = Field(
            None, description="a local copy: a file or a folder, for example one written by save_to_disk"
        )
        config: str | None = Field(None, description="configuration of the dataset, if it has several")
        split: str = Field("train", description="split to train on")
        held_out_split: str | None = Field(
            None, description="split to judge on; if not set, documents are held out by their hash"
        )
        column: str | None = Field(None, description="column that holds the text; text if not set")
        revision: str | None = Field(None, description="commit or tag; if not set, the newest at the first download")

        @model_validator(mode="after")
        def _check_origin(self) -> Self:
            if self.dataset is None and self.path is None:
                raise ValueError(f"expected dataset = {next(iter(KNOWN_DATASETS))!r}, or path for a local copy")
            return self

    options: Options

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        known = KNOWN_DATASETS.get(self.options.dataset or "")
        repository = known.repository if known else self.options.dataset
        self.repository = None if self.options.path else repository  # a local copy takes precedence
        self.config = self.options.config or (known.config if known and self.repository else None)
        self.column = self.options.column or (known.column if known else "text")
        self.hub_splits = {"train": self.options.split, "held_out": self.options.held_out_split}
        if self.options.held_out_split:
            self.splits = ("train", "held_out")  # type: ignore[misc]

    @property
    def here(self) -> bool:
        """Whether all splits are local or completely downloaded."""
        return self.options.path is not None or all(self._download(split).done for split in self.splits)

    def check(self) -> None:
        """Raise a DataError if the datasets library is needed and not installed."""
        if self.options.path is not None or not self.here:
            _import_datasets()

    def documents(self, split: str) -> Iterator[Document]:
        """The texts of a split, downloaded as far as they are read."""
        name = self.hub_splits[split]
        for number, text in enumerate(self._download(split)):
            yield Document(f"{name}:{number}", text)

    def fingerprint(self) -> Any:
        """Dataset, configuration, column, revision and splits; for a local copy, hashes of its files."""
        selection = {"config": self.config, "column": self.column, "revision": self.options.revision}
        return {"dataset": self._dataset, **selection, "splits": self.hub_splits}

    @cached_property
    def _dataset(self) -> Any:
        return self.repository if self.options.path is None else _file_hashes(Path(self.options.path))

    def _download(self, split: str) -> Download:
        from distillkit.data.downloads import Download

        name, identity = self.hub_splits[split], self.fingerprint()
        label = re.sub(r"[^A-Za-z0-9-]+", "-", f"{self.repository or Path(self.options.path or '').name}-{name}")
        return Download(label, [identity, name], lambda origin, state: self._open(origin, name, state), self._commit)

    def _commit(self) -> str | None:
        """The commit to download all shards from. Fails quickly without a network."""
        if self.repository is None:
            return None
        _import_datasets()
        from huggingface_hub import HfApi

        try:
            info = HfApi().dataset_info(self.repository, revision=self.options.revision, timeout=20)
        except Exception as error:
            raise self._unreachable(error) from error
        return None if info.sha is None else str(info.sha)

    def _open(self, commit: str | None, split: str | None, state: Any) -> TextStream:
        try:
            return TextStream(self, self._stream(commit, split), state)
        except DataError:
            raise
        except Exception as error:
            raise self._unreachable(error) from error

    def _stream(self, commit: str | None, split: str | None) -> Any:
        """The streaming dataset of the library."""
        datasets = _import_datasets()
        path = self.options.path
        if path is None:
            return datasets.load_dataset(self.repository, self.config, split=split, streaming=True, revision=commit)
        if Path(path).is_file():
            if (kind := FORMATS.get(Path(path).suffix.lower())) is None:
                raise DataError(f"data.path: {path} has an unknown format", f"Known: {', '.join(FORMATS)}.")
            return datasets.load_dataset(kind, data_files={split: path}, split=split, streaming=True)
        if any((Path(path) / name).is_file() for name in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(path)
            return (saved[split] if isinstance(saved, dict) else saved).to_iterable_dataset()
        return datasets.load_dataset(path, self.config, split=split, streaming=True)

    def _unreachable(self, error: Exception) -> DataError:
        """A DataError with the first line of the library's message and a hint."""
        message = (str(error).splitlines() or [type(error).__name__])[0][:160]
        if self.repository is None:
            return DataError(
                f"data.path: {self.options.path} cannot be read: {message}", "Check data.split and data.config."
            )
        what = f"the dataset {self.repository!r} cannot be downloaded"
        if isinstance(error, ValueError):  # the Hub was reached, but there is no such split or configuration
            return DataError(f"{what}: {message}", "Check data.split and data.config.")
        return DataError(f"{what}: {message}", LOCAL_COPY_HINT)


class TextStream:
    """The texts of a streaming dataset, resumable at a saved position."""

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
        """The position in the stream, as plain JSON."""
        return json.loads(json.dumps(self.stream.state_dict()))

    def _text(self, row: Any) -> str:
        text = row[self.column]
        if text is not None and not isinstance(text, str):
            raise DataError(f"the column {self.column!r} holds no text: {str(text)[:40]!r}", "Set data.column.")
        return text or ""


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            'data.source = "hub" needs the package datasets, which is not installed',
            f'Install it: pip install "distillkit[hub]". Or use a local copy: {TEXT_HINT}',
        ) from error
    return datasets


def _file_hashes(path: Path) -> list[list[str]]:
    """The relative paths and hashes of the files of a local copy."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise DataError(f"data.path: no files in {str(path)!r}", "Check the path.")
    return [[file.name if path.is_file() else str(file.relative_to(path)), _digest(file)] for file in files]


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@hookimpl
def register_sources() -> list[type[Source]]:
    """The source of this module."""
    return [Hub]
