"""Margin-MSE's teacher scores (Hofstaetter et al. 2020, arXiv:2010.02666): a relevant and another document with a score each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from retriever.formats import Head, Pair, Part, _lines

LAYOUT = "positive_score [tab] negative_score [tab] query [tab] positive_document [tab] negative_document"
HOLDS: frozenset[Part] = frozenset({"scores", "positives"})


def recognises(head: Head) -> bool:
    """Whether the first line has five fields, the first two of them scores."""
    first = head.fields()[0] if head.lines else []
    return len(first) == 5 and all(score.lstrip("-").replace(".", "", 1).replace("e-", "", 1).isdigit() for score in first[:2])


def read(path: Path) -> Iterator[Pair]:
    """Both pairs of every line: a margin is kept as the two scores that it is made of."""
    for where, (positive_score, negative_score, query_id, positive, negative) in _lines.fields(path, {5: LAYOUT}):
        yield Pair(where, query_id, positive, _lines.number(where, positive_score), 1)
        yield Pair(where, query_id, negative, _lines.number(where, negative_score))


def write(path: Path, pairs: Iterable[Pair], name: str) -> int:
    """One line for every relevant document with every other one of its query."""
    del name

    def as_text(listed: list[Pair]) -> str:
        return "".join(
            f"{_lines.short(positive.score)}\t{_lines.short(negative.score)}\t{positive.query_id}\t{positive.doc_id}\t{negative.doc_id}\n"
            for positive in _lines.positives(listed)
            for negative in _lines.negatives(listed)
        )

    return _lines.write_lists(path, pairs, as_text)
