"""Views: one teacher's scores made comparable with another's. Pure functions of flat lists, and the small fitted forms of them.

Everywhere: scores float32 [n], offsets int64 [Q + 1], the borders of the lists; the order within a list is free.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from retriever.scores.calibration import Judged, fit_platt, fit_temperature
from retriever.types import Unit, ViewName

Scores = NDArray[np.float32]
Offsets = NDArray[np.int64]

RECIPROCAL_RANK_CONSTANT = 60


def z_scores(scores: Scores, offsets: Offsets) -> Scores:
    """[n], each query's scores with mean 0 and standard deviation 1; zeros where all its scores are equal."""
    lists, counts = _lists(offsets)
    size = np.maximum(counts, 1)
    mean = np.bincount(lists, scores.astype(np.float64), minlength=len(counts)) / size
    centred = scores.astype(np.float64) - mean[lists]
    deviation = np.sqrt(np.bincount(lists, centred**2, minlength=len(counts)) / size)
    flat = deviation <= 1e-9 * np.abs(mean)  # rounding noise is no opinion
    return np.where(flat[lists], 0.0, centred / np.where(flat, 1.0, deviation)[lists]).astype(np.float32)


def min_max(scores: Scores, offsets: Offsets) -> Scores:
    """[n], each query's scores moved to 0 for its lowest and 1 for its highest; zeros where all are equal."""
    lists, counts = _lists(offsets)
    values = scores.astype(np.float64)
    lowest, highest = np.full(len(counts), np.inf), np.full(len(counts), -np.inf)
    np.minimum.at(lowest, lists, values)
    np.maximum.at(highest, lists, values)
    width = np.where(highest > lowest, highest - lowest, 1.0)
    found: Scores = ((values - lowest[lists]) / width[lists]).astype(np.float32)
    return found


def minus_ranks(scores: Scores, offsets: Offsets) -> Scores:
    """[n], minus the rank within the list: -1 for the best; equal scores share the mean of their ranks."""
    lists, _ = _lists(offsets)
    order = np.lexsort((-scores, lists))
    first = np.ones(len(scores), dtype=np.bool_)
    first[1:] = (scores[order][1:] != scores[order][:-1]) | (lists[order][1:] != lists[order][:-1])
    group = np.cumsum(first) - 1
    ranks = np.arange(1, len(scores) + 1) - offsets[lists[order]]
    mean = np.bincount(group, ranks) / np.maximum(np.bincount(group), 1)
    found = np.empty(len(scores), dtype=np.float32)
    found[order] = -mean[group]
    return found


def reciprocal_ranks(scores: Scores, offsets: Offsets) -> Scores:
    """[n], 1 / (60 + rank) (Cormack, Clarke and Buettcher, SIGIR 2009); equal scores share the mean of their ranks, as in `minus_ranks`."""
    return (1.0 / (RECIPROCAL_RANK_CONSTANT - minus_ranks(scores, offsets).astype(np.float64))).astype(np.float32)


def log_softmax(values: NDArray[np.floating], offsets: Offsets) -> NDArray[np.float64]:
    """[n], the logarithm of each list's softmax."""
    lists, counts = _lists(offsets)
    highest = np.full(len(counts), -np.inf)
    np.maximum.at(highest, lists, values)
    shifted = values - highest[lists]
    total = np.bincount(lists, np.exp(shifted), minlength=len(counts))
    found: NDArray[np.float64] = shifted - np.log(np.maximum(total, 1.0))[lists]  # the highest alone adds 1; an empty list has no highest
    return found


_PER_LIST: Mapping[ViewName, tuple[Callable[[Scores, Offsets], Scores], Unit]] = {
    "z_score": (z_scores, "z_score"),
    "min_max": (min_max, "min_max"),
    "rank": (minus_ranks, "rank"),
    "reciprocal_rank": (reciprocal_ranks, "reciprocal_rank"),
}
READS_QRELS: frozenset[ViewName] = frozenset({"calibration", "temperature"})
"""Views that are fitted on qrels; "temperature" only where none is given."""


@dataclasses.dataclass(frozen=True)
class View:
    """A view as it was fitted: what it needs to be applied to any scores of the same teacher.

    Attributes:
        name: which.
        unit: of what it gives.
        slope: of standardised (1 / deviation), calibration, and temperature (1 / temperature).
        intercept: of standardised (-mean / deviation) and calibration.
    """

    name: ViewName
    unit: Unit
    slope: float = 1.0
    intercept: float = 0.0

    def apply(self, scores: Scores, offsets: Offsets) -> Scores:
        """The scores [n] as this view sees them."""
        if self.name in _PER_LIST:
            return _PER_LIST[self.name][0](scores, offsets)
        if self.name == "none":
            return scores
        return (self.slope * scores.astype(np.float64) + self.intercept).astype(np.float32)


def view_unit(name: ViewName, unit: Unit) -> Unit:
    """The unit that a view gives of scores in `unit`; a temperature leaves it as it is."""
    if name in _PER_LIST:
        return _PER_LIST[name][1]
    named: dict[ViewName, Unit] = {"standardised": "standardised", "calibration": "log_odds"}
    return named.get(name, unit)


def fit_view(name: ViewName, unit: Unit, every: Scores, judged: Judged, temperature: float | None = None) -> View:
    """A view fitted to one teacher.

    Args:
        name: which.
        unit: of the teacher's scores.
        every: [m], the teacher's scores of all train pairs: what "standardised" is fitted on.
        judged: the teacher's scores of judged queries: what "calibration" and "temperature" are fitted on.
        temperature: divides the scores under "temperature"; fitted when left out.

    Raises:
        DataError: a calibration or a temperature cannot be fitted, for want of judged documents.
    """
    after = view_unit(name, unit)
    if name == "standardised":
        mean, deviation = float(every.mean(dtype=np.float64)), float(every.std(dtype=np.float64))
        slope = 1 / deviation if deviation > 1e-9 * abs(mean) else 0.0
        return View(name, after, slope, -mean * slope)
    if name == "calibration":
        return View(name, after, *fit_platt(judged))
    if name == "temperature":
        return View(name, after, 1 / (temperature or fit_temperature(judged)))
    return View(name, after)


def _lists(offsets: Offsets) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The list of each pair [n], and the lists' sizes [Q]."""
    counts = np.diff(offsets)
    return np.repeat(np.arange(len(counts)), counts), counts
