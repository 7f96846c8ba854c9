"""MS MARCO's training triples by id: a query, a relevant document and another one, without scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from retriever.formats import Head, Pair, Part, _lines
from retriever.formats.colbert_run import counts_up, three_fields

LAYOUT = "query [tab] positive document [tab] negative document"
HOLDS: frozenset[Part] = frozenset({"positives", "order"})


def recognises(head: Head) -> bool:
    """Whether the first lines have three ids, of which the third does not count up as ranks do."""
    return three_fields(head) and counts_up(head) is not True


def read(path: Path) -> Iterator[Pair]:
    """Both pairs of every line."""
    for where, (query_id, positive, negative) in _lines.fields(path, {3: LAYOUT}):
        yield Pair(where, query_id, positive, grade=1)
        yield Pair(where, query_id, negative)


def write(path: Path, pairs: Iterable[Pair], name: str) -> int:
    """One line for every relevant document with every other one of its query."""
    del name

    def as_text(listed: list[Pair]) -> str:
        negatives = _lines.negatives(listed)
        return "".join(f"{positive.query_id}\t{positive.doc_id}\t{negative.doc_id}\n" for positive in _lines.positives(listed) for negative in negatives)

    return _lines.write_lists(path, pairs, as_text)
