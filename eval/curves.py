"""How a student learned, and how a ranker's scores lie: numbers behind two kinds of picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

NOT_LOSSES = frozenset({"step", "validation", "learning_rate", "grad_norm", "epoch"})


@dataclasses.dataclass(frozen=True)
class TrainingCurve:
    """How training went.

    Attributes:
        steps: where losses were logged.
        losses: name of a loss term -> its value at each of `steps`.
        validation_steps: where the student was validated.
        validation: the value at each of them.
        validation_measure: what was validated, for example "nDCG@10 on held-out train queries".
        chosen_step: of the checkpoint that was kept.
    """

    steps: Sequence[int]
    losses: Mapping[str, Sequence[float]]
    validation_steps: Sequence[int]
    validation: Sequence[float]
    validation_measure: str
    chosen_step: int | None


@dataclasses.dataclass(frozen=True)
class ScoreDistribution:
    """How a ranker's scores of positives lie against those of negatives.

    Attributes:
        name: the ranker's.
        unit: of its scores.
        edges: [bins + 1].
        positives: [bins], share of the positives in each bin.
        negatives: [bins], share of the negatives in each bin.
        separation: how often a random positive outscores a random negative (a tie counts half).
    """

    name: str
    unit: str
    edges: Sequence[float]
    positives: Sequence[float]
    negatives: Sequence[float]
    separation: float


def training_curve(points: Iterable[Mapping[str, float]], validation_measure: str) -> TrainingCurve:
    """A curve of logged points, each with a "step" and either "validation" or loss terms.

    The first best validation was the one kept; of a sparse student, among those with the least "excess" of active dimensions.
    """
    logged = list(points)
    lossy = [point for point in logged if "validation" not in point]
    validated = [point for point in logged if "validation" in point]
    names = dict.fromkeys(name for point in lossy for name in point if name not in NOT_LOSSES)
    values = [point["validation"] for point in validated]
    return TrainingCurve(
        steps=[int(point["step"]) for point in lossy],
        losses={name: [point.get(name, float("nan")) for point in lossy] for name in names},
        validation_steps=[int(point["step"]) for point in validated],
        validation=values,
        validation_measure=validation_measure,
        chosen_step=int(max(validated, key=lambda point: (-point.get("excess", 0.0), point["validation"]))["step"]) if validated else None,
    )


def score_distribution(name: str, unit: str, positives: ArrayLike, negatives: ArrayLike, bins: int = 40) -> ScoreDistribution:
    """Histograms of a ranker's scores over common bins, and how well they separate positives from negatives.

    Args:
        name: the ranker's.
        unit: of its scores.
        positives: scores of relevant documents, any number.
        negatives: scores of the others, any number; without one of either the separation is 0.5.
        bins: how many.
    """
    groups = [np.asarray(group, dtype=np.float64).ravel() for group in (positives, negatives)]
    together = np.concatenate(groups)
    edges = np.histogram_bin_edges(together, bins=bins) if len(together) else np.linspace(0, 1, bins + 1)
    shares = [(np.histogram(group, edges)[0] / max(len(group), 1)).tolist() for group in groups]
    return ScoreDistribution(name, unit, edges.tolist(), shares[0], shares[1], _separation(*groups))


def _separation(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> float:
    if not len(positives) or not len(negatives):
        return 0.5
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, side="left") + np.searchsorted(ordered, positives, side="right")
    return float(below.mean() / 2 / len(negatives))
