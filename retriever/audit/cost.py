"""What a teacher's scores take: time, tokens, bytes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from retriever.eval.audit import Cost
from retriever.runs import Run
from retriever.scores.scoring import CandidatePairs, score_shard
from retriever.scores.store import ScoreStore
from retriever.types import Query

SAMPLE_PAIRS = 64


def measure_cost(teacher: Any, store: ScoreStore, pairs: Run, queries: Mapping[str, Query]) -> Cost:
    """A teacher's cost: its speed measured on the first lists of `pairs`, everything else read from the store. Nothing is stored.

    Args:
        teacher: scores pairs or orders lists.
        store: holds its scores.
        pairs: whole lists, for a teacher may be quicker on the documents of one query.
        queries: at least those of the pairs.
    """
    fingerprint = teacher.identity.fingerprint
    statistics = store.statistics(fingerprint)
    return Cost(
        pairs_per_second=pairs_per_second(teacher, CandidatePairs.of(pairs, queries, store.collection, lists=teacher.identity.orders_lists)),
        truncated=statistics.truncated,
        mended=statistics.mended,
        tokens=statistics.tokens / max(statistics.pairs, 1),
        pairs=statistics.pairs,
        bytes=sum(path.stat().st_size for path in store.folder.glob(f"scores/teacher={fingerprint}/*.parquet")),
        price=statistics.usage.cost,
    )


def pairs_per_second(teacher: Any, pairs: CandidatePairs, sample_pairs: int = SAMPLE_PAIRS) -> float:
    """Pairs that a teacher scores in a second, measured on the first lists; 0 where there is no pair.

    A few pairs (of a teacher that orders lists, one list) go before, untimed: they load and warm what is made at the first call.
    """
    everything = np.arange(pairs.candidates.n_pairs)
    if not len(everything):
        return 0.0
    score_shard(teacher, pairs, next(pairs.cut(everything[:4] if pairs.list_variants is None else everything, 4)))
    positions = next(pairs.cut(everything, min(sample_pairs, len(everything))))
    start = time.perf_counter()
    score_shard(teacher, pairs, positions)
    return len(positions) / (time.perf_counter() - start)


def ensemble_cost(members: Mapping[str, Cost]) -> Cost:
    """What all members take together; shares are those of the member with the most."""
    costs = list(members.values())
    seconds = sum(1 / cost.pairs_per_second if cost.pairs_per_second else 0.0 for cost in costs)
    return Cost(
        pairs_per_second=1 / seconds if seconds else 0.0,
        truncated=max(cost.truncated for cost in costs),
        mended=max(cost.mended for cost in costs),
        tokens=sum(cost.tokens for cost in costs),
        pairs=max(cost.pairs for cost in costs),
        bytes=sum(cost.bytes for cost in costs),
        price=sum(cost.price for cost in costs),
    )
