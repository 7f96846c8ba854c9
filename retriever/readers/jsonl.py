"""JSON lines with the field names people use: id, _id, doc_id or docid; title; text, contents or body."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from retriever.errors import DataError
from retriever.readers import Judgement, Source, _records, _rewrites, _text
from retriever.types import Document, Query

LAYOUT = (
    "documents.jsonl, perhaps with queries.jsonl and qrels/SPLIT.tsv, qrels.SPLIT.tsv or qrels.jsonl, and rewrites/NAME.tsv; or one file that ends in .jsonl"
)


def recognises(path: Path) -> bool:
    """Whether there is a documents.jsonl, or the path itself is a file of JSON lines."""
    if path.is_file():
        return path.name.endswith((".jsonl", ".jsonl.gz"))
    return _text.existing(path, "documents.jsonl") is not None


def files(source: Source) -> list[Path]:
    """The documents, the queries, the qrels and the rewrites."""
    optional = [_text.existing(source.path, name) for name in ("queries.jsonl", "qrels.jsonl")]
    return [_documents(source), *(path for path in optional if path), *_text.qrels_files(source.path).values(), *_rewrites.files(source.path)]


def documents(source: Source) -> Iterator[tuple[str, Document]]:
    """The documents, one a line."""
    path = _documents(source)
    for where, record in _text.json_lines(path):
        yield where, _records.document(where, record, path.parent, source.fields)


def queries(source: Source) -> Iterator[tuple[str, Query]]:
    """The queries of queries.jsonl; none when there is no such file."""
    path = _text.existing(source.path, "queries.jsonl")
    return _rewrites.added(source.path, _records.queries(_text.json_lines(path) if path else (), source.path))


def splits(source: Source) -> tuple[str, ...]:
    """The names of the qrels files and the splits that qrels.jsonl names."""
    return tuple(dict.fromkeys([*_text.qrels_files(source.path), *(split for split, _ in _judgements(source))]))


def qrels(source: Source, split: str) -> Iterator[Judgement]:
    """The judgements of a split."""
    path = _text.qrels_files(source.path).get(split)
    if path:
        yield from _text.judgements(path)
    yield from (judgement for name, judgement in _judgements(source) if name == split)


def _judgements(source: Source) -> Iterator[tuple[str, Judgement]]:
    path = _text.existing(source.path, "qrels.jsonl")
    for where, record in _text.json_lines(path) if path else ():
        yield str(record.get("split", "test")), _records.judgement(where, record)


def _documents(source: Source) -> Path:
    path = source.path if source.path.is_file() else _text.existing(source.path, "documents.jsonl")
    if path is None:
        raise DataError(f"{source.path}: there is no documents.jsonl; JSON lines are {LAYOUT}")
    return path
