"""Steers the weights of a sparse student's regularisers, so that queries and documents end with the wanted number of active dimensions.

A fixed weight cannot be known beforehand: what it does depends on the scale of the scores, the losses, the learning rate and the data.
The papers sweep over weights that grow with the square of the step (SPLADE, Formal et al. 2021, arXiv:2109.10086); here the number of
active dimensions is asked for, and a proportional-integral controller finds the weight from what training measures.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

SMOOTHING = 0.7
"""Share of the past in the smoothed count: about the last three batches, for a few queries differ much from the next few."""

AVERAGED = 10
"""Batches in the average that is compared with encoding."""

PROPORTIONAL = 15.0
"""Change of the level per change of the error: a count that falls goes on falling for a while, and this brakes it before the goal."""

INTEGRAL = 0.3
"""Change of the level per error and step."""

LARGEST_ERROR = 0.5
"""Of the logarithm: a student moves no faster for a larger weight, but an optimiser such as Adam long remembers the gradients it gave."""

LARGEST_CHANGE = 1.0
"""Of the level in a step: where the weight is large, about a factor of e."""

SCALE = 1e-3
"""The weight at a level of about 1; below that it is in proportion to the level, above it grows exponentially."""

LOWEST, HIGHEST = -5.0, 10.0
"""Bounds of the level: weights of -0.07 and 11."""


@dataclasses.dataclass(frozen=True)
class Side:
    """The control of one weight, for queries or for documents.

    Attributes:
        target: wanted active dimensions.
        level: what the controller moves; see `weight`.
        updates: how often it was measured.
        first: active dimensions at the first measurement.
        smoothed: what was measured, smoothed.
        average: the same over more batches.
        error: logarithm of the smoothed count over what was wanted then, at the last update.
        factor: how many times as many active dimensions encoding gives as training batches have.
    """

    target: float
    level: float = 0.0
    updates: float = 0.0
    first: float = 0.0
    smoothed: float = 0.0
    average: float = 0.0
    error: float = 0.0
    factor: float = 1.0

    @property
    def weight(self) -> float:
        """Of the regulariser: 0 at first; below 0, a reward, where there are too few active dimensions.

        Queries and documents share the encoder. What takes dimensions from the ones takes them from the others too, and only a
        reward on one side lets both counts be reached.
        """
        return SCALE * math.sinh(self.level)


class SparsityController:
    """The weights of the regularisers of queries and documents, from the active dimensions of each batch.

    Attributes:
        queries: the control of the queries' weight; None leaves queries without a regulariser, for those that are looked up.
        documents: that of the documents'; None for those that are frozen.
        warmup: updates in which the wanted count goes from the first measured one to the target, by equal ratios.
    """

    def __init__(self, target_query: float | None, target_document: float | None, warmup: int = 100) -> None:
        self.queries = None if target_query is None else Side(float(target_query))
        self.documents = None if target_document is None else Side(float(target_document))
        self.warmup = warmup

    def weights(self) -> tuple[float, float]:
        """Of the queries' and of the documents' regulariser."""
        return (0.0 if self.queries is None else self.queries.weight), (0.0 if self.documents is None else self.documents.weight)

    def update(self, active_query: float, active_document: float) -> tuple[float, float]:
        """The new weights, after a batch whose queries and documents had so many active dimensions on average."""
        if self.queries is not None:
            self.queries = updated(self.queries, active_query, self.warmup)
        if self.documents is not None:
            self.documents = updated(self.documents, active_document, self.warmup)
        return self.weights()

    def calibrate(self, encoded_query: float, encoded_document: float) -> None:
        """Says how many active dimensions encoding gives by now, which is what the targets mean.

        Training batches have dropout, other texts than the collection, and often shorter ones. To be called now and then with the
        counts of a fixed sample, such as the one that validates; never called, training batches are taken for the whole truth. A
        call in the warm-up changes nothing: the counts fall, and what is smoothed lies behind.
        """
        if self.queries is not None:
            self.queries = calibrated(self.queries, encoded_query, self.warmup)
        if self.documents is not None:
            self.documents = calibrated(self.documents, encoded_document, self.warmup)

    def state(self) -> dict[str, float]:
        """Plain numbers, which `restore` takes."""
        sides = {"query": self.queries, "document": self.documents}
        return {f"{name}_{key}": value for name, side in sides.items() if side is not None for key, value in dataclasses.asdict(side).items()}

    def restore(self, state: Mapping[str, float]) -> None:
        """Goes on where another controller's `state` was taken."""
        if self.queries is not None:
            self.queries = _restored(state, "query_")
        if self.documents is not None:
            self.documents = _restored(state, "document_")


def wanted(side: Side, warmup: int) -> float:
    """Active dimensions that a training batch should have by now."""
    goal = side.target / side.factor
    left = max(0.0, 1 - side.updates / warmup) if warmup else 0.0
    return goal * math.exp(left * max(0.0, _ratio(side.first, goal)))


def updated(side: Side, active: float, warmup: int) -> Side:
    """The side after a measurement: the weight goes up where there is more than wanted, and down where there is less."""
    if not side.updates:
        side = dataclasses.replace(side, first=active, smoothed=active, average=active)
    smoothed = SMOOTHING * side.smoothed + (1 - SMOOTHING) * active
    average = side.average + (active - side.average) / AVERAGED
    error = _error(smoothed, wanted(side, warmup))
    change = INTEGRAL * error + PROPORTIONAL * (error - side.error)
    level = side.level + min(max(change, -LARGEST_CHANGE), LARGEST_CHANGE)
    measured = {"updates": side.updates + 1, "smoothed": smoothed, "average": average, "error": error}
    return dataclasses.replace(side, level=min(max(level, LOWEST), HIGHEST), **measured)


def calibrated(side: Side, encoded: float, warmup: int) -> Side:
    """The side when encoding gives so many active dimensions; half of the news is believed, for the batches it is compared with are few."""
    if side.updates < max(AVERAGED, warmup):
        return side
    factor = side.factor * math.exp(_ratio(encoded, side.average * side.factor) / 2)
    side = dataclasses.replace(side, factor=factor)
    return dataclasses.replace(side, error=_error(side.smoothed, wanted(side, warmup)))  # the goal moved, not the count: nothing to brake


def _error(active: float, goal: float) -> float:
    return min(max(_ratio(active, goal), -LARGEST_ERROR), LARGEST_ERROR)


def _ratio(active: float, other: float) -> float:
    """Logarithm of the ratio of two counts; a text without any active dimension is no infinity."""
    return math.log(max(active, 0.1) / max(other, 0.1))


def _restored(state: Mapping[str, float], prefix: str) -> Side:
    return Side(**{field.name: state[prefix + field.name] for field in dataclasses.fields(Side)})
