"""Care for a store of teacher scores: verify, list, merge, compact, drop. A stop at any instant leaves a store that reads the same."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retriever.collection import Collection
from retriever.errors import DataError, StoreError
from retriever.files import lock, sync, write_json
from retriever.scores.files import StoreFiles, read_json
from retriever.scores.shards import (
    DamagedShardError,
    ShardProblem,
    check_shard,
    checksum_of,
    encode_table,
    joined_shards,
    list_shards,
    next_number,
    read_shard,
    redone,
    remove_temporaries,
    with_dictionaries,
    write_shard,
)
from retriever.types import TeacherIdentity, Unit, Usage

SHARD_ROWS = 100_000
"""Pairs of a shard that `compact` writes, at most."""


@dataclasses.dataclass(frozen=True)
class TeacherEntry:
    """A teacher in a store: who it is, how many pairs it scored and how, and what that takes on the disk.

    `pairs` counts a pair twice that two merged stores both had, until the store is compacted.
    """

    name: str
    fingerprint: str
    kind: str
    unit: Unit
    pairs: int
    mean: float
    std: float
    truncated: float
    shards: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Change:
    """What merging or compacting did to one teacher's folder: shards and pairs that were written, shards and pairs that are gone."""

    teacher: str
    shards_written: int
    pairs_written: int
    shards_removed: int = 0
    pairs_removed: int = 0


# Looking


def verify_store(folder: Path) -> list[ShardProblem]:
    """What is wrong in a store, nothing changed: checksums, ids, teacher.json; empty when all is well.

    Where the experiment's collection lies beside the store, the documents of all pairs are looked up in it too.

    Raises:
        StoreError: there is no store.
    """
    files = StoreFiles.at(folder)
    problems = files.verify()
    collection = _collection_beside(files)
    if collection is None:
        return problems
    named = {problem.path for problem in problems}
    shards = [path for teacher in _teacher_folders(files) for path in list_shards(teacher) if path not in named]
    return problems + [problem for path in shards if (problem := _check_documents(path, collection)) is not None]


def list_teachers(folder: Path) -> list[TeacherEntry]:
    """The teachers of a store with their statistics, by name.

    Raises:
        StoreError: there is no store, or the file of a teacher is damaged.
    """
    files = StoreFiles.at(folder)
    entries = []
    for identity in files.teachers():
        statistics, shards = files.statistics(identity.fingerprint), list_shards(files.folder_of(identity.fingerprint))
        size = sum(path.stat().st_size for path in shards)
        numbers = (statistics.pairs, statistics.mean, statistics.std, statistics.truncated, len(shards), size)
        entries.append(TeacherEntry(identity.name, identity.fingerprint, identity.kind, identity.unit, *numbers))
    return sorted(entries, key=lambda entry: (entry.name, entry.fingerprint))


def _collection_beside(files: StoreFiles) -> Collection | None:
    try:
        collection = Collection(files.folder.parent / "collection")
    except DataError:
        return None
    return collection if collection.fingerprint == files.facts().get("collection") else None


def _check_documents(path: Path, collection: Collection) -> ShardProblem | None:
    """Whether the documents of a shard are the collection's, by id and text."""
    table = read_shard(path, ["doc_id", "doc_variant"])
    doc_ids = table["doc_id"].cast(pa.string()).to_pylist()
    rows = collection.rows_of(doc_ids)
    wrong = (rows < 0) | (collection.variants[np.maximum(rows, 0)] != table["doc_variant"].to_numpy())
    if not wrong.any():
        return None
    return ShardProblem(
        path, f"{int(wrong.sum()):,} of its pairs name a document that the collection lacks or has with another text, such as {doc_ids[int(np.argmax(wrong))]}"
    )


# Changing


def merge_stores(sources: Sequence[Path], target: Path) -> list[Change]:
    """Copies the shards of some stores into another of the same collection; those that are there already are left as they are.

    The sources stay. A pair that several stores have is kept in each one's shard until the target is compacted. The same
    call again changes nothing; after a stop it copies what is missing.

    Args:
        sources: stores, or work folders of experiments.
        target: a store or a work folder; a new store is made where there is none.

    Returns:
        One change for each teacher of each source.

    Raises:
        StoreError: a store is of another collection, or a source has damage; nothing was copied then.
        RetrieverError: somebody scores in one of the stores, or the disk is full.
    """
    found = [StoreFiles.at(source) for source in sources]
    into = _target(found[0], target)
    for files in found:
        _check_source(files, into)
    return [_merge_teacher(files, identity, into) for files in found for identity in files.teachers()]


def _target(source: StoreFiles, target: Path) -> StoreFiles:
    """The store to merge into; a new one has no teachers yet."""
    try:
        return StoreFiles.at(target)
    except StoreError:
        if (target / "store.json").exists() or (target / "score" / "store.json").exists():
            raise
    work_folder = (target / "collection").is_dir()
    files = StoreFiles(target / "score" if work_folder else target)
    write_json(files.folder / "store.json", source.facts())
    return files


def _check_source(source: StoreFiles, target: StoreFiles) -> None:
    if source.folder.resolve() == target.folder.resolve():
        raise StoreError(f"{source.folder}: is the store that it would be merged into. Name another one")
    theirs, ours = source.facts(), target.facts()
    if theirs.get("collection") != ours.get("collection"):
        raise StoreError(
            f'{source.folder}: the scores belong to the collection "{theirs.get("name")}" ({theirs.get("collection")}), those of {target.folder} '
            f'to "{ours.get("name")}" ({ours.get("collection")}). Only stores of one collection can be merged'
        )
    if problems := [problem for folder in _teacher_folders(source) for path in list_shards(folder) if (problem := check_shard(path)) is not None]:
        raise StoreError(f'{problems[0]} ({len(problems)} such). Nothing was merged. Run "retriever score" where the store was made, which scores them again')


