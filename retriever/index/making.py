"""A segment in the making: its documents are written into a hidden folder, and encoded, or their encodings taken from where they are kept."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import DocumentEncodings, encode_collection
from retriever.index.layout import UsedSegment, Version
from retriever.index.segments import DOCUMENTS, Segment, write_segment
from retriever.index.snapshot import Snapshot
from retriever.progress import Reporter
from retriever.ragged_encodings import encode_ragged
from retriever.settings.index import IndexSettings
from retriever.tables.documents import DocumentTable, DocumentWriter
from retriever.types import Document

TOGETHER = 1024
"""Documents whose encodings are in memory at a time."""


def put_segment(
    folder: Path,
    version: Version,
    documents: Iterable[Document],
    settings: IndexSettings,
    encodings: Callable[[DocumentTable, Path], DocumentEncodings],
    reporter: Reporter,
) -> list[UsedSegment]:
    """A new segment with documents that the index has already; none without documents.

    Args:
        folder: of the index.
        version: whose student made the encodings.
        documents: read once.
        settings: of the engine.
        encodings: gives those of the documents, from them or from elsewhere; may keep files in the folder that it is told.
        reporter: where progress is told.
    """
    partial = empty_folder(folder, ".merging")
    with DocumentWriter(made(partial / DOCUMENTS)) as writer:
        for document in documents:
            writer.add(document.doc_id, document)
    table = DocumentTable(partial / DOCUMENTS)
    return [write_segment(folder, partial, settings, version.student_kind, encodings(table, partial), reporter.say)] if len(table) else []


@dataclasses.dataclass(frozen=True)
class KeptEncodings:
    """The encodings of documents that an index has, where its engines keep them as they were given.

    Attributes:
        snapshot: of the index.
        live: int64 [n], the rows of the documents.
        folder: named in errors.
    """

    snapshot: Snapshot
    live: NDArray[np.int64]
    folder: Path

    @classmethod
    def of(cls, snapshot: Snapshot, segments: Sequence[Segment], folder: Path) -> KeptEncodings | None:
        """Of the documents of some segments that are not deleted; None where an engine keeps only an approximation, or there are none."""
        nothing = np.zeros(0, dtype=np.int64)
        if not segments or any(segment.index.encodings(nothing) is None for segment in segments):
            return None
        wanted = {segment.used.name for segment in segments}
        starts = zip(snapshot.starts.tolist(), snapshot.segments, strict=False)
        return cls(snapshot, np.concatenate([start + segment.live for start, segment in starts if segment.used.name in wanted]), folder / "encodings")

    @property
    def encoder(self) -> str:
        """What decides them."""
        return self.snapshot.version.document_encoder

    @property
    def dimensions(self) -> int:
        """As the encoder's."""
        return self.snapshot.segments[0].facts.dimensions

    def __len__(self) -> int:
        return len(self.live)

    def blocks(self) -> Iterator[Any]:
        """At most `TOGETHER` documents at a time."""
        for start in range(0, len(self.live), TOGETHER):
            yield self.snapshot.encodings(self.live[start : start + TOGETHER])

    def rows(self, rows: NDArray[np.int64]) -> Any:
        """Of the documents with these numbers among `live`."""
        return self.snapshot.encodings(self.live[rows])


def encode_documents(version: Version, encoder: Any, table: DocumentTable, partial: Path, reporter: Reporter) -> DocumentEncodings:
    """The encodings of the documents of a segment in the making, by the version's student; they are named as the version names them."""
    encode: Callable[..., Any] = encode_ragged if hasattr(encoder, "columns") else encode_collection
    with reporter.bar("encoding documents", len(table)) as advance:
        found: DocumentEncodings = dataclasses.replace(encode(encoder, table, partial / "encodings", advance), encoder=version.document_encoder)
        return found


def empty_folder(folder: Path, name: str) -> Path:
    """An empty hidden folder in the index."""
    shutil.rmtree(folder / name, ignore_errors=True)
    return made(folder / name)


def made(folder: Path) -> Path:
    """The folder, which is there when this returns."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder
