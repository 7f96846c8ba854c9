"""What ColBERT's two JSON shapes have in common, and how they are told apart: by which of a pair can be an id, and which a score."""

from __future__ import annotations

from typing import Any

from retriever.errors import DataError
from retriever.formats import Head


def pairs_of(where: str, value: Any) -> tuple[Any, list[Any]]:
    """A line's query and its entries, which lie side by side in the line or in a list of their own.

    Raises:
        DataError: the line is no such list.
    """
    if not isinstance(value, list) or len(value) < 2:
        raise DataError(f"{where}: the line is no list of a query and its documents")
    nested = len(value) == 2 and isinstance(value[1], list) and all(isinstance(entry, list) for entry in value[1])
    return value[0], value[1] if nested else value[1:]


def can_be(head: Head, document: int) -> bool:
    """Whether in every pair of the first lines the entry at `document` (0 or 1) can be an id and the other one a score.

    A whole number can be either; a file in which all are whole numbers is therefore taken for both shapes.
    """
    if not head.values:
        return False
    try:
        entries = [entry for value in head.values for entry in pairs_of("", value)[1]]
    except DataError:
        return False
    pairs = [entry for entry in entries if isinstance(entry, list)]
    if len(pairs) < len(entries):  # documents that stand alone, without scores
        return document == 0 and not pairs and all(_is_id(entry) for entry in entries)
    return all(len(pair) == 2 and _is_id(pair[document]) and _is_score(pair[1 - document]) for pair in pairs)


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
