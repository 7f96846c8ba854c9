"""Tevatron's distillation records: one list of documents with their texts, and a list of scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from retriever.formats import Head, Pair, Part, _lines
from retriever.formats.tevatron import document_of, query_of, record_of

LAYOUT = '{"query_id", "query", "passages": [{"docid", "title", "text"}], "scores": [...]}'
HOLDS: frozenset[Part] = frozenset({"scores", "texts"})


def recognises(head: Head) -> bool:
    """Whether the first line is an object with documents and scores."""
    return {"query", "passages", "scores"} <= head.keys


def read(path: Path) -> Iterator[Pair]:
    """The pairs of each record; a document without an id has one made from its text."""
    for where, record in _lines.records(path, ("query", "passages", "scores")):
        query_id, query = query_of(where, record)
        documents = [document_of(where, value) for value in _lines.listed(where, record, "passages")]
        for document, score in zip(documents, _lines.scores_of(where, record, "scores", documents), strict=True):
            yield Pair(where, query_id, document.doc_id, score, None, query, document)


def write(path: Path, pairs: Iterable[Pair], name: str) -> int:
    """One line a query, best first."""
    del name

    def as_text(listed: list[Pair]) -> str:
        scores = [_lines.short(pair.score) for pair in listed]
        return _lines.json_line({"query_id": listed[0].query_id, "query": listed[0].query, "passages": list(map(record_of, listed)), "scores": scores})

    return _lines.write_lists(path, pairs, as_text)
