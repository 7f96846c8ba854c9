"""Public formats of scored query-document pairs: one file a format, found by its name, each with a function that reads and one that writes."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

from retriever.errors import ConfigError, DataError
from retriever.plugins import kinds
from retriever.readers import _text
from retriever.types import Document

HEAD_BYTES = 1 << 20
HEAD_LINES = 100

Part = Literal["scores", "order", "positives", "texts"]
"""What a format can hold of a pair: its score, its place in a list alone, whether the document is relevant, both texts."""


class Pair(NamedTuple):
    """A query and a document of a file, and what the file says of them.

    Attributes:
        where: file and line.
        query_id: the query; made from its text where the format has no ids.
        doc_id: the document, likewise.
        score: raw, None where the file has none.
        grade: above 0 for a relevant document, None for one that nobody judged.
        query: the query's text, None where the format has only ids.
        document: the document with its text, likewise.
    """

    where: str
    query_id: str
    doc_id: str
    score: float | None = None
    grade: int | None = None
    query: str | None = None
    document: Document | None = None


@dataclasses.dataclass(frozen=True)
class Head:
    """How a file begins: what a format is recognised by.

    Attributes:
        text: the first `HEAD_BYTES` bytes, decompressed.
        lines: the first `HEAD_LINES` lines in it that are not blank and whole.
        is_pickle: whether the first byte is that of a pickle.
    """

    text: str
    lines: tuple[str, ...]
    is_pickle: bool = False

    @functools.cached_property
    def values(self) -> list[Any]:
        """The lines as JSON values; empty when the first one is none."""
        try:
            return [json.loads(line) for line in self.lines]
        except ValueError:
            return []

    @functools.cached_property
    def keys(self) -> frozenset[str]:
        """The keys of the JSON object in the first line; empty when there is none."""
        try:
            first = json.loads(self.lines[0]) if self.lines else None
        except ValueError:
            return frozenset()
        return frozenset(first) if isinstance(first, dict) else frozenset()

    def fields(self, separator: str | None = None) -> list[list[str]]:
        """The lines' fields, parted by the separator or, when it is left out, by white space."""
        return [line.split(separator) for line in self.lines]


class Format(Protocol):
    """What a file under retriever/formats/ gives; one without `write` is only read."""

    LAYOUT: str
    """A line of the file, as an error message shows it."""
    HOLDS: frozenset[Part]
    """What the format can hold."""

    def recognises(self, head: Head) -> bool:
        """Whether a file that begins so is of this format."""
        ...

    def read(self, path: Path) -> Iterator[Pair]:
        """The pairs of a file, one after the other.

        Raises:
            DataError: a line is malformed; the message names file and line.
        """
        ...

    def write(self, path: Path, pairs: Iterable[Pair], name: str) -> int:
        """Writes pairs, which come query by query and best first, and gives the number of queries written.

        A query that the format cannot hold, such as one without a relevant document in a format of triples, is left out.

        Args:
            path: the file; whole or absent, compressed when its name ends with .gz.
            pairs: with everything that `HOLDS` names.
            name: of the system that made the scores.
        """
        ...


@functools.cache
def formats() -> tuple[str, ...]:
    """The names of all formats."""
    return tuple(kinds("formats"))


def format_named(name: str) -> Format:
    """The format of a name.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in formats():
        raise ConfigError(f'the format "{name}" is unknown; known are {", ".join(formats())}')
    return cast(Format, importlib.import_module(f"{__name__}.{name}"))


def recognise(path: Path) -> str:
    """The name of the one format that a file begins like.

    Raises:
        DataError: the file cannot be read, is of none of the known formats, or could be of several.
    """
    head = head_of(path)
    found = [name for name in formats() if format_named(name).recognises(head)]
    if len(found) == 1:
        return found[0]
    if found:
        layouts = "; ".join(f"{name}: {format_named(name).LAYOUT}" for name in found)
        raise DataError(f"{path}: could be of several formats ({layouts}). Choose one with --format {found[0]}")
    first = "".join(head.lines[:1]) or head.text.strip()
    content = f'begins with "{first[:60]}"' if first else "is empty"
    raise DataError(f"{path}: {content}, which is no known format. Name one with --format: {', '.join(formats())}")


def head_of(path: Path) -> Head:
    """How a file begins, plain or gzip.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with _text.open_bytes(path) as stream:
            data = stream.read(HEAD_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if data[:1] == b"\x80":
        return Head("", (), is_pickle=True)
    text = data[:HEAD_BYTES].decode("utf-8-sig", errors="replace")
    lines = text.split("\n")
    whole = lines if len(data) <= HEAD_BYTES else lines[:-1]
    return Head(text, tuple(islice((line.rstrip("\r") for line in whole if line.strip()), HEAD_LINES)))
