"""The stretch of a text in which most of a query's words stand, and where in it they do."""

from __future__ import annotations

import re

from retriever.search import snippet

_WORD = re.compile(r"\w+", re.UNICODE)
_LONG = (4, 3, 1)
"""Characters from which a query's words are marked: the first of these that leaves any."""


def marked_snippet(text: str, query: str, words: int = 40) -> tuple[str, list[tuple[int, int]]]:
    """The stretch, and [start, end) of the query's words in it, whatever their case."""
    stretch = snippet(text, query, words)
    wanted = _wanted(query)
    return stretch, [found.span() for found in _WORD.finditer(stretch) if found[0].casefold() in wanted]


def _wanted(query: str) -> set[str]:
    every = {word.casefold() for word in _WORD.findall(query)}
    return next((some for least in _LONG if (some := {word for word in every if len(word) >= least})), set())
