"""Weights of a mean, fitted on judged queries: every point of a grid is measured, and the choice is tested on queries it was not made on."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
GRID_POINTS = 150


def weight_grid(teachers: int) -> Floats:
    """[G, T], shares that add up to 1 in equal steps: as many steps, ten at most, as at most 150 points allow. The nearest to equal shares come first."""
    steps = max((steps for steps in range(1, 11) if math.comb(steps + teachers - 1, teachers - 1) <= GRID_POINTS), default=1)
    points = [np.bincount(chosen, minlength=teachers) / steps for chosen in itertools.combinations_with_replacement(range(teachers), steps)]
    grid = np.array([np.full(teachers, 1 / teachers), *points])
    return grid[np.argsort(((grid - 1 / teachers) ** 2).sum(axis=1), kind="stable")]


def choose_row(table: Floats, use: NDArray[np.bool_]) -> int:
    """The row of `table` [G, Q] with the highest mean over the queries in `use` [Q]; the first of several as good."""
    means = table[:, use].mean(axis=1)
    return int(np.flatnonzero(means >= means.max() - 1e-12)[0])


def out_of_fold(table: Floats, folds: NDArray[np.int64], use: NDArray[np.bool_]) -> Floats:
    """What choosing a row is worth: for each query in `use`, the value of the row chosen on the other folds.

    Args:
        table: [G, Q], each row's measure of each query; row 0 is what stands when nothing is chosen.
        folds: [Q], the fold of each query.
        use: [Q], the queries that may be looked at.
    """
    values: Floats = table[0].copy()
    for fold in np.unique(folds[use]):
        rest = use & (folds != fold)
        if rest.any():
            values[use & (folds == fold)] = table[choose_row(table, rest)][use & (folds == fold)]
    kept: Floats = values[use]
    return kept


def clearly_above(values: Floats, baseline: Floats) -> bool:
    """Whether the mean of the values is above the baseline's by more than one standard error of the paired difference, so that noise seldom is."""
    gains = values - baseline
    return len(gains) > 1 and bool(gains.mean() > gains.std(ddof=1) / math.sqrt(len(gains)))
