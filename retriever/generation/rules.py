"""The critic's rules for one query: small functions of its words, its document and its rank."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from retriever.near_duplicates import shingles

COPIED_RUN = 6
"""A shorter run of a document's words is how people search, whatever its share of the query."""

_PREAMBLE = re.compile(
    r"^(?:(?:sure|certainly|of course|okay|ok|yes)(?:\s*[:!.,]\s*|\s+(?=here\b)))?"
    r"(?:here(?:'s| is| are)\b[^:\n]{0,80}:\s*)?"
    r"(?:(?:the |a |my )?(?:search |possible |generated )?(?:question|query|keywords?|answer|output|search|[qa])\s*"
    r"(?:\d+\s*|\b(?:for|about|of)\b[^:\n]{0,80})?:\s*)?",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^(?:[-*•#>]+|\(?\d{1,2}[.)])\s+")
_QUOTES = "\"'`*_“”\u2018\u2019«» \t"
_REFUSAL = re.compile(
    r"^(?:i(?:'m| am)? (?:sorry|unable|afraid)|sorry\b|as an? (?:ai|language model)|i (?:can(?:'t|not)|could not|do(?:n't| not) have|won't)\b)", re.IGNORECASE
)
_ARTEFACT = re.compile(
    r"<\||\|>|</?s>|\{\w*\}|\[(?:insert|your|query|question|document)\b|```|�|https?://"
    r"|\b(?:this|the|above|given|provided|following) (?:document|passage|text|article|excerpt|paragraph)\b"
    r"|\b(?:document|query|question|keywords)\s*:",
    re.IGNORECASE,
)
_REPEATED = re.compile(r"\b(\w+)(?:\W+\1\b){2,}", re.IGNORECASE)


def cleaned(raw: str) -> str:
    """The query in an answer: its first line with words, without what introduces it, bullets and quotation marks.

    "Sure, here is a question:" alone is no query: the next line is.
    """
    for line in raw.splitlines():
        query = line.strip()
        before = None
        while query != before:
            before = query
            query = _PREAMBLE.sub("", _BULLET.sub("", query.strip(_QUOTES)), count=1).strip(_QUOTES)
        if words(query):
            return " ".join(query.split())
    return ""


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"\w+(?:['\u2019]\w+)*", text.lower())


def is_refusal(query: str) -> bool:
    """Whether the model said that it will not, or cannot, write a query."""
    return bool(_REFUSAL.match(query))


def has_artefact(query: str) -> bool:
    """Whether the query shows what no person types: control tokens, places to be filled, a mention of "this document", the same word three times in a row."""
    return bool(_ARTEFACT.search(query) or _REPEATED.search(query))


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
