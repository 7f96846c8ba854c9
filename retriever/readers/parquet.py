"""Parquet tables of documents, queries and qrels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retriever.errors import DataError
from retriever.readers import Judgement, Source, _records, _rewrites
from retriever.types import Document, Query

LAYOUT = "documents.parquet or corpus.parquet (or a folder of that name with parts), queries.parquet, qrels/SPLIT.parquet or qrels.parquet with a column split"

_ROWS = 1000
_DOCUMENT_COLUMNS = (*_records.DOCUMENT_ID, *_records.DOCUMENT_TEXT, "title", "image")
_QRELS_COLUMNS = (*_records.JUDGED_QUERY, *_records.JUDGED_DOCUMENT, *_records.GRADE, "split")


def recognises(path: Path) -> bool:
    """Whether there is a table of documents, or the path itself is a Parquet file."""
    return bool(_tables(path, "documents", "corpus"))


def files(source: Source) -> list[Path]:
    """The documents, the queries, the qrels and the rewrites."""
    qrels = [*_qrels_files(source.path).values(), *_qrels_tables(source.path)]
    return [*_documents(source), *_tables(source.path, "queries"), *qrels, *_rewrites.files(source.path)]


def documents(source: Source) -> Iterator[tuple[str, Document]]:
    """The documents, one a row."""
    for path in _documents(source):
        for where, record in _rows(path, (*_DOCUMENT_COLUMNS, "metadata", *source.fields)):
            yield where, _records.document(where, record, path.parent, source.fields)


def queries(source: Source) -> Iterator[tuple[str, Query]]:
    """The queries, one a row."""
    tables = _tables(source.path, "queries") if source.path.is_dir() else []
    folder = tables[0].parent if tables else source.path
    return _rewrites.added(source.path, _records.queries(chain.from_iterable(map(_rows, tables)), folder))


def splits(source: Source) -> tuple[str, ...]:
    """The names of the qrels files and what the column `split` holds; "test" without such a column."""
    named = (str(record.get("split", "test")) for path in _qrels_tables(source.path) for _, record in _rows(path, ("split",)))
    return tuple(dict.fromkeys([*_qrels_files(source.path), *named]))


def qrels(source: Source, split: str) -> Iterator[Judgement]:
    """The judgements of a split, one a row."""
    of_split = _qrels_files(source.path).get(split)
    for path in [of_split] if of_split else _qrels_tables(source.path):
        for where, record in _rows(path, _QRELS_COLUMNS):
            if of_split or str(record.get("split", "test")) == split:
                yield _records.judgement(where, record)


def _rows(path: Path, columns: tuple[str, ...] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table with the columns that are wanted, all of them for None."""
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            present = [name for name in file.schema_arrow.names if columns is None or name in columns]
            for batch in file.iter_batches(batch_size=_ROWS, columns=present):
                for record in batch.to_pylist():
                    row += 1
                    yield f"{path}: row {row}", record
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: row {row + 1}: cannot be read as Parquet ({error}). The file may be cut off: fetch or write it again") from error


def _tables(path: Path, *stems: str) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    patterns = [f"{stem}{ending}" for stem in stems for ending in (".parquet", "-*.parquet", "/*.parquet")]
    return [table for pattern in patterns for table in sorted(path.glob(pattern))]


def _documents(source: Source) -> list[Path]:
    tables = _tables(source.path, "documents", "corpus")
    if not tables:
        raise DataError(f"{source.path}: there is no documents.parquet; Parquet tables are {LAYOUT}")
    return tables


def _qrels_files(folder: Path) -> dict[str, Path]:
    return {path.stem.removeprefix("qrels."): path for pattern in ("qrels/*.parquet", "qrels.*.parquet") for path in sorted(folder.glob(pattern))}


def _qrels_tables(folder: Path) -> list[Path]:
    table = folder / "qrels.parquet"
    return [table] if table.is_file() else []
