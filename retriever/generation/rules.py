"""The critic's rules for one query: small functions of its words, its document and its rank."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from retriever.near_duplicates import shingles
from retriever.writing.text import is_broken, words

COPIED_RUN = 6
"""A shorter run of a document's words is how people search, whatever its share of the query."""

_MENTION = re.compile(
    r"https?://"
    r"|\b(?:this|the|above|given|provided|following) (?:document|passage|text|article|excerpt|paragraph)\b"
    r"|\b(?:document|query|question|keywords)\s*:",
    re.IGNORECASE,
)


def has_artefact(query: str) -> bool:
    """Whether the query shows what no person types: what `is_broken` finds, or a mention of "this document"."""
    return bool(is_broken(query) or _MENTION.search(query))


def longest_common_run(one: Sequence[str], other: Sequence[str]) -> int:
    """The number of words of the longest run that stands in both; by the usual table, a row at a time."""
    best = 0
    row = [0] * (len(other) + 1)
    for word in one:
        row = [0, *(before + 1 if word == there else 0 for before, there in zip(row, other, strict=False))]
        best = max(best, *row)
    return best


def copied_share(query: str, document: str) -> float:
    """The share of the query's words that is one run of the document's; 0 for a run of fewer than `COPIED_RUN` words."""
    asked, there = words(query), words(document)
    if not shingles(asked, COPIED_RUN) & shingles(there, COPIED_RUN):  # most queries: the table is not needed
        return 0.0
    run = longest_common_run(asked, there)
    return run / len(asked) if run >= COPIED_RUN else 0.0


def quality(rank: int | None) -> float:
    """1 / log2(1 + rank): 1 for the document at rank 1, .63 at rank 2, .29 at rank 10, and 0 where it was not found."""
    return 0.0 if rank is None else 1.0 / math.log2(1 + rank)
