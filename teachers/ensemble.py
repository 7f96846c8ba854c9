"""Several teachers become one target: normalised within each list, then averaged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retriever.errors import StoreError
from retriever.runs import Run


def z_scores(scores: NDArray[np.float32], offsets: NDArray[np.int64]) -> NDArray[np.float32]:
    """[n], each query's scores with mean 0 and standard deviation 1; zeros where all its scores are equal.

    Args:
        scores: [n], flat.
        offsets: int64 [Q + 1], the lists' borders.
    """
    counts = np.diff(offsets)
    lists = np.repeat(np.arange(len(counts)), counts)
    size = np.maximum(counts, 1)
    mean = np.bincount(lists, scores.astype(np.float64), minlength=len(counts)) / size
    centred = scores.astype(np.float64) - mean[lists]
    deviation = np.sqrt(np.bincount(lists, centred**2, minlength=len(counts)) / size)
    flat = deviation <= 1e-9 * np.abs(mean)  # rounding noise is no opinion
    return np.where(flat[lists], 0.0, centred / np.where(flat, 1.0, deviation)[lists]).astype(np.float32)


def mean_of_z_scores(name: str, runs: Sequence[Run], weights: Sequence[float]) -> Run:
    """The weighted mean of the runs' per-query z-scores; one run gives its own z-scores, and so its own ranking.

    Args:
        name: of the run that comes back.
        runs: each the same pairs, scored by another teacher.
        weights: one a run, above 0; their scale does not matter.

    Raises:
        StoreError: the runs do not score the same pairs.
    """
    first = runs[0]
    total = np.zeros(first.n_pairs, dtype=np.float64)
    for run, weight in zip(runs, weights, strict=True):
        total += weight / sum(weights) * _aligned(first, run)
    return first.with_scores(name, total)


def _aligned(reference: Run, run: Run) -> NDArray[np.float32]:
    """The run's z-scores in the order of the reference's pairs."""
    if reference.query_ids != run.query_ids or not np.array_equal(reference.offsets, run.offsets):
        raise StoreError(f'ensemble: "{reference.name}" and "{run.name}" do not score the same pairs. Score both on the same candidates')
    values = z_scores(run.scores, run.offsets)
    by_document, wanted = np.argsort(_keys(run), kind="stable"), np.argsort(_keys(reference), kind="stable")
    if not np.array_equal(run.doc_ids[by_document], reference.doc_ids[wanted]):
        raise StoreError(f'ensemble: "{reference.name}" and "{run.name}" do not score the same documents. Score both on the same candidates')
    aligned = np.empty_like(values)
    aligned[wanted] = values[by_document]
    return aligned


def _keys(run: Run) -> NDArray[np.int64]:
    """[n], numbers that sort pairs by query, then by document id."""
    rank = np.empty(len(run.vocabulary), dtype=np.int64)
    rank[np.argsort(run.vocabulary)] = np.arange(len(run.vocabulary))
    return run.query_numbers * len(run.vocabulary) + rank[run.codes]
