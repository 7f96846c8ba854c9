"""Runs of DiSCo (Lupart et al. 2024, arXiv:2410.14609) and SPLADE: one JSON object of queries, each an object of documents with scores."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from retriever.errors import DataError
from retriever.formats import Head, Pair, Part, _json_object, _lines

LAYOUT = '{"query": {"document": score, ...}, ...}'
HOLDS: frozenset[Part] = frozenset({"scores"})

_BEGINNING = re.compile(r'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\{\s*(?:\}|"(?:[^"\\]|\\.)*"\s*:\s*-?\d)')
_FRACTION = re.compile(r":\s*-?\d+(?:\.\d|[eE])")


def recognises(head: Head) -> bool:
    """Whether the file begins with an object of objects of numbers; where all are whole, they could be grades too."""
    return begins_so(head)


def read(path: Path) -> Iterator[Pair]:
    """The pairs of every query."""
    for where, query_id, doc_id, value in values(path):
        yield Pair(where, query_id, doc_id, _lines.number(where, value))


def write(path: Path, pairs: Iterable[Pair], name: str) -> int:
    """One object, a line for each query."""
    del name

    def as_text(listed: list[Pair]) -> str:
        return f"{json.dumps(listed[0].query_id)}: {json.dumps({pair.doc_id: _lines.short(pair.score) for pair in listed}, ensure_ascii=False)}"

    return _lines.write_lists(path, pairs, as_text, "{", ",\n", "}\n")


def begins_so(head: Head) -> bool:
    """Whether the file begins with an object of objects of numbers."""
    return _BEGINNING.match(head.text) is not None


def has_fractions(head: Head) -> bool:
    """Whether one of the first numbers is not whole."""
    return _FRACTION.search(head.text) is not None


def values(path: Path) -> Iterator[tuple[str, str, str, object]]:
    """Place, query id, document id and number of every pair.

    Raises:
        DataError: the file is no object of objects.
    """
    for where, query_id, documents in _json_object.entries(path):
        if not isinstance(documents, dict):
            raise DataError(f"{where}: query {query_id} has {type(documents).__name__}; it must be an object of documents")
        for doc_id, value in documents.items():
            yield where, query_id, doc_id, value
