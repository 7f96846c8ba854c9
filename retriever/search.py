"""A searchable folder, opened: index, documents and the student that encodes queries, with nothing else needed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from retriever.candidates import index_run
from retriever.encodings import Encoding
from retriever.errors import SearchIndexError
from retriever.files import mark_of
from retriever.filters import Condition, conditions_from
from retriever.images.readers import refuse_images
from retriever.index.layout import MANIFEST, index_folder, read_version
from retriever.index.snapshot import Snapshot, asked_by, open_snapshot, student_in
from retriever.progress import Reporter
from retriever.runs import Run
from retriever.types import Document, Query
from retriever.vector_index import Found

_ATTEMPTS = 5
"""Versions that may be switched and pruned under a reader that is just opening one."""


@dataclasses.dataclass(frozen=True)
class Hit:
    """One result: its place from 1, the student's score and the document."""

    rank: int
    score: float
    document: Document


class SearchIndex:
    """An opened index folder. What is changed in it is searched from the next call on; a call that has begun answers from the version before.

    Attributes:
        folder: where it lies.
        student: what encodes queries in the place of the index's own; None for that one.
    """

    def __init__(self, folder: Path, student: Any = None) -> None:
        self.folder = folder
        self.student = student
        self._seen, self._snapshot = self._opened(None)

    @property
    def snapshot(self) -> Snapshot:
        """The current version, opened; the same object until there is a new one."""
        if not self.is_current:
            self._seen, self._snapshot = self._opened(self._snapshot)
        return self._snapshot

    @property
    def is_current(self) -> bool:
        """Whether `snapshot` has nothing new to open; one stat."""
        return bool(_mark(self.folder) == self._seen)

    @property
    def encoder(self) -> Any:
        """The student that encodes queries."""
        return self.snapshot.encoder

    def __len__(self) -> int:
        """How many documents can be found."""
        return len(self.snapshot)

    @property
    def bytes(self) -> int:
        """What the engines' files take on disk; documents and student not counted."""
        return sum(segment.facts.bytes for segment in self.snapshot.segments)

    def hits(self, query: str | Query, k: int = 10, where: Mapping[str, Any] | Sequence[Condition] = ()) -> list[Hit]:
        """The best k documents of one query with their texts, best first.

        Args:
            query: a text, or a query with its turns, its image and its own conditions.
            k: how many at most.
            where: conditions on the documents' fields beside the query's own, such as {"year": {">=": 2020}, "language": ["de", "fr"]}.

        Raises:
            ConfigError: the documents' fields cannot answer a condition, or the student reads texts alone and the query is an image.
        """
        snapshot, asked = self.snapshot, asked_query(query)
        refuse_images(snapshot.encoder, [asked])
        rows, scores = snapshot.search(snapshot.encoder.encode_queries([asked]), k, conditions_of(asked, where))
        documents = snapshot.documents_by_row(rows[0])
        return [Hit(rank, float(score), document) for rank, (score, document) in enumerate(zip(scores[0], documents, strict=True), 1)]

    def run(
        self,
        queries: Mapping[str, Query],
        k: int = 1000,
        name: str | None = None,
        where: Mapping[str, Any] | Sequence[Condition] = (),
        reporter: Reporter | None = None,
    ) -> Run:
        """The best k documents of many queries, as a run; the reporter shows how far it is.

        Raises:
            ConfigError: as `hits` says.
        """
        snapshot, conditions = self.snapshot, as_conditions(where)
        refuse_images(snapshot.encoder, queries.values())
        return index_run(name or self.folder.name, snapshot.encoder, _Filtered(snapshot, conditions), snapshot, queries, k, reporter)

    def _opened(self, before: Snapshot | None) -> tuple[Any, Snapshot]:
        for attempt in range(_ATTEMPTS):
            seen = _mark(self.folder)
            version = read_version(self.folder)
            try:
                snapshot = open_snapshot(self.folder, version, before)
                if self.student is not None:
                    return seen, asked_by(snapshot, self.student)
                snapshot.load_encoder()  # so that a damaged student is told now, and not to the first query
                return seen, snapshot
            except SearchIndexError:
                if attempt == _ATTEMPTS - 1 or _mark(self.folder) == seen:
                    raise
        raise AssertionError


@dataclasses.dataclass(frozen=True)
class _Filtered:
    """A snapshot that finds only what meets some conditions, and those of the queries."""

    snapshot: Snapshot
    conditions: Sequence[Condition]

    def search(self, queries: Encoding, k: int, own: Sequence[Condition] = ()) -> Found:
        return self.snapshot.search(queries, k, [*self.conditions, *own])


def open_index(path: Path, student: Path | None = None) -> SearchIndex:
    """The index in a folder, or in the folder of the experiment that built it.

    Args:
        path: the folder.
        student: of a student, an experiment or an index, whose student encodes the queries in the place of the index's own; one that
            was trained from that with `student.frozen_documents` finds in the documents as they are what it learned to find.

    Raises:
        SearchIndexError: there is none, it was written by another version, it does not fit its student or documents, or the
            other student encodes documents otherwise.
        ConfigError: there is no student in that folder.
    """
    folder = index_folder(path)
    return SearchIndex(folder, None if student is None else student_in(student, read_version(folder).student_kind))


def snippet(text: str, query: str, words: int = 40) -> str:
    """The stretch of a text in which most of the query's words stand."""
    split = text.split()
    wanted = {word.strip(".,;:()").lower() for word in query.split() if len(word) > 3}
    before = [0, *itertools.accumulate(word.strip(".,;:()").lower() in wanted for word in split)]
    starts = range(max(1, len(split) - words + 1))
    best = max(starts, key=lambda start: before[min(start + words, len(split))] - before[start])  # the first of equal ones
    return f"{'... ' if best else ''}{' '.join(split[best : best + words])}{' ...' if best + words < len(split) else ''}"


def _mark(folder: Path) -> tuple[int, int, int] | None:
    """Changes with every version."""
    try:
        return mark_of(folder / MANIFEST)
    except FileNotFoundError:
        return None


def asked_query(query: str | Query) -> Query:
    """What is asked, as a query."""
    return query if isinstance(query, Query) else Query("query", query)


def as_conditions(where: Mapping[str, Any] | Sequence[Condition]) -> Sequence[Condition]:
    """Conditions as a user may give them, as conditions."""
    return conditions_from(where) if isinstance(where, Mapping) else where


def conditions_of(query: Query, where: Mapping[str, Any] | Sequence[Condition]) -> list[Condition]:
    """The conditions of a search, and the query's own."""
    return [*as_conditions(where), *conditions_from(query.among)]


def open_documents(path: Path) -> Iterator[Document]:
    """The documents of an index in a folder, or in that of the experiment that built it, deleted ones left out; its student is not loaded.

    Raises:
        SearchIndexError: there is none, or a file of it is damaged.
    """
    folder = index_folder(path)
    for segment in open_snapshot(folder, read_version(folder)).segments:
        yield from segment.live_documents()
