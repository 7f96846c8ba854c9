"""MS MARCO's training triples by text: a query, a relevant document and another one, without ids and scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from retriever.formats import Head, Pair, Part, _lines
from retriever.types import Document

LAYOUT = "query text [tab] positive document's text [tab] negative document's text"
HOLDS: frozenset[Part] = frozenset({"positives", "order", "texts"})


def recognises(head: Head) -> bool:
    """Whether the first lines have three texts parted by tabs, some of several words."""
    parted = head.fields("\t")
    return bool(parted) and len(parted[0]) == 3 and any(len(field.split()) > 1 for fields in parted for field in fields)


def read(path: Path) -> Iterator[Pair]:
    """Both pairs of every line; ids are made from the texts."""
    for where, (query, positive, negative) in _lines.fields(path, {3: LAYOUT}, "\t"):
        query_id = _lines.id_of(_lines.text(where, query, "query"))
        for document, grade in ((positive, 1), (negative, None)):
            doc_id = _lines.id_of(_lines.text(where, document, "document"))
            yield Pair(where, query_id, doc_id, None, grade, query, Document(doc_id, document))


def write(path: Path, pairs: Iterable[Pair], name: str) -> int:
    """One line for every relevant document with every other one of its query; tabs and line ends in texts become spaces."""
    del name

    def as_text(listed: list[Pair]) -> str:
        query, texts = _lines.one_line(listed[0].query or ""), {pair.doc_id: _lines.one_line(pair.document.full_text) for pair in listed if pair.document}
        return "".join(
            f"{query}\t{texts[positive.doc_id]}\t{texts[negative.doc_id]}\n" for positive in _lines.positives(listed) for negative in _lines.negatives(listed)
        )

    return _lines.write_lists(path, pairs, as_text)
