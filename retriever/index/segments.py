"""Segments of an index: documents and the engine over their encodings, written once and then only read."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import DocumentEncodings
from retriever.errors import ConfigError, DataError, SearchIndexError
from retriever.files import make_folder, sha256_file, sync, write_json
from retriever.filters import Condition, met
from retriever.index.choice import choose
from retriever.index.layout import AGAIN, SEGMENT, SEGMENTS, SegmentFacts, UsedSegment, Version, next_segment, read_deleted, read_segment, segment_folder
from retriever.plugins import load_kind
from retriever.settings.index import AutoSettings, IndexSettings
from retriever.tables.documents import DocumentTable
from retriever.tables.fields import FieldColumns, Kind
from retriever.types import Document
from retriever.vector_index import VectorIndex

DOCUMENTS = "documents"
_MASKS = 16
"""Filters whose answer is remembered."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """An opened segment.

    Attributes:
        used: how the version uses it.
        facts: what it is.
        index: the engine.
        documents: N, memory-mapped.
        deleted: bool [N], or None where none is.
        allowed: bool [N], the documents that may be found under some conditions, or None where all may.
    """

    used: UsedSegment
    facts: SegmentFacts
    index: VectorIndex
    documents: DocumentTable
    deleted: NDArray[np.bool_] | None
    allowed: Callable[[tuple[Condition, ...]], NDArray[np.bool_] | None]

    def live_documents(self) -> Iterator[Document]:
        """The documents that are not deleted, in their order."""
        return left_of(self.documents, self.deleted)

    @property
    def live(self) -> NDArray[np.int64]:
        """The rows of documents that are not deleted."""
        return np.arange(len(self.documents)) if self.deleted is None else np.flatnonzero(~self.deleted)


def write_segment(
    folder: Path, partial: Path, settings: IndexSettings, student_kind: str, vectors: DocumentEncodings, say: Callable[[str], None]
) -> UsedSegment:
    """Builds the engine beside the documents in a hidden folder, and gives that its place among the segments.

    Args:
        folder: of the index.
        partial: on the same disk, with the documents below `DOCUMENTS`.
        settings: of the engine; "auto" becomes one of a kind here.
        student_kind: whose encodings they are.
        vectors: of these documents, in their order; they may lie below `partial`, and are removed there.
        say: is told what "auto" chose, and why.
    """
    if isinstance(settings, AutoSettings):
        settings, reason = choose(settings, student_kind, len(vectors), vectors.dimensions)
        say(f"index: {settings.kind}; {reason}")
    told = load_kind("indexing", settings.kind, "index.kind").build(vectors, partial, settings) or {}
    if vectors.folder.is_relative_to(partial):
        shutil.rmtree(vectors.folder, ignore_errors=True)
    files = sorted(path for path in partial.rglob("*") if path.is_file() and path.name != SEGMENT)
    facts = SegmentFacts(
        kind=settings.kind,
        settings=settings.model_dump(mode="json"),
        told=told,
        documents=len(vectors),
        dimensions=vectors.dimensions,
        encoder=vectors.encoder,
        bytes=sum(path.stat().st_size for path in files if path.parent != partial / DOCUMENTS),
        sha256={path.relative_to(partial).as_posix(): sha256_file(path) for path in files},
    )
    write_json(partial / SEGMENT, facts.model_dump(mode="json"))
    for path in (*partial.rglob("*"), partial):
        sync(path)
    make_folder(folder / SEGMENTS)
    name = next_segment(folder)
    os.replace(partial, segment_folder(folder, name))
    sync(folder / SEGMENTS)
    return UsedSegment(name=name, documents=facts.documents)


def open_segment(folder: Path, used: UsedSegment) -> Segment:
    """A segment of a version.

    Raises:
        SearchIndexError: a file of it is missing or damaged, or they do not fit together.
    """
    own = segment_folder(folder, used.name)
    facts = read_segment(folder, used.name)
    try:
        index = load_kind("indexing", facts.kind, str(own)).open_index(own)
        documents = DocumentTable(own / DOCUMENTS)
    except (DataError, ConfigError) as error:
        what = "documents are missing or damaged" if isinstance(error, DataError) else f"engine is unknown ({error})"
        raise SearchIndexError(f"{own}: its {what}. {AGAIN}") from error
    if not len(index) == len(documents) == facts.documents == used.documents:
        counts = f"{len(index)} vectors, {len(documents)} documents and {used.documents} in the index"
        raise SearchIndexError(f"{own}: {counts} disagree. {AGAIN}")
    deleted = read_deleted(folder, used)
    return Segment(used, facts, index, documents, deleted, _allowing(documents, deleted))


def left_of(documents: DocumentTable, deleted: NDArray[np.bool_] | None) -> Iterator[Document]:
    """The documents of a table that are not deleted, read once from the first to the last."""
    return documents.documents() if deleted is None else itertools.compress(documents.documents(), (~deleted).tolist())


def fields_of(folder: Path, version: Version) -> dict[str, Kind]:
    """What the values of each field of a version's documents are; opens nothing else."""
    tables = (FieldColumns(segment_folder(folder, used.name) / DOCUMENTS, used.documents) for used in version.segments)
    return {name: kind for table in tables for name, kind in table.kinds.items()}


def _allowing(documents: DocumentTable, deleted: NDArray[np.bool_] | None) -> Callable[[tuple[Condition, ...]], NDArray[np.bool_] | None]:
    live = None if deleted is None else ~deleted

    @lru_cache(_MASKS)
    def allowed(conditions: tuple[Condition, ...]) -> NDArray[np.bool_] | None:
        if not conditions:
            return live
        found = met(documents.fields, conditions)
        return found if live is None else found & live

    return allowed
