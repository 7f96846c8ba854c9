"""Steers the weights of a sparse student's regularisers, so that queries and documents end with the wanted number of active dimensions.

A fixed weight cannot be known beforehand: what it does depends on the scale of the scores, on the losses, the learning rate and the
data. The papers sweep over weights that grow with the square of the step (SPLADE, Formal et al. 2021, arXiv:2109.10086); here the
number of active dimensions is asked for, and the weight follows from what training measures.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

SMOOTHING = 0.8
"""Of the mean over batches: about the last five count, for a few queries differ much from the next few."""

PROPORTIONAL = 4.0
"""A weight's logarithm per change of the error: the count runs on for a while whatever the weight, and this brakes it before the goal."""

INTEGRAL = 0.1
"""A weight's logarithm per error and step: an error of a tenth doubles or halves the weight in about 70 steps."""

LARGEST_STEP = 0.5
"""A weight's logarithm moves by no more than this at once."""

SMALLEST, LARGEST = 1e-8, 1e4
"""Bounds of a weight."""


@dataclasses.dataclass(frozen=True)
class Side:
    """The control of one weight, for queries or for documents.

    Attributes:
        target: wanted active dimensions.
        weight: of the regulariser.
        updates: how often it was measured.
        first: smoothed active dimensions when it began.
        smoothed: what was measured, smoothed.
        error: logarithm of the smoothed number over the one wanted by then, at the last update.
        factor: by how much encoding gives more active dimensions than training batches do.
    """

    target: float
    weight: float
    updates: int = 0
    first: float = 0.0
    smoothed: float = 0.0
    error: float = 0.0
    factor: float = 1.0


def wanted(side: Side, warmup: int) -> float:
    """Active dimensions that a training batch should have by now: from what there was at first to the target, by equal ratios over the warm-up."""
    goal = side.target / side.factor
    left = max(0.0, 1 - side.updates / warmup) if warmup else 0.0
    return goal * max(1.0, side.first / goal) ** left


def updated(side: Side, active: float, warmup: int) -> Side:
    """The side after a measurement: its weight goes up where there is more than wanted, and down where there is less."""
    if side.updates == 0:
        side = dataclasses.replace(side, first=active, smoothed=active)
    smoothed = SMOOTHING * side.smoothed + (1 - SMOOTHING) * active
    error = math.log(max(smoothed, 0.1) / wanted(side, warmup))
    change = INTEGRAL * error + PROPORTIONAL * (error - side.error)
    weight = side.weight * math.exp(min(max(change, -LARGEST_STEP), LARGEST_STEP))
    return dataclasses.replace(side, updates=side.updates + 1, smoothed=smoothed, error=error, weight=min(max(weight, SMALLEST), LARGEST))
