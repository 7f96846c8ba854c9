"""The files of one teacher's scores: shards whose name carries the checksum of their bytes, so that each proves itself."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retriever.errors import StoreError
from retriever.files import write_atomic
from retriever.types import ScoredPairs

SHARD_NAME = re.compile(r"(\d{6,})-([0-9a-f]{16})\.parquet")
"""Number and the first 16 hexadecimal digits of the SHA-256 of the file's bytes."""


COLUMNS = ("query_id", "doc_id", "query_variant", "doc_variant", "score", "rank", "list_id", "pass_id", "n_tokens", "truncated", "status")
TEXTS = ("query_id", "doc_id", "status")


@dataclasses.dataclass(frozen=True)
class ShardProblem:
    """A file of the store that cannot be trusted, and why."""

    path: Path
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class DamagedShardError(StoreError):
    """A shard's bytes are not those that were written."""


@dataclasses.dataclass(frozen=True)
class PairColumns:
    """Who the n pairs of a shard are.

    Attributes:
        query_ids: [n], the first query that asked for the pair.
        doc_ids: [n], the first document, likewise.
        query_variants: uint64 [n], `retriever.scores.scoring.query_variant` of the query.
        document_variants: uint64 [n], `text_hash` of the document's full text.
    """

    query_ids: Sequence[str]
    doc_ids: Sequence[str]
    query_variants: NDArray[np.uint64]
    document_variants: NDArray[np.uint64]


@dataclasses.dataclass(frozen=True)
class ListColumns:
    """What the n pairs of a shard are in the lists that a teacher ordered.

    Attributes:
        list_ids: uint64 [n], `retriever.scores.scoring.list_variants` of the list; the file keeps the same bits as int64.
        ranks: int32 [n], 1 for the best of the list.
        passes: int32 [n], orders that were aggregated.
        statuses: [n], the list's.
    """

    list_ids: NDArray[np.uint64]
    ranks: NDArray[np.int32]
    passes: NDArray[np.int32]
    statuses: Sequence[str]


def encode_shard(pairs: PairColumns, scored: ScoredPairs, teacher: str, lists: ListColumns | None = None) -> bytes:
    """The Parquet bytes of a shard: equal pairs and scores give equal bytes, whenever and wherever they are written.

    A pair that is scored by itself leaves `rank` and `list_id` null (its rank follows from the scores; a rank within a
    shard would depend on where the shard was cut) and `pass_id` 0. A teacher that orders whole lists leaves `score` null:
    it fills `rank` and `list_id`, and `pass_id` is the number of orders that were aggregated.

    Args:
        pairs: n pairs.
        scored: what the teacher said of them, raw.
        teacher: its fingerprint; kept in the file's metadata.
        lists: of a teacher that orders lists.
    """
    count = len(pairs.query_ids)
    table = pa.table(
        {
            "query_id": pa.array(pairs.query_ids, type=pa.string()).dictionary_encode(),
            "doc_id": pa.array(pairs.doc_ids, type=pa.string()).dictionary_encode(),
            "query_variant": pa.array(pairs.query_variants, type=pa.uint64()),
            "doc_variant": pa.array(pairs.document_variants, type=pa.uint64()),
            "score": pa.array(scored.scores, type=pa.float32()) if lists is None else pa.nulls(count, type=pa.float32()),
            "rank": pa.nulls(count, type=pa.int32()) if lists is None else pa.array(lists.ranks, type=pa.int32()),
            "list_id": pa.nulls(count, type=pa.int64()) if lists is None else pa.array(lists.list_ids.view(np.int64)),
            "pass_id": pa.array(np.zeros(count, dtype=np.int32) if lists is None else lists.passes),
            "n_tokens": pa.array(scored.n_tokens, type=pa.int32()),
            "truncated": pa.array(scored.truncated, type=pa.bool_()),
            "status": pa.array(["ok"] * count if lists is None else lists.statuses, type=pa.string()).dictionary_encode(),
        },
        metadata={"teacher": teacher},
    )
    return encode_table(table)


def encode_table(table: pa.Table) -> bytes:
    """The Parquet bytes of a table with a shard's columns and metadata."""
    count = table.num_rows
    sink = pa.BufferOutputStream()
    repeating = ["query_id", "doc_id", "query_variant", "rank", "list_id", "pass_id", "n_tokens", "status"]
    pq.write_table(table, sink, compression="zstd", compression_level=3, use_dictionary=repeating, write_statistics=False, row_group_size=max(count, 1))
    return bytes(sink.getvalue())


def write_shard(folder: Path, number: int, data: bytes) -> Path:
    """Writes the bytes of a shard under the name that proves them; they are on the disk when this returns."""
    path = folder / f"{number:06d}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
    write_atomic(path, lambda temporary: temporary.write_bytes(data))
    return path


