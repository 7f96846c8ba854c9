"""An index carried to an engine, or into the files of other programs: its documents with the encodings that it keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast, get_args

from retriever.encodings import Encoding
from retriever.errors import ConfigError
from retriever.files import fingerprint
from retriever.index.exports import export_faiss, export_impacts
from retriever.index.segments import Segment
from retriever.index.snapshot import Snapshot
from retriever.progress import Quiet, Reporter
from retriever.remote.engine import Facts
from retriever.remote.upload import Uploaded, upload
from retriever.types import Document

TOGETHER = 1024
"""Documents whose texts and encodings are in memory at a time."""

Format = Literal["impacts", "faiss"]


def known_format(name: str) -> Format:
    """The name itself, if it is one.

    Raises:
        ConfigError: it is none.
    """
    if name not in get_args(Format):
        raise ConfigError(f'--format "{name}" is unknown; allowed are {" and ".join(get_args(Format))}')
    return cast(Format, name)


def facts_of(snapshot: Snapshot) -> Facts:
    """Whose encodings the documents of a version have."""
    version = snapshot.version
    if not snapshot.segments:
        raise ConfigError(f"{snapshot.folder}: the index is empty, there is nothing to carry elsewhere")
    documents = fingerprint([version.document_encoder, *(_content_of(segment) for segment in snapshot.segments)])
    return Facts(version.document_encoder, version.student_kind, len(snapshot), snapshot.segments[0].facts.dimensions, documents)


def _content_of(segment: Segment) -> list[Any]:
    """What a segment holds, by its checksums, and which of its documents are deleted; names would be the same in a copy that was changed otherwise."""
    return [segment.facts.sha256, None if segment.deleted is None else hashlib.sha256(segment.deleted.tobytes()).hexdigest()]


def blocks_of(snapshot: Snapshot) -> Iterator[tuple[list[Document], Encoding]]:
    """The documents that can be found, in the order of their rows, each block with its encodings."""
    for start, segment in zip(snapshot.starts.tolist(), snapshot.segments, strict=False):
        rows = start + segment.live
        for first in range(0, len(rows), TOGETHER):
            some = rows[first : first + TOGETHER]
            yield snapshot.documents_by_row(some), snapshot.encodings(some)


def upload_index(snapshot: Snapshot, address: str, reporter: Reporter | None = None) -> Uploaded:
    """Fills a collection of an engine with a version of an index; one that was stopped goes on. As `retriever.remote.upload.upload` says."""
    facts = facts_of(snapshot)
    with (reporter or Quiet()).bar(f"uploading to {address}", facts.documents) as advance:
        return upload(address, blocks_of(snapshot), facts, advance)


def export_index(snapshot: Snapshot, folder: Path, form: Format) -> dict[str, Any]:
    """Writes a version for Anserini and Pyserini: impacts to be indexed with Lucene, or a FAISS index with its document ids.

    Raises:
        ConfigError: the student is of another kind than the form is for.
    """
    facts = facts_of(snapshot)
    if form == "faiss":
        return export_faiss(folder, blocks_of(snapshot), facts)
    if facts.student_kind != "sparse":
        raise ConfigError(f'{snapshot.folder}: impacts are of a sparse student, this is a {facts.student_kind} one. Choose --format "faiss", or upload it')
    encoder: Any = snapshot.encoder
    return export_impacts(folder, blocks_of(snapshot), facts, encoder.vocabulary)
