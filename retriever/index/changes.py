"""Changes to an index: built, added to, deleted from, compacted. Each makes a new version; readers go over to it at their next search."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.collection import Collection
from retriever.conversations.reading import READER
from retriever.encodings import DocumentEncodings, document_identity
from retriever.errors import DataError, SearchIndexError
from retriever.files import explain_full_disk, fingerprint, link_or_copy, lock, sync, write_text
from retriever.index.layout import (
    DELETIONS,
    MANIFEST,
    PARTS,
    SEGMENTS,
    STUDENTS,
    UsedSegment,
    Version,
    next_version,
    now,
    read_version,
    read_versions,
    readable_version,
    version_files,
    version_path,
    write_deleted,
    write_version,
)
from retriever.index.making import KeptEncodings, empty_folder, encode_documents, made, put_segment
from retriever.index.segments import DOCUMENTS, Segment, write_segment
from retriever.index.snapshot import Snapshot, open_snapshot
from retriever.progress import Quiet, Reporter
from retriever.settings.index import AutoSettings, IndexSettings
from retriever.tables.documents import DocumentTable, DocumentWriter
from retriever.types import Document

SMALL = 20_000
"""Documents up to which a segment counts as small: searched exactly, and put together with others."""

SMALL_SEGMENTS = 8
"""With more of them, an addition puts all small ones together."""


@dataclasses.dataclass(frozen=True)
class Changed:
    """What a change did: the version that it made, documents added, replaced and deleted, and how many there are now."""

    version: int
    added: int
    replaced: int
    deleted: int
    documents: int


def publish(
    folder: Path,
    settings: IndexSettings,
    student_kind: str,
    student_folder: Path,
    encoder: Any,
    vectors: DocumentEncodings,
    collection: Collection,
    reporter: Reporter | None = None,
) -> Version:
    """Makes an index of a collection: the first version in the folder, or a new one beside those that are there.

    Raises:
        ConfigError: there is no such kind of index.
        SearchIndexError: the vectors were made by another encoder.
    """
    reporter = reporter or Quiet()
    if vectors.encoder != document_identity(encoder):
        raise SearchIndexError(
            f"{vectors.folder}: these vectors were made by another student ({vectors.encoder}, not {document_identity(encoder)}). "
            "Encode again with: retriever index"
        )
    with changing(folder):
        _leave_other_layouts(folder)
        before = readable_version(folder)  # one that cannot be read is mended by the new one
        if before and sum(before.by_hand):
            added, deleted = before.by_hand
            reporter.say(
                f"{folder}: version {before.number} had {added:,} documents added and {deleted:,} deleted by hand; the new one is of the collection alone. "
                f"Go back with: retriever index rollback {folder} --to {before.number}"
            )
        partial = empty_folder(folder, ".building")
        collection.link_to(made(partial / DOCUMENTS))
        used = write_segment(folder, partial, settings, student_kind, vectors, reporter.say)
        _keep_student(student_folder, folder, encoder.identity)
        version = Version(
            number=next_version(folder),
            made=now(),
            change=f"built from {len(collection):,} documents",
            student_kind=student_kind,
            encoder=encoder.identity,
            document_encoder=vectors.encoder,
            collection=collection.fingerprint,
            settings=settings.model_dump(mode="json"),
            segments=(used,),
        )
        return write_version(folder, version)


def add(folder: Path, documents: Iterable[tuple[str, Document]], reporter: Reporter | None = None, before: Snapshot | None = None) -> Changed:
    """Adds documents, each with where it stands; one whose id is there already takes the place of the old one.

    A stop while they are encoded loses a block at most: the same documents given again continue.

    Args:
        folder: of the index.
        documents: read once.
        reporter: where progress is told.
        before: a version that is open already, whose student and segments are taken from there where they are still the same.

    Raises:
        DataError: a document breaks a rule, an id stands twice among them, or a field is of another kind than in the index.
    """
    reporter = reporter or Quiet()
    with changing(folder):
        snapshot = open_snapshot(folder, read_version(folder), before)
        partial = _written(folder, documents, snapshot)
        if partial is None:
            return Changed(snapshot.version.number, 0, 0, 0, len(snapshot))
        table = DocumentTable(partial / DOCUMENTS)
        old = snapshot.rows_of(table.doc_ids)
        replaced = old[old >= 0]
        number = snapshot.version.number + 1
        kept = deleted_from(folder, snapshot, replaced, number)
        small = [segment for segment in kept if segment.documents <= SMALL]
        if len(small) >= SMALL_SEGMENTS:
            reporter.say(f"{folder}: putting {len(small)} small segments together")
        vectors = encode_documents(snapshot.version, snapshot.encoder, table, partial, reporter)
        settings = AutoSettings() if len(table) <= SMALL else snapshot.version.index_settings
        used = write_segment(folder, partial, settings, snapshot.version.student_kind, vectors, reporter.say)
        added = len(table) - len(replaced)
        change = f"added {added:,}" + (f", replaced {len(replaced):,}" if len(replaced) else "")
        version = write_version(folder, _next(snapshot.version, change, (*kept, used), added=len(table), deleted=len(replaced)))
        if len(small) >= SMALL_SEGMENTS:
            whole = open_snapshot(folder, version, snapshot)
            together = [segment for segment in whole.segments if segment.used.documents <= SMALL]
            version = _put_together(folder, whole, together, AutoSettings(), "put small segments together", reporter)
    return Changed(version.number, added, len(replaced), 0, version.documents)


def delete(folder: Path, doc_ids: Sequence[str], ignore_missing: bool = False) -> Changed:
    """Deletes documents by their ids.

    Args:
        folder: of the index.
        doc_ids: of documents.
        ignore_missing: passes over those that are not there.

    Raises:
        DataError: one is not there; nothing is deleted then.
    """
    with changing(folder):
        snapshot = open_snapshot(folder, read_version(folder))
        wanted = list(dict.fromkeys(doc_ids))
        rows = snapshot.rows_of(wanted)
        absent = [doc_id for doc_id, row in zip(wanted, rows.tolist(), strict=True) if row < 0]
        if absent and not ignore_missing:
            more = f" ({len(absent):,} such ids)" if len(absent) > 1 else ""
            raise DataError(f"{folder}: there is no document {absent[0]}{more}; nothing was deleted. Leave it out, or pass over it with --ignore-missing")
        rows = rows[rows >= 0]
        if not len(rows):
            return Changed(snapshot.version.number, 0, 0, 0, len(snapshot))
        kept = deleted_from(folder, snapshot, rows, snapshot.version.number + 1)
        version = write_version(folder, _next(snapshot.version, f"deleted {len(rows):,}", kept, deleted=len(rows)))
    return Changed(version.number, 0, 0, len(rows), version.documents)


def compact(folder: Path, reporter: Reporter | None = None) -> Changed:
    """Puts all segments together into one without deleted documents; the old ones are kept until they are pruned."""
    with changing(folder):
        snapshot = open_snapshot(folder, read_version(folder))
        version = _put_together(folder, snapshot, snapshot.segments, snapshot.version.index_settings, "compacted", reporter or Quiet())
    return Changed(version.number, 0, 0, 0, version.documents)


def roll_back(folder: Path, number: int) -> Version:
    """Makes a new version that is as an earlier one was.

    Raises:
        SearchIndexError: that one is not kept.
    """
    with changing(folder):
        wanted = read_version(folder, number)
        version = wanted.model_copy(update={"number": next_version(folder), "made": now(), "change": f"back to version {number}"})
        open_snapshot(folder, version).load_encoder()
        return write_version(folder, version)


def prune(folder: Path) -> int:
    """Removes all versions but the current one, and what only they need; returns how many bytes that frees.

    What a reader has open it can go on reading.

    Raises:
        SearchIndexError: the current version cannot be opened. Nothing is removed then, so that an earlier one can be gone back to.
    """
    with changing(folder):
        current = read_version(folder)
        open_snapshot(folder, current)
        own = version_path(folder, current.number)
        for path in version_files(folder):
            if path != own:
                path.unlink()
        if not current.segments_made or readable_version(folder, current.number) is None:
            write_version(folder, current)  # after the versions, which gives room on a full disk, and before the segments, whose numbers it remembers
        return remove_orphans(folder)


def remove_orphans(folder: Path) -> int:
    """Removes segments, deletions and students that no version names, and what stopped changes left; returns their bytes. Under the lock only.

    While the file of a version is damaged, or set aside as such, only the latter is removed: nobody knows what that version names.
    """
    versions = read_versions(folder).values()
    kept = [version for version in versions if version is not None]
    orphans = [path for path in folder.glob(".*") if path.is_dir()]  # of changes that were stopped
    if len(kept) == len(versions):
        segments = {used.name for version in kept for used in version.segments}
        deletions = {used.deletions for version in kept for used in version.segments}
        students = {version.encoder for version in kept}
        named: dict[str, set[Any]] = {SEGMENTS: segments, DELETIONS: deletions, STUDENTS: students}
        orphans += [path for part, names in named.items() for path in sorted((folder / part).glob("*")) if path.name not in names]
    freed = 0
    for path in orphans:
        freed += sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return freed


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Holds the index's lock: one change at a time, readers are not kept from anything."""
    with explain_full_disk(folder), lock(folder / ".lock", "changing the index"):
        yield


