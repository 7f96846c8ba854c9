"""FlagEmbedding's training records, by text: relevant and other documents, with a score each where there are scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from retriever.formats import Head, Pair, Part, _lines
from retriever.types import Document

LAYOUT = '{"query", "pos": [...], "neg": [...], "pos_scores": [...], "neg_scores": [...]}'
HOLDS: frozenset[Part] = frozenset({"scores", "positives", "texts"})


def recognises(head: Head) -> bool:
    """Whether the first line is an object with a query and its documents."""
    return {"query", "pos", "neg"} <= head.keys


def read(path: Path) -> Iterator[Pair]:
    """The pairs of each record; ids are made from the texts."""
    for where, record in _lines.records(path, ("query", "pos", "neg")):
        query = _lines.text(where, record["query"], "query")
        for key, grade in (("pos", 1), ("neg", None)):
            texts = _lines.listed(where, record, key)
            for value, score in zip(texts, _lines.scores_of(where, record, f"{key}_scores", texts), strict=True):
                document = _lines.text(where, value, "document")
                doc_id = _lines.id_of(document)
                yield Pair(where, _lines.id_of(query), doc_id, score, grade, query, Document(doc_id, document))


def write(path: Path, pairs: Iterable[Pair], name: str) -> int:
    """One line a query that has relevant documents."""
    del name

    def as_text(listed: list[Pair]) -> str:
        record: dict[str, Any] = {"query": listed[0].query}
        parts = {"pos": _lines.positives(listed), "neg": _lines.negatives(listed)}
        record |= {key: [pair.document.full_text for pair in part if pair.document] for key, part in parts.items()}
        record |= {f"{key}_scores": [_lines.short(pair.score) for pair in part] for key, part in parts.items()}
        return _lines.json_line(record) if parts["pos"] else ""

    return _lines.write_lists(path, pairs, as_text)
