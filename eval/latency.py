"""How long a user waits: one query at a time, as they come."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np

from retriever.errors import DataError
from retriever.types import Query


@dataclasses.dataclass(frozen=True)
class Latency:
    """Milliseconds per query.

    Attributes:
        p50_ms: the median.
        p99_ms: 99 of 100 queries take at most so long.
        mean_ms: the mean.
        queries: how many searches were timed.
    """

    p50_ms: float
    p99_ms: float
    mean_ms: float
    queries: int


def measure_latency(search: Callable[[Query], object], queries: Sequence[Query], warmup: int = 10, repeats: int = 1) -> Latency:
    """Times `search` on every query, one at a time.

    Args:
        search: whatever answers one query, from its text to its documents.
        queries: what to ask; each is asked `repeats` times, in rounds.
        warmup: how many searches go before, untimed (caches, lazy loading); they take the queries in turn.
        repeats: how many rounds are timed.

    Raises:
        DataError: there is no query.
    """
    if not queries:
        raise DataError("latency: there is no query to time. Look at the split's name and its queries")
    for number in range(warmup):
        search(queries[number % len(queries)])
    milliseconds = np.array([_milliseconds(search, query) for _ in range(repeats) for query in queries])
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return Latency(float(p50), float(p99), float(milliseconds.mean()), len(milliseconds))


def _milliseconds(search: Callable[[Query], object], query: Query) -> float:
    start = perf_counter()
    search(query)
    return 1000 * (perf_counter() - start)
