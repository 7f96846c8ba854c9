"""The rank of the first relevant document: what reports on images and texts give the median of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retriever.eval.measures import Evaluation
from retriever.eval.significance import NUMBERS_AT_ONCE, Clusters, cluster_numbers
from retriever.runs import Run
from retriever.types import Qrels

FIRST_RANK = "first_rank"
"""Under which name an evaluation keeps the ranks, beside its measures. It is no measure: less is better, and means say little."""

SAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class MedianRank:
    """The median of ranks, with its 95 % bootstrap interval."""

    value: float
    interval: tuple[float, float]


def first_ranks(run: Run, qrels: Qrels, depth: int) -> NDArray[np.float64]:
    """float64 [Q], the rank of each query's first relevant document, from 1; `depth` + 1 where none is among the first `depth`.

    Args:
        run: results; its order is canonical.
        qrels: grades; relevant is what has one above 0. Queries stand in the order of their ids, as in an evaluation.
        depth: how many results count.
    """

    def rank(query_id: str) -> int:
        judged = qrels[query_id]
        return next((place for place, (doc_id, _) in enumerate(run[query_id][:depth], 1) if judged.get(doc_id, 0) > 0), depth + 1)

    return np.array([rank(query_id) for query_id in sorted(qrels)], dtype=np.float64)


def with_first_ranks(evaluation: Evaluation, run: Run, qrels: Qrels, depth: int) -> Evaluation:
    """An evaluation that has the ranks beside its measures."""
    return dataclasses.replace(evaluation, values={**evaluation.values, FIRST_RANK: first_ranks(run, qrels, depth)})


def median_rank(query_ids: Sequence[str], ranks: NDArray[np.float64], clusters: Clusters | None, generator: np.random.Generator) -> MedianRank:
    """The median of ranks and its percentile bootstrap interval (Efron 1979).

    Args:
        query_ids: [Q].
        ranks: float64 [Q].
        clusters: which queries are drawn together; None draws single ones.
        generator: draws as many of them as there are, with replacement, `SAMPLES` times.
    """
    numbers = np.arange(len(ranks)) if clusters is None else cluster_numbers(query_ids, clusters)
    order = np.argsort(ranks, kind="stable")
    drawn = int(numbers.max()) + 1
    rows = max(1, NUMBERS_AT_ONCE // len(ranks))
    medians = []
    for start in range(0, SAMPLES, rows):
        times = generator.multinomial(drawn, np.full(drawn, 1 / drawn), min(rows, SAMPLES - start))  # [S, C]
        medians.append(_medians(ranks[order], times[:, numbers[order]]))
    low, high = np.quantile(np.concatenate(medians), [0.025, 0.975])
    return MedianRank(float(np.median(ranks)), (float(low), float(high)))


def _medians(ordered: NDArray[np.float64], times: NDArray[np.int64]) -> NDArray[np.float64]:
    """[S], the median of values [Q] in rising order, each of which stands there so many times [S, Q]."""
    reached = np.cumsum(times, axis=1)  # how many of those drawn are no larger
    total = reached[:, -1:]
    lower, upper = ((reached > middle).argmax(axis=1) for middle in ((total - 1) // 2, total // 2))
    halves: NDArray[np.float64] = (ordered[lower] + ordered[upper]) / 2
    return halves