def deleted_from(folder: Path, snapshot: Snapshot, rows: NDArray[np.int64], number: int) -> tuple[UsedSegment, ...]:
    """The segments of a snapshot with these rows deleted, for the version of this number."""
    used = []
    for start, end, segment in zip(snapshot.starts[:-1].tolist(), snapshot.starts[1:].tolist(), snapshot.segments, strict=True):
        own = rows[(rows >= start) & (rows < end)] - start
        if not len(own):
            used.append(segment.used)
            continue
        deleted = np.zeros(segment.used.documents, dtype=np.bool_) if segment.deleted is None else segment.deleted.copy()
        deleted[own] = True
        used.append(write_deleted(folder, segment.used, deleted, number))
    return tuple(used)


def _put_together(folder: Path, snapshot: Snapshot, segments: Sequence[Segment], settings: IndexSettings, change: str, reporter: Reporter) -> Version:
    """A version in which one new segment, at the end, holds the documents of some others."""

    def encodings(table: DocumentTable, partial: Path) -> DocumentEncodings:
        return KeptEncodings.of(snapshot, segments, partial) or encode_documents(snapshot.version, snapshot.encoder, table, partial, reporter)

    documents = (document for segment in segments for document in segment.live_documents())
    used = put_segment(folder, snapshot.version, documents, settings, encodings, reporter)
    names = {segment.used.name for segment in segments}
    others = tuple(segment.used for segment in snapshot.segments if segment.used.name not in names)
    return write_version(folder, _next(snapshot.version, change, (*others, *used)))


