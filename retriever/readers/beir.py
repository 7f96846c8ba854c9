"""BEIR folders (Thakur et al. 2021, arXiv:2104.08663), plain or gzip; conversations.jsonl may hold turns of conversations."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from retriever.errors import DataError
from retriever.readers import Source, _records, _rewrites, _text
from retriever.types import Document, Query

LAYOUT = "corpus.jsonl, queries.jsonl (or conversations.jsonl), qrels/SPLIT.tsv, perhaps rewrites/NAME.tsv, each also with .gz"

splits = _text.splits
qrels = _text.qrels


def recognises(path: Path) -> bool:
    """Whether there is a corpus.jsonl."""
    return _text.existing(path, "corpus.jsonl") is not None


def files(source: Source) -> list[Path]:
    """The corpus, the queries, the qrels and the rewrites."""
    return [_corpus(source), *_query_files(source), *_text.qrels_files(source.path).values(), *_rewrites.files(source.path)]


def documents(source: Source) -> Iterator[tuple[str, Document]]:
    """The documents of corpus.jsonl."""
    for where, record in _text.json_lines(_corpus(source)):
        yield where, _records.document(where, record, source.path, source.fields)


def queries(source: Source) -> Iterator[tuple[str, Query]]:
    """The queries of queries.jsonl, then those of conversations.jsonl."""
    records = chain.from_iterable(map(_text.json_lines, _query_files(source)))
    return _rewrites.added(source.path, _records.queries(records, source.path))


def _corpus(source: Source) -> Path:
    path = _text.existing(source.path, "corpus.jsonl")
    if path is None:
        raise DataError(f"{source.path}: there is no corpus.jsonl; a BEIR folder has {LAYOUT}")
    return path


def _query_files(source: Source) -> list[Path]:
    paths = (_text.existing(source.path, name) for name in ("queries.jsonl", "conversations.jsonl"))
    return [path for path in paths if path is not None]
