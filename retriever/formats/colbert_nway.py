"""ColBERTv2's n-way examples (Santhanam et al. 2022, arXiv:2112.01488): JSON lines, the relevant document first, each document before its score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from retriever.errors import DataError
from retriever.formats import Head, Pair, Part, _colbert, _lines

LAYOUT = "[query, [document, score], [document, score], ...], or without scores [query, positive, negative]"
HOLDS: frozenset[Part] = frozenset({"scores", "positives"})


def recognises(head: Head) -> bool:
    """Whether in the first lines' pairs the document can come first."""
    return _colbert.can_be(head, 0)


def read(path: Path) -> Iterator[Pair]:
    """The pairs of every line; the first document is the relevant one."""
    for where, value in _lines.json_values(path):
        query, entries = _colbert.pairs_of(where, value)
        for place, entry in enumerate(entries):
            doc_id, score = _entry(where, entry)
            yield Pair(where, _lines.identifier(where, query), doc_id, score, None if place else 1)


def write(path: Path, pairs: Iterable[Pair], name: str) -> int:
    """One line for every relevant document with all others of its query, best first."""
    del name

    def as_text(listed: list[Pair]) -> str:
        query_id, others = _lines.bare(listed[0].query_id), [_pair(pair) for pair in _lines.negatives(listed)]
        return "".join(_lines.json_line([query_id, _pair(positive), *others]) for positive in _lines.positives(listed)) if others else ""

    return _lines.write_lists(path, pairs, as_text)


def _pair(pair: Pair) -> list[Any]:
    return [_lines.bare(pair.doc_id), _lines.short(pair.score)]


def _entry(where: str, entry: Any) -> tuple[str, float | None]:
    """Id and score of a document; None for one that stands alone."""
    if not isinstance(entry, list):
        return _lines.identifier(where, entry), None
    if len(entry) != 2:
        raise DataError(f"{where}: {str(entry)[:60]} is no pair of a document and its score; allowed: {LAYOUT}")
    if isinstance(entry[0], float):
        raise DataError(f"{where}: {str(entry)[:60]} does not begin with a document's id. Scores come first in the format colbert_scores")
    return _lines.identifier(where, entry[0]), _lines.number(where, entry[1])
