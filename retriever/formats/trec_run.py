"""TREC runs, fields parted by spaces or tabs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from retriever.formats import Head, Pair, Part, _lines

LAYOUT = "query Q0 document rank score tag"
HOLDS: frozenset[Part] = frozenset({"scores"})


def recognises(head: Head) -> bool:
    """Whether the first line has six fields, the fifth a number."""
    first = head.fields()[0] if head.lines else []
    return len(first) == 6 and first[3].lstrip("-").isdigit() and _is_number(first[4])


def read(path: Path) -> Iterator[Pair]:
    """The lines' pairs; the rank is ignored, as trec_eval does."""
    for where, (query_id, _, doc_id, _, score, _) in _lines.fields(path, {6: LAYOUT}):
        yield Pair(where, query_id, doc_id, _lines.number(where, score))


def write(path: Path, pairs: Iterable[Pair], name: str) -> int:
    """One line a pair."""
    tag = name.replace(" ", "_") or "run"

    def as_text(listed: list[Pair]) -> str:
        return "".join(f"{pair.query_id} Q0 {pair.doc_id} {rank} {_lines.short(pair.score)} {tag}\n" for rank, pair in enumerate(listed, 1))

    return _lines.write_lists(path, pairs, as_text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
