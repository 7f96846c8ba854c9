"""How much a query must cost to find what it should: measured on a sample, and chosen by it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import DocumentEncodings
from retriever.indexing._faiss import COMPARED, SEED, DenseIndex
from retriever.indexing._vector_files import VECTORS, chunks, open_full, write_full
from retriever.settings.index import QuantisedSettings

QUERIES = 300
TIMED = 50
"""Queries of the sample that are timed, one at a time."""

WANTED = 10
TIES = 32
"""Documents remembered of each query: where several have the score of the tenth, each of them is as right."""

STRANGE = 0.5
"""How much of another document is added to a document that stands for a query.

A document finds its own place in a graph: as its own query it needs fewer candidates than a query does. With half of another added, what it
needs was that of real queries, within .01 of recall, on sentences of scifact with its claims as queries.
"""

NO_GAIN = 0.002
"""Of recall: twice the effort that brings less, twice in succession, is not tried twice again."""

WORTH = 0.8
"""Of the milliseconds of a smaller refinement: what is hardly sooner is no reason to keep full vectors."""

REFINES = (1, 2, 4, 8, 16, 32)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Q queries made of documents, and what an exact search finds for them.

    Attributes:
        queries: float32 [Q, D].
        own: int64 [Q], the document that each is made of, which does not count.
        best: int64 [Q, <= TIES], the rows of the best others; -1 behind those as good as the tenth.
        wanted: documents that count, `WANTED` or as many as there are.
    """

    queries: NDArray[np.float32]
    own: NDArray[np.int64]
    best: NDArray[np.int64]
    wanted: int

    def recall(self, index: DenseIndex) -> float:
        """The share of the exact best documents that an index finds."""
        found, _ = index.search(self.queries, self.wanted + 1)
        counted = found != self.own[:, None]
        counted &= np.cumsum(counted, axis=1) <= self.wanted
        right = counted & (found[:, :, None] == self.best[:, None, :]).any(axis=2)
        return float(right.sum() / (len(found) * self.wanted)) if self.wanted else 1.0

    def milliseconds(self, index: DenseIndex) -> float:
        """What a query takes alone, the median."""
        times = [time.perf_counter()]
        for query in self.queries[:TIMED, None]:
            index.search(query, WANTED)
            times.append(time.perf_counter())
        return 1000 * float(np.median(np.diff(times)))


def draw(vectors: DocumentEncodings) -> Sample:
    """A sample of the documents as queries, each compared with all documents."""
    random = np.random.default_rng(SEED)
    own, other = (random.choice(len(vectors), min(QUERIES, len(vectors)), replace=False) for _ in range(2))
    queries = np.ascontiguousarray(vectors.rows(own) + STRANGE * vectors.rows(other), dtype=np.float32)
    best, scores = np.zeros((len(own), 0), dtype=np.int64), np.zeros((len(own), 0), dtype=np.float32)
    first = 0
    for block in (chunk[start : start + COMPARED] for chunk in chunks(vectors) for start in range(0, len(chunk), COMPARED)):
        products = queries @ block.T
        here = np.flatnonzero((own >= first) & (own < first + len(block)))
        products[here, own[here] - first] = -np.inf
        rows = np.argpartition(-products, min(TIES, len(block)) - 1, axis=1)[:, :TIES]
        scores = np.concatenate([scores, np.take_along_axis(products, rows, axis=1)], axis=1)
        best = np.concatenate([best, rows + first], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :TIES]
        best, scores = np.take_along_axis(best, order, axis=1), np.take_along_axis(scores, order, axis=1)
        first += len(block)
    wanted = min(WANTED, len(vectors) - 1)
    if wanted:
        least = scores[:, wanted - 1 : wanted]
        best[scores < least - 1e-6 * np.abs(least)] = -1
    return Sample(queries, own, best, wanted)


@dataclasses.dataclass(frozen=True)
class _Trial:
    effort: int
    refine: int
    recall: float
    milliseconds: float


def settle(index: DenseIndex, vectors: DocumentEncodings, settings: QuantisedSettings, efforts: Sequence[int]) -> dict[str, Any]:
    """Sets the effort and the refinement that the settings name, or by which an index reaches their recall soonest; returns what was measured.

    Full vectors that may be needed are written beside the index, and kept if they are.

    Args:
        index: to set.
        vectors: what it is of.
        settings: whose recall, and refinement.
        efforts: to choose from, rising.
    """
    if settings.quantisation != "none" and settings.refine != 1:
        write_full(vectors, index.folder)
        index.full = open_full(index.folder, len(vectors), vectors.dimensions)
    refines = REFINES if index.full is not None and settings.refine is None else (settings.refine or 1,)
    measured = _choose(index, draw(vectors), settings.recall, efforts, refines)
    if index.refine == 1:
        index.full = None
        (index.folder / VECTORS).unlink(missing_ok=True)
    return measured


def _trial(index: DenseIndex, sample: Sample, recall: float, efforts: Sequence[int], refine: int) -> _Trial:
    index.refine = refine
    reached = _least_effort(index, sample, recall, efforts)
    return _Trial(index.effort, refine, reached, sample.milliseconds(index))


def _choose(index: DenseIndex, sample: Sample, recall: float, efforts: Sequence[int], refines: Sequence[int]) -> dict[str, Any]:
    """The least milliseconds among those that reach the recall, else the highest recall."""
    chosen = _trial(index, sample, recall, efforts, refines[0])
    for refine in refines[1:]:
        if chosen.recall >= recall and len(efforts) == 1:
            break  # there is no effort that it could lessen
        trial = _trial(index, sample, recall, efforts, refine)
        if chosen.recall < min(recall, trial.recall) or (trial.recall >= recall and trial.milliseconds < WORTH * chosen.milliseconds):
            chosen = trial
        elif chosen.recall >= recall:
            break  # more of it costs more, from here on
    index.effort, index.refine = chosen.effort, chosen.refine
    measured = {"recall_at_10": round(chosen.recall, 4), "wanted_recall": recall, "milliseconds": round(chosen.milliseconds, 4)}
    return {**measured, "queries": len(sample.queries)}


def doubling(first: int, last: int) -> list[int]:
    """first, twice of it and so on, and last."""
    return [*(first << step for step in range(64) if first << step < last), last]


def _least_effort(index: DenseIndex, sample: Sample, recall: float, efforts: Sequence[int]) -> float:
    """The recall of the least effort that is enough, or of the last that brought a gain; the index is left with it."""

    def recall_of(effort: int) -> float:
        index.effort = effort
        return sample.recall(index)

    recalls: list[float] = []
    for effort in efforts:
        recalls.append(recall_of(effort))
        if recalls[-1] >= recall:
            break
        if len(recalls) > 2 and recalls[-1] - recalls[-3] < NO_GAIN:
            break
    tried = efforts[: len(recalls)]
    if recalls[-1] < recall:
        best = int(np.argmax(np.array(recalls) >= max(recalls) - NO_GAIN))
        index.effort = tried[best]
        return recalls[best]
    low, high, reached = (tried[-2] if len(tried) > 1 else tried[-1]), tried[-1], recalls[-1]
    while high - low > max(1, high // 8):
        middle = (low + high) // 2
        found = recall_of(middle)
        if found >= recall:
            high, reached = middle, found
        else:
            low = middle
    index.effort = high
    return reached
