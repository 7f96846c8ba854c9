"""Does a score tell how probable it is that a document is relevant? Reliability after Platt's fit, and its error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retriever.audit.lists import ScoredLists
from retriever.eval.audit import Calibration, ReliabilityBin
from retriever.scores.calibration import Judged, fit_platt

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
BINS = 10
FEWEST = 10
"""Judged pairs of either kind, in either half of the queries, below which nothing is said."""


def calibration(lists: ScoredLists, name: str) -> Calibration | None:
    """A teacher's calibration on the judged pairs; None where either half of the queries holds fewer than `FEWEST` relevant or not relevant ones.

    Unjudged pairs stay out: taken for not relevant they would count a teacher's finds against it. The error is that of probabilities fitted on the
    other half of the queries, for a curve's error on its own pairs flatters it.
    """
    judged = lists.judged
    scores, relevant = lists.scores[name][judged], lists.relevant[judged]
    odd = lists.pairs.query_numbers[judged] % 2 == 1
    if any(min(relevant[half].sum(), (~relevant[half]).sum()) < FEWEST for half in (odd, ~odd)):
        return None
    probability = np.empty(len(scores))
    for half in (odd, ~odd):
        probability[half] = probabilities(scores[half], *_fit(scores[~half], relevant[~half]))
    bins = reliability(probability, relevant)
    slope, offset = _fit(scores, relevant)
    return Calibration(len(scores), int(relevant.sum()), slope, offset, expected_calibration_error(bins), bins)


def probabilities(scores: Floats, slope: float, offset: float) -> Floats:
    """The logistic function of slope * score + offset, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * (slope * scores + offset))))


def reliability(probability: Floats, relevant: Mask, bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """Mean probability and share of relevant pairs in each of `bins` equal parts of 0 to 1, those that hold pairs.

    Args:
        probability: [n], from 0 to 1.
        relevant: [n].
        bins: how many.
    """
    places = np.minimum((probability * bins).astype(np.int64), bins - 1)
    inside = [places == place for place in np.unique(places)]
    return tuple(ReliabilityBin(float(probability[here].mean()), float(relevant[here].mean()), int(here.sum())) for here in inside)


def expected_calibration_error(bins: tuple[ReliabilityBin, ...]) -> float:
    """The mean distance of probability and share, each bin weighted by its pairs (Guo et al. 2017, arXiv:1706.04599)."""
    return sum(one.pairs * abs(one.probability - one.share) for one in bins) / sum(one.pairs for one in bins)


def _fit(scores: Floats, relevant: Mask) -> tuple[float, float]:
    return fit_platt(Judged(scores.astype(np.float32), np.array([0, len(scores)]), relevant))
