"""What each query may find: `Query.among` turned into rows, and queries of equal conditions searched together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import Encoding
from retriever.filters import Condition, conditions_from
from retriever.tables.documents import DocumentTable
from retriever.types import Query
from retriever.vector_index import Found

Search = Callable[[Encoding, int, Sequence[Condition]], Found]
"""Encoded queries, a depth and conditions that all of them have -> what meets the conditions, best first."""


def scope_of(documents: DocumentTable, query: Query) -> NDArray[np.bool_] | None:
    """Bool [N], which of N documents a query may find; None for all.

    Raises:
        ConfigError: the documents' fields cannot answer its conditions.
    """
    return documents.allowed(conditions_from(query.among)) if query.among else None


def search_of(index: Any, documents: Any) -> Search:
    """How an index is searched under conditions; without any, as it always is.

    Args:
        index: a `VectorIndex` in memory, or what takes conditions itself, as a snapshot of an index on disk does.
        documents: whose rows the index has: a collection for the first.
    """

    def search(queries: Encoding, k: int, conditions: Sequence[Condition]) -> Found:
        if not conditions:
            found: Found = index.search(queries, k)
        else:
            found = index.search(queries, k, documents.allowed(conditions) if isinstance(documents, DocumentTable) else conditions)
        return found

    return search


def search_scoped(search: Search, encoded: Encoding, queries: Sequence[Query], k: int) -> Found:
    """The best k documents of each query among those that it may find: one search for all queries of equal conditions.

    Args:
        search: as `search_of` gives it.
        encoded: the encodings of the queries.
        queries: B of them.
        k: documents a query at most.
    """
    groups = by_conditions(queries)
    if len(groups) == 1:
        ((among, _),) = groups
        return search(encoded, k, conditions_from(among))
    rows: list[Any] = [None] * len(queries)
    scores: list[Any] = [None] * len(queries)
    for among, places in groups:
        found, values = search(encoded[np.array(places)], k, conditions_from(among))
        for place, own, value in zip(places, found, values, strict=True):
            rows[place], scores[place] = own, value
    return rows, scores


def by_conditions(queries: Sequence[Query]) -> list[tuple[Mapping[str, Any], list[int]]]:
    """The places of queries, those of equal conditions together, in the order in which the conditions come first."""
    if not any(query.among for query in queries):
        return [({}, list(range(len(queries))))]
    groups: dict[str, tuple[Mapping[str, Any], list[int]]] = {}
    for place, query in enumerate(queries):
        groups.setdefault(json.dumps(dict(query.among), sort_keys=True), (query.among, []))[1].append(place)
    return list(groups.values())