def read_shard(path: Path, columns: Sequence[str]) -> pa.Table:
    """The named columns of a shard whose bytes are the ones that were written.

    Raises:
        DamagedShardError: they are not, or cannot be read.
    """
    name = SHARD_NAME.fullmatch(path.name)
    try:
        data = path.read_bytes()
        if name is None or hashlib.sha256(data).hexdigest()[:16] != name[2]:
            raise DamagedShardError(f"{path}: the {len(data):,} bytes are not the ones that were written (their SHA-256 does not fit the name)")
        file = pq.ParquetFile(pa.BufferReader(data))
        if (found := (file.schema_arrow.metadata or {}).get(b"teacher", b"").decode()) != teacher_of(path.parent):
            raise DamagedShardError(f'{path}: the scores are those of the teacher "{found}", which has another folder')
        return file.read(columns=list(columns), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise DamagedShardError(f"{path}: cannot be read ({error})") from error


def joined_shards(paths: Sequence[Path], teacher: str) -> pa.Table:
    """All columns of a teacher's shards in one table of strings and numbers, one chunk a column.

    Raises:
        DamagedShardError: a shard is not what was written.
    """
    tables = [read_shard(path, COLUMNS) for path in paths]
    plain = [pa.table({name: table[name].cast(pa.string()) if name in TEXTS else table[name] for name in COLUMNS}) for table in tables]
    return pa.concat_tables(plain).combine_chunks().replace_schema_metadata({"teacher": teacher})


def with_dictionaries(table: pa.Table) -> pa.Table:
    """The rows as `encode_shard` keeps them: each distinct text once, in the order of the rows."""
    columns = {name: table[name].combine_chunks().dictionary_encode() if name in TEXTS else table[name] for name in COLUMNS}
    return pa.table(columns, metadata=table.schema.metadata)


def scores_in(table: pa.Table) -> NDArray[np.float32]:
    """[n], the scores of a table with the columns `score` and `rank`; minus the rank where a teacher ordered lists."""
    scores = table["score"] if table["score"].null_count == 0 else pc.negate(table["rank"]).cast(pa.float32())
    return np.asarray(scores.to_numpy())


def teacher_of(folder: Path) -> str:
    """The fingerprint in the name of a teacher's folder."""
    return folder.name.removeprefix("teacher=")


def list_shards(folder: Path) -> list[Path]:
    """The whole shards of a teacher, in the order of their numbers; two merged stores may share a number."""
    shards = [path for path in folder.glob("*.parquet") if SHARD_NAME.fullmatch(path.name)]
    return sorted(shards, key=lambda path: (_number(path), path.name))


def check_shard(path: Path) -> ShardProblem | None:
    """What is wrong with a shard, None for a good one."""
    try:
        table = read_shard(path, COLUMNS)
        if table.column_names != list(COLUMNS):
            return ShardProblem(path, f"its columns are {', '.join(table.column_names)}; a shard has {', '.join(COLUMNS)}")
        scores = scores_in(table)
    except DamagedShardError as error:
        return ShardProblem(path, str(error).removeprefix(f"{path}: "))
    for name in ("query_id", "doc_id"):
        if table[name].null_count or "" in table[name].cast(pa.string()).unique().to_pylist():
            return ShardProblem(path, f"a pair in it has no {name}")
    return None if np.isfinite(scores).all() else ShardProblem(path, "a score in it is not a finite number")


def set_aside(path: Path) -> Path:
    """Renames a damaged shard to `*.damaged`, so that its number is free and its pairs count as unscored."""
    aside = path.with_name(f"{path.name}.damaged")
    os.replace(path, aside)
    return aside


def not_redone(folder: Path) -> list[Path]:
    """The shards that were set aside and whose number is still free."""
    taken = {_number(path) for path in list_shards(folder)}
    return sorted(path for path in folder.glob("*.parquet.damaged") if _number(path) not in taken)


def redone(folder: Path) -> list[Path]:
    """The shards that were set aside and whose number another one has taken, so that nothing needs them."""
    return sorted(set(folder.glob("*.parquet.damaged")) - set(not_redone(folder)))


def free_numbers(folder: Path) -> Iterator[int]:
    """The numbers for the next shards: first those of shards that were set aside, then of others that are missing, then the ones after the last.

    Shards are filled in the order of the candidates, so the pairs of a lost shard are the first that are pending:
    scored again under its number they give its bytes again. What compacting left free comes after it: a shard that was set
    aside counts as lost until its number is taken.
    """
    taken = {_number(path) for path in list_shards(folder)}
    lost = {_number(path) for path in not_redone(folder)}
    following = max(taken | lost, default=-1) + 1
    missing = sorted(set(range(following)) - taken - lost)
    return itertools.chain(sorted(lost), missing, itertools.count(following))


def next_number(folder: Path) -> int:
    """The number after those of all shards, the lost ones included."""
    return max((_number(path) for path in [*list_shards(folder), *folder.glob("*.parquet.damaged")]), default=-1) + 1


def checksum_of(path: Path) -> str:
    """The part of a shard's name that proves its bytes."""
    return path.name.split("-", 1)[1].split(".", 1)[0]


def remove_temporaries(folder: Path) -> None:
    """Removes what a killed writer left half-written; only the holder of the folder's lock may call this."""
    for path in folder.glob(".*.tmp"):
        path.unlink()


def _number(path: Path) -> int:
    return int(path.name.split("-", 1)[0])
