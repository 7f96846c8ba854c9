"""Readers of public collection formats: one file a format, found by its name."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from retriever.errors import ConfigError, DataError
from retriever.plugins import kinds
from retriever.types import Document, Query

TOPICS = ("mtrag", "qrecc", "topiocqa", "trec_cast", "trec_ikat")
"""Formats of conversations alone: their documents lie beside them, as another format has them."""


class Judgement(NamedTuple):
    """One line of qrels, and where it stands."""

    where: str
    query_id: str
    doc_id: str
    grade: int


@dataclasses.dataclass(frozen=True)
class Source:
    """What a reader reads.

    Attributes:
        location: a folder's or file's path, or an id.
        wanted: the splits the experiment names, for sources whose other splits had to be downloaded.
        fields: the names of those that documents keep.
        kept: a folder of a reader's own, beside the prepared collection, for what it must take out of its files to be read at random.
    """

    location: str
    wanted: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    kept: Path | None = None

    @property
    def path(self) -> Path:
        """The location as a path."""
        return Path(self.location)


class Reader(Protocol):
    """What a file under retriever/readers/ gives. Everything is read lazily, in the order of the files."""

    LAYOUT: str
    """The files it looks for, as an error message lists them."""

    def recognises(self, path: Path) -> bool:
        """Whether the files at a path are of this format."""
        ...

    def files(self, source: Source) -> list[Path]:
        """The files that it would read: when one of them changes, the collection is prepared anew."""
        ...

    def documents(self, source: Source) -> Iterator[tuple[str, Document]]:
        """Every document with where it stands, such as "corpus.jsonl:17"."""
        ...

    def queries(self, source: Source) -> Iterator[tuple[str, Query]]:
        """Every query with where it stands."""
        ...

    def splits(self, source: Source) -> tuple[str, ...]:
        """The splits that have qrels."""
        ...

    def qrels(self, source: Source, split: str) -> Iterator[Judgement]:
        """The judgements of a split."""
        ...


@functools.cache
def formats() -> tuple[str, ...]:
    """The names of all readers."""
    return tuple(kinds("readers"))


def reader(name: str) -> Reader:
    """The reader of a format.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in formats():
        raise ConfigError(f'collection.format = "{name}" is unknown; allowed: {", ".join(formats())}')
    return cast(Reader, importlib.import_module(f"{__name__}.{name}"))


def recognise(path: Path) -> str:
    """The name of the one format that the files at a path have.

    Raises:
        DataError: the path does not exist, or its files have none of the known layouts, or several.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such folder or file")
    found = [name for name in formats() if reader(name).recognises(path)]
    if len(found) > 1 and "files" in found:
        found.remove("files")  # texts beside another format's files belong to it, or are a read-me
    found = [name for name in found if name in TOPICS] or found
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f'{path}: has the files of several formats: {", ".join(found)}. Choose one with collection.format = "{found[0]}"')
    layouts = "; ".join(f"{name}: {reader(name).LAYOUT}" for name in formats() if reader(name).LAYOUT)
    raise DataError(f"{path}: {_contents(path)}, which is no collection. Allowed layouts are {layouts}")


def documents_reader(path: Path) -> Reader:
    """The reader of the documents that lie in a folder beside topics.

    Raises:
        DataError: there are none, or those of several formats.
    """
    found = [name for name in formats() if name not in (*TOPICS, "files") and reader(name).recognises(path)]
    if len(found) == 1:
        return reader(found[0])
    if found:
        raise DataError(f"{path}: has the documents of several formats: {', '.join(found)}. Leave those of one")
    raise DataError(f"{path}: {_contents(path)}, but no documents. Lay them beside the topics, as corpus.jsonl or as another format has them")


def has_queries(path: Path) -> bool:
    """Whether the files at a path have qrels of any split; also where they are of no known format, which opening them will say."""
    try:
        return bool(reader(recognise(path)).splits(Source(str(path))))
    except DataError:
        return True


def _contents(path: Path) -> str:
    if path.is_file():
        return f"is the file {path.name}"
    names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    if not names:
        return "is an empty folder"
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"holds {', '.join(names[:10])}{more}"
