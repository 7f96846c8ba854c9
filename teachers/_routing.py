"""Per-query routing: which teacher is believed for a query, or their mean, told by what is known when it is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.scores.views import z_scores

Floats = NDArray[np.float64]
PENALTY = 10.0
"""Of the ridge: with so many queries, a feature's effect is believed by half."""


def features(scores: NDArray[np.float32], offsets: NDArray[np.int64], words: NDArray[np.int64]) -> Floats:
    """[Q, 1 + 3 T], what a router sees of each query: its length and each teacher's spread, lead and agreement.

    Spread is the standard deviation of the teacher's raw scores in the list; lead is how far its best stands above its
    second, in deviations; agreement is the correlation of its scores with the mean z-score of the other teachers.

    Args:
        scores: float32 [T, n], raw.
        offsets: int64 [Q + 1].
        words: [Q], of the queries' texts.
    """
    counts = np.diff(offsets)
    lists, size = np.repeat(np.arange(len(counts)), counts), np.maximum(counts, 1)
    seen = np.stack([z_scores(one, offsets) for one in scores]).astype(np.float64)  # [T, n]
    columns = [np.log1p(words.astype(np.float64))]
    for number, raw in enumerate(scores.astype(np.float64)):
        mean = np.bincount(lists, raw, minlength=len(counts)) / size
        columns.append(np.sqrt(np.bincount(lists, (raw - mean[lists]) ** 2, minlength=len(counts)) / size))
        columns.append(_lead(seen[number], lists, offsets))
        others = np.delete(seen, number, axis=0).sum(axis=0) / max(len(seen) - 1, 1)
        columns.append(np.bincount(lists, seen[number] * others, minlength=len(counts)) / size)
    return np.stack(columns, axis=1)


@dataclasses.dataclass(frozen=True)
class Router:
    """Expects of each teacher a gain over the mean of all, and takes the one with the highest, or the mean where none is above 0.

    Attributes:
        means: [F], of the features where it was fitted.
        deviations: [F], likewise.
        gains: [T], the mean gain of each teacher, shrunk.
        effects: [T][F], what a deviation of a feature adds to it.
    """

    means: tuple[float, ...]
    deviations: tuple[float, ...]
    gains: tuple[float, ...]
    effects: tuple[tuple[float, ...], ...]

    def choose(self, seen: Floats) -> NDArray[np.int64]:
        """[Q], 0 for the mean of all and t + 1 for teacher t, from the features [Q, F]."""
        standard = (seen - np.array(self.means)) / np.array(self.deviations)
        expected = standard @ np.array(self.effects).T + np.array(self.gains)  # [Q, T]
        routes: NDArray[np.int64] = np.argmax(np.concatenate([np.zeros((len(seen), 1)), expected], axis=1), axis=1)
        return routes

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Router:
        """The router of plain values, as `dataclasses.asdict` gives them."""
        effects = tuple(tuple(row) for row in values["effects"])
        return cls(tuple(values["means"]), tuple(values["deviations"]), tuple(values["gains"]), effects)


def fit_router(seen: Floats, gains: Floats) -> Router:
    """A router by ridge regression of each teacher's gain on the standardised features.

    A regression rather than a classification of the best teacher: a query on which two teachers differ little then
    counts little.

    Args:
        seen: features [Q, F].
        gains: [Q, T], each teacher's measure minus that of the mean of all.
    """
    means, deviations = seen.mean(axis=0), seen.std(axis=0)
    deviations = np.where(deviations > 1e-9 * np.abs(means), deviations, 1.0)
    standard = (seen - means) / deviations
    effects = np.linalg.solve(standard.T @ standard + PENALTY * np.eye(seen.shape[1]), standard.T @ (gains - gains.mean(axis=0)))  # [F, T]
    shrunk = gains.sum(axis=0) / (len(gains) + PENALTY)
    return Router(tuple(means.tolist()), tuple(deviations.tolist()), tuple(shrunk.tolist()), tuple(tuple(row) for row in effects.T.tolist()))


def _lead(seen: Floats, lists: NDArray[np.int64], offsets: NDArray[np.int64]) -> Floats:
    """[Q], the best minus the second of each list; 0 where it has fewer than two."""
    order = np.lexsort((-seen, lists))
    several = np.diff(offsets) > 1
    lead = np.zeros(len(offsets) - 1)
    first = offsets[:-1][several]
    lead[several] = seen[order[first]] - seen[order[first + 1]]
    return lead
