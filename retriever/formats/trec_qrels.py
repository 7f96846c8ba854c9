"""TREC qrels, fields parted by spaces or tabs; BEIR's three columns with a header are read too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from retriever.formats import Head, Pair, Part, _lines
from retriever.readers import _text

LAYOUT = "query 0 document grade"
HOLDS: frozenset[Part] = frozenset({"positives"})


def recognises(head: Head) -> bool:
    """Whether the first line has TREC's four fields, or is BEIR's header."""
    first = head.fields()[0] if head.lines else []
    is_header = len(first) == 3 and first[0] == "query-id"
    return is_header or (len(first) == 4 and first[1].upper() in ("0", "Q0") and first[3].lstrip("-").isdigit())


def read(path: Path) -> Iterator[Pair]:
    """The judged pairs, those with grade 0 too."""
    for judgement in _text.judgements(path):
        yield Pair(judgement.where, judgement.query_id, judgement.doc_id, grade=judgement.grade)


def write(path: Path, pairs: Iterable[Pair], name: str) -> int:
    """The judged pairs."""
    del name

    def as_text(listed: list[Pair]) -> str:
        return "".join(f"{pair.query_id} 0 {pair.doc_id} {pair.grade}\n" for pair in listed if pair.grade is not None)

    return _lines.write_lists(path, pairs, as_text)
