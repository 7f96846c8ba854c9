"""Tevatron's training records with relevant and other documents apart, each with its text and, in distillation, its score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from retriever.errors import DataError
from retriever.formats import Head, Pair, Part, _lines
from retriever.types import Document

LAYOUT = '{"query_id", "query", "positive_passages": [{"docid", "title", "text", "score"}], "negative_passages": [...]}'
HOLDS: frozenset[Part] = frozenset({"scores", "positives", "texts"})


def recognises(head: Head) -> bool:
    """Whether the first line is an object with relevant documents."""
    return "positive_passages" in head.keys


def read(path: Path) -> Iterator[Pair]:
    """The pairs of each record; a document without an id has one made from its text."""
    for where, record in _lines.records(path, ("query", "positive_passages")):
        query_id, query = query_of(where, record)
        for key, grade in (("positive_passages", 1), ("negative_passages", None)):
            for value in _lines.listed(where, record, key):
                document = document_of(where, value)
                score = None if value.get("score") is None else _lines.number(where, value["score"])
                yield Pair(where, query_id, document.doc_id, score, grade, query, document)


def write(path: Path, pairs: Iterable[Pair], name: str) -> int:
    """One line a query that has relevant documents."""
    del name

    def as_text(listed: list[Pair]) -> str:
        positives, negatives = ([record_of(pair) | {"score": _lines.short(pair.score)} for pair in part] for part in _parts(listed))
        query = {"query_id": listed[0].query_id, "query": listed[0].query}
        return _lines.json_line(query | {"positive_passages": positives, "negative_passages": negatives}) if positives else ""

    return _lines.write_lists(path, pairs, as_text)


def query_of(where: str, record: dict[str, Any]) -> tuple[str, str]:
    """Id and text of a record's query."""
    query = _lines.text(where, record["query"], "query")
    return _lines.id_of(query) if record.get("query_id") is None else _lines.identifier(where, record["query_id"]), query


def document_of(where: str, value: Any) -> Document:
    """The document of an object with text, and perhaps title and id.

    Raises:
        DataError: it is none.
    """
    if not isinstance(value, dict):
        raise DataError(f'{where}: a document is {type(value).__name__}; it must be an object with "text"')
    title = value.get("title") or ""
    document = Document("", _lines.text(where, value.get("text"), "document"), title if isinstance(title, str) else _lines.text(where, title, "title"))
    doc_id = _lines.id_of(document.full_text) if value.get("docid") is None else _lines.identifier(where, value["docid"])
    return Document(doc_id, document.text, document.title)


def record_of(pair: Pair) -> dict[str, Any]:
    """The object of a pair's document."""
    document = pair.document or Document(pair.doc_id, "")
    return {"docid": pair.doc_id, "title": document.title, "text": document.text}


def _parts(listed: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    return _lines.positives(listed), _lines.negatives(listed)
