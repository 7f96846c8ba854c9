"""PyLate's distillation data, which sentence-transformers reads too: a list of documents with a score each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from retriever.errors import DataError
from retriever.formats import Head, Pair, Part, _lines

LAYOUT = '{"query_id", "document_ids": [...], "scores": [...]}'
HOLDS: frozenset[Part] = frozenset({"scores"})


def recognises(head: Head) -> bool:
    """Whether the first line is an object with these keys."""
    return {"query_id", "document_ids", "scores"} <= head.keys


def read(path: Path) -> Iterator[Pair]:
    """The pairs of each list."""
    for where, record in _lines.records(path, ("query_id", "document_ids", "scores")):
        query_id, documents = _lines.identifier(where, record["query_id"]), _lines.listed(where, record, "document_ids")
        scores = _lines.scores_of(where, record, "scores", documents)
        if None in scores:
            raise DataError(f'{where}: "scores" is empty for {len(documents)} documents; there must be one for each')
        for doc_id, score in zip(documents, scores, strict=True):
            yield Pair(where, query_id, _lines.identifier(where, doc_id), score)


def write(path: Path, pairs: Iterable[Pair], name: str) -> int:
    """One line a query, best first."""
    del name

    def as_text(listed: list[Pair]) -> str:
        documents, scores = [pair.doc_id for pair in listed], [_lines.short(pair.score) for pair in listed]
        return _lines.json_line({"query_id": listed[0].query_id, "document_ids": documents, "scores": scores})

    return _lines.write_lists(path, pairs, as_text)
