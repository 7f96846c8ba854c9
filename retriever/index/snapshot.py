"""One version of an index, opened: it answers the same whatever is changed meanwhile."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import Encoder, Encoding, document_identity
from retriever.errors import ConfigError, SearchIndexError
from retriever.filters import Condition, check_conditions
from retriever.index.layout import AGAIN, MANIFEST, STUDENTS, Version, index_folder, read_segment, read_version
from retriever.index.segments import Segment, open_segment
from retriever.plugins import load_kind
from retriever.ragged import joined
from retriever.runs import Strings, strings
from retriever.tables.fields import Kind
from retriever.types import Document
from retriever.vector_index import Found


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A version with its student and its segments. Rows count through the segments in their order, deleted documents included.

    Attributes:
        folder: of the index.
        version: which.
        segments: opened.
        load_encoder: gives the student, loaded at the first call: deleting needs none.
    """

    folder: Path
    version: Version
    segments: tuple[Segment, ...]
    load_encoder: Callable[[], Encoder]

    @property
    def encoder(self) -> Encoder:
        """The student.

        Raises:
            SearchIndexError: it cannot be loaded, or it is another one.
        """
        return self.load_encoder()

    def __len__(self) -> int:
        """How many documents can be found."""
        return self.version.documents

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """int64 [segments + 1], where the rows of each begin, and N."""
        return np.concatenate([[0], np.cumsum([segment.used.documents for segment in self.segments])]).astype(np.int64)

    @cached_property
    def field_kinds(self) -> Mapping[str, Kind]:
        """What the values of each field of the documents are."""
        return {name: kind for segment in self.segments for name, kind in segment.documents.fields.kinds.items()}

    def search(self, queries: Encoding, k: int, conditions: Sequence[Condition] = ()) -> Found:
        """Rows and scores of the best documents of each query that meet all conditions, best first.

        Raises:
            ConfigError: the documents' fields cannot answer a condition.
            SearchIndexError: the queries have another dimension, or are not finite.
        """
        if conditions:
            check_conditions(self.field_kinds, conditions, str(self.folder))
        found = [segment.index.search(queries, k, segment.allowed(tuple(conditions))) for segment in self.segments]
        return found[0] if len(found) == 1 else self._merged(found, len(queries), k)

    def documents_by_row(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Document]:
        """The documents of rows, in the order of `rows`."""
        return self._gather(rows, lambda segment, own: segment.documents.documents_by_row(own))

    def ids_of(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The ids of rows, in the order of `rows`."""
        return self._gather(rows, lambda segment, own: segment.documents.ids_of(own))

    def rows_of(self, doc_ids: Sequence[str] | Strings) -> NDArray[np.int64]:
        """The rows of documents that can be found, int64 in the order of their ids; -1 for an id that is not there."""
        wanted = strings(doc_ids)
        rows = np.full(len(wanted), -1, dtype=np.int64)
        for start, segment in zip(self.starts.tolist(), self.segments, strict=False):
            own = segment.documents.rows_of(wanted)
            there = own >= 0
            if segment.deleted is not None:
                there[there] = ~segment.deleted[own[there]]
            rows[there] = start + own[there]
        return rows

    def encodings(self, rows: NDArray[np.int64]) -> Any:
        """The encodings of the documents of rows; made anew from their texts where a segment keeps only an approximation."""
        places = np.searchsorted(self.starts, rows, side="right") - 1
        there = np.unique(places).tolist()
        parts = [self._encodings_in(self.segments[place], rows[places == place] - self.starts[place]) for place in there]
        if len(parts) == 1:
            return parts[0]
        return joined(parts)[np.argsort(np.argsort(places, kind="stable"))]

    def _encodings_in(self, segment: Segment, rows: NDArray[np.int64]) -> Any:
        kept = segment.index.encodings(rows)
        return self.encoder.encode_documents(segment.documents.documents_by_row(rows)) if kept is None else kept

    def _gather(self, rows: Sequence[int] | NDArray[np.int64], read: Any) -> list[Any]:
        wanted = np.asarray(rows, dtype=np.int64)
        if len(self.segments) == 1:
            return list(read(self.segments[0], wanted))
        gathered = np.empty(len(wanted), dtype=np.object_)
        places = np.searchsorted(self.starts, wanted, side="right") - 1
        for place in np.unique(places).tolist():
            here = np.flatnonzero(places == place)
            for number, value in zip(here.tolist(), read(self.segments[place], wanted[here] - self.starts[place]), strict=True):
                gathered[number] = value
        return list(gathered)

    def _merged(self, found: Sequence[Found], queries: int, k: int) -> Found:
        """The best k of what the segments found; equal ones in the order of their rows."""
        starts, rows, scores = self.starts[:-1].tolist(), [], []
        for query in range(queries):
            together = np.concatenate([np.zeros(0, dtype=np.int64), *(own[query] + start for (own, _), start in zip(found, starts, strict=True))])
            values = np.concatenate([np.zeros(0, dtype=np.float32), *(own[query] for _, own in found)])
            best = np.argsort(-values, kind="stable")[:k]
            rows.append(together[best])
            scores.append(values[best])
        return rows, scores


def open_snapshot(folder: Path, version: Version, before: Snapshot | None = None) -> Snapshot:
    """A version, opened; what an earlier snapshot has open of it is taken from there, unless a segment of that name is another one by now.

    Raises:
        SearchIndexError: a file is missing or damaged, or a segment was made by another student.
    """
    same = before is not None and before.version.encoder == version.encoder
    load = before.load_encoder if before and same else cache(lambda: open_student(folder, version))
    known = {segment.used: segment for segment in before.segments} if before else {}
    segments = tuple(_still_there(folder, known.get(used)) or open_segment(folder, used) for used in version.segments)
    for segment in segments:
        if segment.facts.encoder != version.document_encoder:
            raise SearchIndexError(
                f"{folder}: segment {segment.used.name} was built with the student {segment.facts.encoder}, the index has {version.document_encoder}. {AGAIN}"
            )
    return Snapshot(folder, version, segments, load)


def _still_there(folder: Path, segment: Segment | None) -> Segment | None:
    """An open segment whose folder still holds what was opened, by its checksums; names alone were given again by older programs."""
    return segment if segment is not None and read_segment(folder, segment.used.name) == segment.facts else None


def open_student(folder: Path, version: Version) -> Any:
    """The student of a version.

    Raises:
        SearchIndexError: it cannot be loaded, or it is another one than the documents were encoded with.
    """
    own = folder / STUDENTS / version.encoder
    try:
        student = load_kind("students", version.student_kind, str(folder)).load_folder(own)
    except ConfigError as error:
        raise SearchIndexError(f"{folder}: its student cannot be loaded ({error}). {AGAIN}") from error
    if student.identity != version.encoder:
        raise SearchIndexError(f"{folder}: built with the student {version.encoder}, but {own} holds {student.identity}. {AGAIN}")
    return student


def asked_by(snapshot: Snapshot, student: Any) -> Snapshot:
    """The same version, whose queries another student encodes, such as one that was trained from its own while documents were frozen.

    Raises:
        SearchIndexError: that student encodes documents otherwise than they are encoded here.
    """
    version, own = snapshot.version, document_identity(student)
    if own != version.document_encoder and student.identity != version.encoder:
        raise SearchIndexError(
            f"{snapshot.folder}: its documents were encoded by {version.document_encoder}, and the student that is to search it encodes them as {own} does. "
            "Take one that was trained from that of the index with student.frozen_documents = true, or build an index of its own"
        )
    return dataclasses.replace(snapshot, load_encoder=lambda: student)


def student_in(folder: Path, kind: str) -> Any:
    """The student in a folder: of an experiment, of an index, or the student's own.

    Args:
        folder: where it is looked for.
        kind: of one in a folder of its own.

    Raises:
        ConfigError: there is none.
        SearchIndexError: that of an index cannot be loaded.
    """
    index = index_folder(folder)
    if (index / MANIFEST).is_file():
        return open_student(index, read_version(index))
    own = next((path for path in (folder / "train" / "student", folder) if (path / "modules.json").is_file()), None)
    if own is None:
        raise ConfigError(f"--student {folder}: no student here. Name the folder of an experiment, of an index or of a student")
    return load_kind("students", kind, str(folder)).load_folder(own)