def _merge_teacher(source: StoreFiles, identity: TeacherIdentity, target: StoreFiles) -> Change:
    theirs, ours = source.folder_of(identity.fingerprint), target.folder_of(identity.fingerprint)
    with lock(theirs / ".lock", f'using "{identity.name}"'), lock(ours / ".lock", f'using "{identity.name}"'):
        remove_temporaries(ours)
        present = {checksum_of(path) for path in list_shards(ours)}
        copied = [path for path in list_shards(theirs) if checksum_of(path) not in present]
        target.introduce(identity)
        for number, path in enumerate(copied, next_number(ours)):
            write_shard(ours, number, path.read_bytes())
        if copied:
            target.add_usage(identity.fingerprint, Usage(**read_json(theirs / "teacher.json").get("usage", {})))
        target.summarise(identity.fingerprint)
    return Change(identity.name, len(copied), sum(_rows(path) for path in copied))


def compact_store(folder: Path, shard_rows: int = SHARD_ROWS) -> list[Change]:
    """Joins the shards of each teacher into few, sorted by texts; of a pair that stands several times, one stays.

    The new shards are written before the old are removed: a stop in between leaves pairs twice, which read the same, and
    the same call again finishes. Of unequal scores of one pair (of merged stores) the one stays that was read before.
    Equal scores give equal bytes, however they were cut. A teacher's scores must fit in memory, about 100 bytes a pair.

    Args:
        folder: a store or a work folder.
        shard_rows: pairs of a new shard, at most.

    Raises:
        StoreError: a shard is damaged; that teacher and those after it are left as they are.
        RetrieverError: somebody scores here, or the disk is full; nothing is lost.
    """
    files = StoreFiles.at(folder)
    return [_compact_teacher(files, identity, shard_rows) for identity in files.teachers()]


def _compact_teacher(files: StoreFiles, identity: TeacherIdentity, shard_rows: int) -> Change:
    folder = files.folder_of(identity.fingerprint)
    with lock(folder / ".lock", f'using "{identity.name}"'):
        remove_temporaries(folder)
        old = list_shards(folder)
        try:
            table = joined_shards(old, identity.fingerprint) if old else None
        except DamagedShardError as error:
            raise StoreError(f'{error}. Run "retriever score" with this teacher first: it scores the pairs of the shard again') from error
        if table is None:
            return Change(identity.name, 0, 0)
        for path in redone(folder):  # before the numbers that prove it are free again; writing a shard puts this on the disk first
            path.unlink()
        kept = table.take(pa.array(_one_of_each(table)))
        data = [encode_table(with_dictionaries(kept.slice(start, shard_rows))) for start in range(0, kept.num_rows, shard_rows)]
        if [path.read_bytes() for path in old] == data:
            return Change(identity.name, 0, 0)
        for number, shard in enumerate(data, next_number(folder)):
            write_shard(folder, number, shard)
        for path in old:
            path.unlink()
        sync(folder)
        files.summarise(identity.fingerprint)
    return Change(identity.name, len(data), kept.num_rows, len(old), table.num_rows)


def _one_of_each(table: pa.Table) -> NDArray[np.int64]:
    """The last row of each pair, by query, list and document; the last shard is the one that reading believes."""
    lists = table["list_id"].fill_null(0).to_numpy()
    columns = (table["doc_variant"].to_numpy(), lists, table["query_variant"].to_numpy())
    order = np.lexsort((np.arange(table.num_rows), *columns))
    differs = np.zeros(table.num_rows, dtype=np.bool_)
    differs[-1:] = True
    for column in columns:
        differs[:-1] |= column[order][1:] != column[order][:-1]
    return np.asarray(order[differs], dtype=np.int64)


def drop_teacher(folder: Path, teacher: str) -> TeacherIdentity:
    """Removes all scores of a teacher from a store; says whose they were. A stop in between leaves them whole or gone.

    Raises:
        StoreError: no teacher has that name or fingerprint, or several have the name.
        RetrieverError: somebody scores with that teacher here.
    """
    files = StoreFiles.at(folder)
    identity = find_teacher(files, teacher)
    path = files.folder_of(identity.fingerprint)
    for left in path.parent.glob(".dropped-*"):
        shutil.rmtree(left)
    with lock(path / ".lock", f'using "{identity.name}"'):
        aside = path.with_name(f".dropped-{path.name}")
        os.replace(path, aside)
        sync(path.parent)
        shutil.rmtree(aside)
    return identity


def find_teacher(files: StoreFiles, teacher: str) -> TeacherIdentity:
    """The teacher of a store with a name or a fingerprint.

    Raises:
        StoreError: none has it, or several.
    """
    known = files.teachers()
    found = [identity for identity in known if teacher in (identity.fingerprint, identity.name)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{identity.name} ({identity.fingerprint})" for identity in found or known) or "none"
    what = f'several teachers are named "{teacher}"' if found else f'no teacher is named "{teacher}"'
    raise StoreError(f"{files.folder}: {what}; {'they are' if found else 'there are'}: {listed}. Give the name or the fingerprint of one")


def _teacher_folders(files: StoreFiles) -> list[Path]:
    return sorted(files.folder.glob("scores/teacher=*"))


def _rows(path: Path) -> int:
    return int(read_shard(path, ["score"]).num_rows)
