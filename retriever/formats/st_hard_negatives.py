"""The lists of sentence-transformers/msmarco-hard-negatives: relevant documents, and what each of several systems found beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path

from retriever.errors import DataError
from retriever.formats import Head, Pair, Part, _lines

LAYOUT = '{"qid", "pos": [...], "neg": {"SYSTEM": [...]}}'
HOLDS: frozenset[Part] = frozenset({"positives", "order"})


def recognises(head: Head) -> bool:
    """Whether the first line is an object with these keys."""
    return {"qid", "pos", "neg"} <= head.keys


def read(path: Path) -> Iterator[Pair]:
    """The relevant documents, then the systems' best, their second best and so on, each document once; there are no scores."""
    for where, record in _lines.records(path, ("qid", "pos", "neg")):
        if not isinstance(record["neg"], dict):
            raise DataError(f'{where}: "neg" is {type(record["neg"]).__name__}; it must be an object with a list for each system')
        query_id = _lines.identifier(where, record["qid"])
        found = dict.fromkeys((_lines.identifier(where, doc_id) for doc_id in _lines.listed(where, record, "pos")), 1)
        yield from (Pair(where, query_id, doc_id, grade=1) for doc_id in found)
        for ranked in zip_longest(*(_lines.listed(where, record["neg"], system) for system in record["neg"])):
            for doc_id in (_lines.identifier(where, value) for value in ranked if value is not None):
                if doc_id not in found:
                    found[doc_id] = 0
                    yield Pair(where, query_id, doc_id)


def write(path: Path, pairs: Iterable[Pair], name: str) -> int:
    """One line a query, its negatives under the teacher's name, best first. The scores are left out: they would need a pickle."""

    def as_text(listed: list[Pair]) -> str:
        positives, negatives = ([_lines.bare(pair.doc_id) for pair in part] for part in (_lines.positives(listed), _lines.negatives(listed)))
        return _lines.json_line({"qid": _lines.bare(listed[0].query_id), "pos": positives, "neg": {name: negatives}}) if positives else ""

    return _lines.write_lists(path, pairs, as_text)
