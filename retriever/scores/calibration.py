"""Fits of one or two numbers to judged documents: Platt's log-odds of a score, and the temperature of a list's softmax."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from retriever.errors import DataError
from retriever.runs import Run
from retriever.types import Qrels

Floats = NDArray[np.float64]
SHARPEST = 20.0
"""Temperatures are sought from the lists' mean standard deviation divided by this, to the same multiplied by it."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """A teacher's scores of lists whose relevant documents are known.

    Attributes:
        scores: float32 [n].
        offsets: int64 [Q + 1].
        relevant: bool [n]; an unjudged candidate counts as not relevant, as it does in the measures.
    """

    scores: NDArray[np.float32]
    offsets: NDArray[np.int64]
    relevant: NDArray[np.bool_]


def relevant_pairs(run: Run, qrels: Qrels) -> NDArray[np.bool_]:
    """[n], whether each pair of the run has a grade above 0."""
    return np.array([qrels.get(query_id, {}).get(doc_id, 0) > 0 for query_id in run for doc_id, _ in run[query_id]], dtype=np.bool_)


def fit_platt(judged: Judged) -> tuple[float, float]:
    """Slope and intercept of the log-odds of being relevant: slope * score + intercept.

    Logistic regression on smoothed targets, (n+ + 1) / (n+ + 2) and 1 / (n- + 2) (Platt 1999), which keeps the slope
    finite where no score overlaps; by Newton's method with step halving (Lin, Lin and Weng 2007). The log-odds are
    those among the candidates, most of which are not relevant. A slope below 0 says that the teacher prefers what is
    not relevant.

    Raises:
        DataError: there is no relevant document, or none that is not.
    """
    positives = int(judged.relevant.sum())
    negatives = len(judged.relevant) - positives
    if not positives or not negatives:
        raise DataError(
            f"calibration: {positives} relevant and {negatives} other documents in the judged train queries; both are needed. "
            'Use normalise = "z_score", which needs no qrels'
        )
    scores = judged.scores.astype(np.float64)
    mean, deviation = scores.mean(), scores.std() or 1.0
    inputs = np.stack([(scores - mean) / deviation, np.ones_like(scores)])  # [2, n], so that both weights are of one size
    targets = np.where(judged.relevant, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    slope, intercept = _newton(inputs, targets, np.array([0.0, np.log((positives + 1) / (negatives + 1))]))
    return float(slope / deviation), float(intercept - slope * mean / deviation)


def fit_temperature(judged: Judged) -> float:
    """The temperature under which a list's softmax gives its relevant documents the highest likelihood (Guo et al. 2017, arXiv:1706.04599).

    Their loss over classes becomes one over the list: the mean of -log softmax(score / temperature) of the relevant
    documents. It is convex in 1 / temperature, and found by bisection of its derivative. A teacher that ranks every
    relevant document first, or one that is worse than chance, gets the lowest or the highest temperature sought.

    Raises:
        DataError: no list holds a relevant document.
    """
    counts = np.diff(judged.offsets)
    lists = np.repeat(np.arange(len(counts)), counts)
    wanted = lists[judged.relevant]
    if not len(wanted):
        raise DataError("temperature: no judged train query has a relevant document that was scored. Give teacher.temperature")
    scores = judged.scores.astype(np.float64)
    mean = np.bincount(lists, scores, minlength=len(counts)) / np.maximum(counts, 1)
    centred = scores - mean[lists]
    deviation = np.sqrt(np.bincount(lists, centred**2, minlength=len(counts)) / np.maximum(counts, 1))[counts > 0].mean()
    if deviation == 0:
        return 1.0

    def too_flat(sharpness: float) -> bool:
        """Whether the expected score under the softmax is not above that of the relevant documents, so that a sharper one is at least as likely."""
        weights = np.exp(sharpness * (centred - _highest(centred, lists, len(counts))[lists]))
        expected = np.bincount(lists, weights * centred, minlength=len(counts)) / np.maximum(np.bincount(lists, weights, minlength=len(counts)), 1e-300)
        return bool(expected[wanted].sum() <= centred[judged.relevant].sum())

    low, high = -np.log(SHARPEST), np.log(SHARPEST)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if too_flat(np.exp(middle) / deviation) else (low, middle)
    return float(deviation / np.exp((low + high) / 2))


def _newton(inputs: Floats, targets: Floats, weights: Floats) -> Floats:
    """The weights [2] of a logistic regression of targets [n] on inputs [2, n]."""
    for _ in range(100):
        probability = 1 / (1 + np.exp(-np.clip(weights @ inputs, -700, 700)))
        gradient = inputs @ (probability - targets)
        if np.abs(gradient).max() <= 1e-10 * len(targets):
            break
        hessian = (inputs * (probability * (1 - probability))) @ inputs.T + 1e-12 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        while _loss(weights - step, inputs, targets) > _loss(weights, inputs, targets) and np.abs(step).max() > 1e-12:
            step = step / 2
        weights = weights - step
    return weights


def _loss(weights: Floats, inputs: Floats, targets: Floats) -> float:
    log_odds = weights @ inputs
    return float((np.logaddexp(0, log_odds) - targets * log_odds).sum())


def _highest(values: Floats, lists: NDArray[np.int64], count: int) -> Floats:
    highest = np.full(count, -np.inf)
    np.maximum.at(highest, lists, values)
    return highest
