"""What ColBERT's own scorer writes: JSON lines like the n-way examples, but nested once more and each score before its document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from retriever.errors import DataError
from retriever.formats import Head, Pair, Part, _colbert, _lines

LAYOUT = "[query, [[score, document], [score, document], ...]]"
HOLDS: frozenset[Part] = frozenset({"scores"})


def recognises(head: Head) -> bool:
    """Whether in the first lines' pairs the score can come first."""
    return _colbert.can_be(head, 1)


def read(path: Path) -> Iterator[Pair]:
    """The pairs of every line."""
    for where, value in _lines.json_values(path):
        query, entries = _colbert.pairs_of(where, value)
        for entry in entries:
            if not isinstance(entry, list) or len(entry) != 2:
                raise DataError(f"{where}: {str(entry)[:60]} is no pair of a score and its document; allowed: {LAYOUT}")
            if isinstance(entry[0], str) or isinstance(entry[1], float):
                raise DataError(f"{where}: {str(entry)[:60]} does not begin with a score. Documents come first in the format colbert_nway")
            yield Pair(where, _lines.identifier(where, query), _lines.identifier(where, entry[1]), _lines.number(where, entry[0]))


def write(path: Path, pairs: Iterable[Pair], name: str) -> int:
    """One line a query, best first."""
    del name

    def as_text(listed: list[Pair]) -> str:
        return _lines.json_line([_lines.bare(listed[0].query_id), [[_lines.short(pair.score), _lines.bare(pair.doc_id)] for pair in listed]])

    return _lines.write_lists(path, pairs, as_text)
