"""The scores beside sentence-transformers/msmarco-hard-negatives: a pickle of `scores[query][document]`, read as data. It is only read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from retriever.errors import DataError
from retriever.formats import Head, Pair, Part, _lines, _pickle_table

LAYOUT = "a pickle of {query: {document: score}}"
HOLDS: frozenset[Part] = frozenset({"scores"})


def recognises(head: Head) -> bool:
    """Whether the file begins as a pickle."""
    return head.is_pickle


def read(path: Path) -> Iterator[Pair]:
    """The pairs of every query."""
    for query, scores in _pickle_table.entries(path):
        query_id = _lines.identifier(str(path), query)
        where = f"{path}, query {query_id}"
        if not isinstance(scores, dict):
            raise DataError(f"{where}: {type(scores).__name__} stands there; it must be a table of documents")
        for doc_id, score in scores.items():
            yield Pair(where, query_id, _lines.identifier(where, doc_id), _lines.number(where, score))
