"""Whether an index is what it was when it was written, and what can be mended of one that is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retriever.errors import DataError, RetrieverError, SearchIndexError
from retriever.files import sha256_file
from retriever.index.changes import changing, remove_orphans
from retriever.index.layout import (
    DAMAGED,
    MANIFEST,
    STUDENTS,
    UsedSegment,
    Version,
    kept_versions,
    next_version,
    now,
    read_deleted,
    read_segment,
    read_version,
    read_versions,
    readable_version,
    segment_folder,
    version_path,
    write_version,
)
from retriever.index.making import encode_documents, put_segment
from retriever.index.segments import DOCUMENTS, left_of, open_segment
from retriever.index.snapshot import open_student
from retriever.progress import Quiet, Reporter
from retriever.tables.documents import DocumentTable
from retriever.tables.fields import FieldColumns

SAMPLE = 20
"""Documents of each segment that are encoded again and looked for."""

ROUNDING = 0.01
"""By which a score may differ for encodings kept in half precision and made in another batch."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong with an index, and whether `repair` can mend it.

    Attributes:
        where: the file or folder.
        what: one line.
        segment: the name of the segment that it is in; None for what is outside.
        documents_whole: whether that segment's documents can be read, so that it can be built again.
    """

    where: str
    what: str
    segment: str | None = None
    documents_whole: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def verify(folder: Path, reporter: Reporter | None = None) -> list[Problem]:
    """What is wrong with the current version: checksums, counts, ids, the student's fingerprint, and whether documents find themselves.

    Of other versions it reads the files that say what they are.

    Raises:
        SearchIndexError: there is no index, or its manifest cannot be read.
    """
    version = read_version(folder)
    problems: list[Problem] = []
    student: Any = None
    try:
        student = open_student(folder, version)
    except SearchIndexError as error:
        problems.append(Problem(str(folder / STUDENTS / version.encoder), str(error)))
    with (reporter or Quiet()).bar("verifying segments", len(version.segments)) as advance:
        for used in version.segments:
            problems += _problems_of(folder, used, version, student)
            advance(1)
    if not problems:
        problems += _repeated(folder, version)
    for number, wrong in _unreadable(folder, version):
        means = f"the current version stands in {MANIFEST} alone" if number == version.number else f"version {number} cannot be gone back to"
        problems.append(Problem(str(version_path(folder, number)), f"{wrong}; {means}"))
    return problems


def repair(folder: Path, reporter: Reporter | None = None) -> list[str]:
    """Mends what can be mended of the current version, and says what was done.

    A segment whose documents are whole is built again by the student, one whose documents are damaged is left out. A version whose file is
    damaged is set aside, and what only it may need stays until `prune`. What stopped changes left is removed.

    Raises:
        SearchIndexError: the student is damaged, or no version can be read: nothing can be built then.
    """
    reporter = reporter or Quiet()
    done: list[str] = []
    with changing(folder):
        version = _readable(folder, done)
        done += _versions_mended(folder, version)
        bad: dict[str, list[Problem]] = {}
        student = open_student(folder, version)
        for used in version.segments:
            if found := _problems_of(folder, used, version, student):
                bad[used.name] = found
        segments: list[UsedSegment] = []
        for used in version.segments:
            if used.name not in bad:
                segments.append(used)
            elif all(problem.documents_whole for problem in bad[used.name]):
                segments += _built_again(folder, used, version, student, reporter)
                done.append(f"segment {used.name} is built again from its {used.documents - used.deleted:,} documents ({bad[used.name][0].what})")
            else:
                done.append(f"segment {used.name} is left out: its documents are damaged. {used.documents - used.deleted:,} documents are lost; add them again")
        if bad:
            new = {"number": next_version(folder), "made": now(), "change": "repaired", "segments": tuple(segments)}
            write_version(folder, version.model_copy(update=new))
        freed = remove_orphans(folder)
        if freed:
            done.append(f"removed {freed:,} bytes that no version needs")
    return done


def stats(folder: Path) -> dict[str, Any]:
    """What an index holds and takes, as plain values."""
    version = read_version(folder)
    segments = []
    for used in version.segments:
        facts = read_segment(folder, used.name)
        texts = sum(path.stat().st_size for path in (segment_folder(folder, used.name) / DOCUMENTS).glob("*"))
        fields = FieldColumns(segment_folder(folder, used.name) / DOCUMENTS, used.documents).kinds
        found = {"name": used.name, "kind": facts.kind, "documents": used.documents, "deleted": used.deleted, "dimensions": facts.dimensions}
        segments.append({**found, "bytes": facts.bytes, "document_bytes": texts, "fields": fields, "told": facts.told})
    return {
        "index": str(folder),
        "version": version.number,
        "documents": version.documents,
        "deleted": sum(used.deleted for used in version.segments),
        "student_kind": version.student_kind,
        "encoder": version.encoder,
        "document_encoder": version.document_encoder,
        "bytes": sum(segment["bytes"] for segment in segments),
        "document_bytes": sum(segment["document_bytes"] for segment in segments),
        "segments": segments,
        "versions": [_told(number, one) for number, one in read_versions(folder).items()],
    }


def _told(number: int, version: Version | None) -> dict[str, Any]:
    """A version in a list of versions; of one whose file is damaged nothing else is known."""
    if version is None:
        return {"number": number, "made": None, "change": "damaged", "documents": None}
    return {"number": number, "made": version.made, "change": version.change, "documents": version.documents}


def _problems_of(folder: Path, used: UsedSegment, version: Version, student: Any) -> list[Problem]:
    own = segment_folder(folder, used.name)
    whole = _documents_whole(own / DOCUMENTS, used)
    try:
        facts = read_segment(folder, used.name)
        problems = [
            Problem(str(own / name), "missing" if not (own / name).is_file() else "its bytes are not those that were written", used.name, whole)
            for name, checksum in facts.sha256.items()
            if not (own / name).is_file() or sha256_file(own / name) != checksum
        ]
        read_deleted(folder, used)
        if not problems:
            segment = open_segment(folder, used)
            if facts.encoder != version.document_encoder:
                problems.append(Problem(str(own), f"built with the student {facts.encoder}, the index has {version.document_encoder}", used.name, whole))
            elif student is not None and (lost := _lost(segment, student)):
                problems.append(Problem(str(own), f"the document {lost} is not found by its own text", used.name, whole))
    except RetrieverError as error:
        problems = [Problem(str(own), str(error), used.name, whole)]
    return problems


def _documents_whole(folder: Path, used: UsedSegment) -> bool:
    """Whether all documents of a segment can be read."""
    try:
        return sum(1 for _ in DocumentTable(folder).documents()) == used.documents
    except DataError:
        return False


def _lost(segment: Any, student: Any) -> str | None:
    """A document of a sample that the student encodes otherwise than it lies in the index, or that a search for it alone misses; None without one."""
    rows = segment.live[np.linspace(0, max(len(segment.live) - 1, 0), min(SAMPLE, len(segment.live))).astype(np.int64)]
    documents = segment.documents.documents_by_row(rows)
    again = student.encode_documents(documents)
    for place, row in enumerate(rows.tolist()):
        allowed = np.zeros(len(segment.documents), dtype=np.bool_)
        allowed[row] = True
        found, _ = segment.index.search(again[np.array([place])], 1, allowed)
        own = again[np.array([place])]
        kept = segment.index.encodings(np.array([row]))
        scores = (student.score(own, own)[0], student.score(own, own if kept is None else kept)[0])
        if not np.isclose(*scores, rtol=ROUNDING, atol=ROUNDING) or (len(found[0]) and found[0][0] != row):
            return str(documents[place].doc_id)
    return None


def _repeated(folder: Path, version: Version) -> list[Problem]:
    """Documents that can be found twice under one id."""
    seen: set[str] = set()
    for used in version.segments:
        segment = open_segment(folder, used)
        for doc_id in segment.documents.ids_of(segment.live):
            if doc_id in seen:
                return [Problem(str(segment_folder(folder, used.name)), f"the document id {doc_id} stands twice", used.name)]
            seen.add(doc_id)
    return []


def _readable(folder: Path, done: list[str]) -> Version:
    """The current version, or the latest kept one where the manifest is damaged; under a new number where there was a later one."""
    try:
        return read_version(folder)
    except SearchIndexError as error:
        version = next(filter(None, (readable_version(folder, number) for number in reversed(kept_versions(folder)))), None)
        if version is None:
            raise
        before, after = version.number, next_version(folder)
        if after > before + 1:
            version = version.model_copy(update={"number": after, "made": now(), "change": f"back to version {before}"})
        done.append(f"version {before} is the current one again{f', as version {after}' if after > before + 1 else ''} ({error})")
        return write_version(folder, version)


def _unreadable(folder: Path, current: Version) -> list[tuple[int, str]]:
    """The numbers of versions whose files are damaged, or missing as only the current one's can be known to be, each with which of both."""
    numbers = sorted({*kept_versions(folder), current.number})
    unreadable = [number for number in numbers if readable_version(folder, number) is None]
    return [(number, "damaged" if version_path(folder, number).exists() else "missing") for number in unreadable]


def _versions_mended(folder: Path, current: Version) -> Iterator[str]:
    """Writes the current version's file again, sets damaged ones of others aside, and says so."""
    for number, wrong in _unreadable(folder, current):
        path = version_path(folder, number)
        if number == current.number:
            write_version(folder, current)
            yield f"{path} was {wrong} and is written again from {MANIFEST}"
        else:
            aside = path.rename(path.with_name(f"{path.name}{DAMAGED}"))
            yield f"{path} is damaged and set aside as {aside.name}; what only version {number} may need stays until: retriever index prune {folder}"


def _built_again(folder: Path, used: UsedSegment, version: Version, student: Any, reporter: Reporter) -> list[UsedSegment]:
    """A new segment with the live documents of a damaged one."""
    documents = DocumentTable(segment_folder(folder, used.name) / DOCUMENTS)
    try:
        deleted = read_deleted(folder, used)
    except SearchIndexError:
        deleted = None  # what was deleted comes back rather than that something is lost
    rest = left_of(documents, deleted)
    return put_segment(
        folder, version, rest, version.index_settings, lambda table, partial: encode_documents(version, student, table, partial, reporter), reporter
    )
