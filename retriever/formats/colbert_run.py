"""ColBERT's rankings: a document and its rank a line, with or without the score behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from retriever.formats import Head, Pair, Part, _lines

LAYOUT = "query [tab] document [tab] rank, or with a fourth field: score"
HOLDS: frozenset[Part] = frozenset({"scores", "order"})


def recognises(head: Head) -> bool:
    """Whether the third of three or four fields can be a rank."""
    first = head.fields()[0] if head.lines else []
    has_score = len(first) == 4 and first[1].upper() not in ("0", "Q0")
    return (three_fields(head) or has_score) and counts_up(head) is not False


def read(path: Path) -> Iterator[Pair]:
    """The lines' pairs; a line without a score has minus its rank."""
    for where, (query_id, doc_id, rank, *score) in _lines.fields(path, {3: "query document rank", 4: "query document rank score"}):
        place = _lines.whole_number(where, rank)
        yield Pair(where, query_id, doc_id, _lines.number(where, score[0]) if score else -float(place))


def write(path: Path, pairs: Iterable[Pair], name: str) -> int:
    """One line a pair, its rank counted from 1 and its score behind it, as ColBERT writes it."""
    del name

    def as_text(listed: list[Pair]) -> str:
        return "".join(f"{pair.query_id}\t{pair.doc_id}\t{rank}\t{_lines.short(pair.score)}\n" for rank, pair in enumerate(listed, 1))

    return _lines.write_lists(path, pairs, as_text)


def three_fields(head: Head) -> bool:
    """Whether the first line is three fields without white space in them, and no header of qrels."""
    first = head.lines[0] if head.lines else ""
    fields = first.split()
    return len(fields) == 3 and fields[0] != "query-id" and not fields[0].startswith(("{", "[")) and len(first.split("\t")) in (1, 3)


def counts_up(head: Head) -> bool | None:
    """Whether the third field counts from 0 or 1 within each query; None where no query has a second line to tell."""
    ranks: dict[str, list[str]] = {}
    for fields in head.fields():
        if len(fields) in (3, 4):
            ranks.setdefault(fields[0], []).append(fields[2])
    if any(listed not in ([str(first + place) for place in range(len(listed))] for first in (0, 1)) for listed in ranks.values()):
        return False
    return True if any(len(listed) > 1 for listed in ranks.values()) else None
