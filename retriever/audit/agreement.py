"""Do the teachers say the same? Order and top of the same lists, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from retriever.audit.lists import ScoredLists
from retriever.runs import Run

Floats = NDArray[np.float64]
TOP = 10


def kendall_taus(scores: Floats) -> Floats:
    """Kendall's tau-b of every two of T rankings of the same list, [T, T] (Kendall, "The treatment of ties in ranking problems", 1945).

    Of all pairs of documents, those that two teachers order alike minus those that they order otherwise, over the geometric mean of the numbers
    of pairs that each orders at all. NaN where one orders none.

    Args:
        scores: [T, K], higher is better.
    """
    first, second = np.triu_indices(scores.shape[1], k=1)
    signs = np.sign(scores[:, first] - scores[:, second])  # [T, K (K - 1) / 2]
    products = signs @ signs.T
    ordered = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore"):
        taus: Floats = products / np.outer(ordered, ordered)
    return taus


def agreement(lists: ScoredLists, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Name -> other name -> tau-b within the lists of retrieved candidates, averaged over those where both order something; None without one."""
    total, counted = np.zeros((len(names), len(names))), np.zeros((len(names), len(names)), dtype=np.int64)
    for _, place in lists.lists():
        kept = lists.retrieved[place]
        taus = kendall_taus(np.stack([lists.scores[name][place][kept] for name in names]))
        total += np.nan_to_num(taus)
        counted += np.isfinite(taus)
    return {
        name: {other: float(total[row, column] / counted[row, column]) if counted[row, column] else None for column, other in enumerate(names) if other != name}
        for row, name in enumerate(names)
    }


def top_overlap(first: Run, second: Run, depth: int = TOP) -> float:
    """The share of the `depth` best documents that two runs have in common, averaged over the queries with documents; 0 without any."""
    shares = []
    for query_id in first:
        tops = [{doc_id for doc_id, _ in run[query_id][:depth]} for run in (first, second)]
        if tops[0]:
            shares.append(len(tops[0] & tops[1]) / len(tops[0]))
    return float(np.mean(shares)) if shares else 0.0


def overlaps(runs: Mapping[str, Run]) -> dict[str, dict[str, float]]:
    """Name -> other name -> `top_overlap`."""
    return {name: {other: top_overlap(run, runs[other]) for other in runs if other != name} for name, run in runs.items()}
