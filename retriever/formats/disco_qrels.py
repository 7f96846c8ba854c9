"""The judgements beside DiSCo's runs: one JSON object of queries, each an object of documents with whole grades."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from retriever.formats import Head, Pair, Part, _lines
from retriever.formats.disco import begins_so, has_fractions, values

LAYOUT = '{"query": {"document": grade, ...}, ...}'
HOLDS: frozenset[Part] = frozenset({"positives"})


def recognises(head: Head) -> bool:
    """Whether the file begins with an object of objects of whole numbers."""
    return begins_so(head) and not has_fractions(head)


def read(path: Path) -> Iterator[Pair]:
    """The judged pairs, those with grade 0 too."""
    for where, query_id, doc_id, value in values(path):
        yield Pair(where, query_id, doc_id, grade=_lines.whole_number(where, value))


def write(path: Path, pairs: Iterable[Pair], name: str) -> int:
    """The judged pairs, a line for each query."""
    del name

    def as_text(listed: list[Pair]) -> str:
        grades = {pair.doc_id: pair.grade for pair in listed if pair.grade is not None}
        return f"{json.dumps(listed[0].query_id)}: {json.dumps(grades, ensure_ascii=False)}" if grades else ""

    return _lines.write_lists(path, pairs, as_text, "{", ",\n", "}\n")