def _written(folder: Path, documents: Iterable[tuple[str, Document]], snapshot: Snapshot) -> Path | None:
    """A hidden folder with the documents, named by what they are, so that a stopped addition of the same ones is gone on with; None without documents."""
    incoming = empty_folder(folder, ".incoming")
    with DocumentWriter(made(incoming / DOCUMENTS)) as writer:
        for where, document in documents:
            writer.add(where, document)
    table = DocumentTable(incoming / DOCUMENTS)
    if not len(table):
        return None
    if repeated := table.repeated_ids():
        (earlier, later), doc_id = repeated[0], table.ids_of([repeated[0][1]])[0]
        raise DataError(f"document {later + 1}: the id {doc_id} stands already at document {earlier + 1}. Ids must be unique; nothing was added")
    known = snapshot.field_kinds
    for name, kind in table.fields.kinds.items():
        if known.get(name, kind) != kind:
            raise DataError(f'{folder}: the field "{name}" is a {kind} in the new documents and a {known[name]} in the index. Give all of them the same')
    partial = folder / f".adding-{fingerprint([table.fingerprint, snapshot.version.document_encoder])}"
    for other in folder.glob(".adding-*"):
        if other != partial:
            shutil.rmtree(other)
    for stale in made(partial).iterdir():
        if stale.name != "encodings":
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    (incoming / DOCUMENTS).rename(partial / DOCUMENTS)
    incoming.rmdir()
    return partial


def _next(before: Version, change: str, segments: tuple[UsedSegment, ...], added: int = 0, deleted: int = 0) -> Version:
    hand = (before.by_hand[0] + added, before.by_hand[1] + deleted)
    segments = tuple(used for used in segments if used.deleted < used.documents)
    return before.model_copy(update={"number": before.number + 1, "made": now(), "change": change, "by_hand": hand, "segments": segments})


def _leave_other_layouts(folder: Path) -> None:
    """Removes what an index of an earlier layout had in the folder; it cannot be opened any more."""
    if (folder / MANIFEST).exists() and not (folder / SEGMENTS).is_dir():
        for path in folder.iterdir():
            if path.name not in PARTS and not path.name.startswith("."):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _keep_student(source: Path, folder: Path, identity: str) -> None:
    """A copy of a student's folder, whole or not there at all; one that is there already reads conversations from now on as the folder says."""
    final = folder / STUDENTS / identity
    if final.exists():
        _keep_reader(source / READER, final / READER)
        return
    partial = folder / ".student"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=link_or_copy, ignore=shutil.ignore_patterns("*.md", "manifest.json"))
    for path in (*partial.rglob("*"), partial):
        sync(path)
    made(final.parent)
    partial.rename(final)
    sync(final.parent)


def _keep_reader(source: Path, kept: Path) -> None:
    """Makes a student's file on how it reads the same as another one, or as absent: the identity by which a student is kept says nothing of it."""
    if not source.is_file():
        kept.unlink(missing_ok=True)
    elif not kept.is_file() or kept.read_bytes() != source.read_bytes():
        write_text(kept, source.read_text(encoding="utf-8"))
