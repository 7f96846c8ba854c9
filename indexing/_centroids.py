"""Centroids of token vectors: k-means on a sample, and the nearest one of each vector.

More than `FLAT` centroids have coarse cells above them: a vector is compared with those near its cell alone, which takes a tenth of the time.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from numpy.typing import NDArray

FLAT = 1024
"""Centroids that are all compared; of more, so many and their hundredth part."""

ROUNDS = 8
"""Of k-means: later ones change little that a search would notice."""

VECTORS = 2**14
"""Compared at a time where there are no cells: 64 MB of scores."""


@dataclasses.dataclass(frozen=True)
class Centroids:
    """K centroids, and the cells above them.

    Attributes:
        vectors: float32 [K, D].
        cells: the centroids of cells, None where all are compared.
        near: int64 [cells, M], the centroids near each cell.
    """

    vectors: torch.Tensor
    cells: Centroids | None = None
    near: torch.Tensor | None = None

    def nearest(self, vectors: NDArray[np.float32]) -> NDArray[np.int64]:
        """[n], the number of a nearest centroid of each vector [n, D]; with cells, of one of the nearest."""
        points = torch.from_numpy(np.ascontiguousarray(vectors))
        if self.cells is None or self.near is None:
            parts = [_nearest(points[start : start + VECTORS], self.vectors).numpy() for start in range(0, len(points), VECTORS)]
            return np.concatenate([np.zeros(0, dtype=np.int64), *parts])
        cells = self.cells.nearest(vectors)
        order = np.argsort(cells, kind="stable")
        found = np.empty(len(vectors), dtype=np.int64)
        numbers, starts = np.unique(cells[order], return_index=True)
        for cell, some in zip(numbers, np.split(order, starts[1:]), strict=True):
            near = self.near[cell]
            found[some] = near[_nearest(points[some], self.vectors[near])].numpy()
        return found


def train_centroids(sample: NDArray[np.float32], count: int, generator: np.random.Generator) -> Centroids:
    """The centroids of a sample [n, D] by k-means from random vectors of it; fewer than `count` where the sample has no more."""
    count = min(count, len(sample))
    vectors = sample[np.sort(generator.choice(len(sample), count, replace=False))]
    cells = None
    if count > FLAT:
        cell_count = math.isqrt(count)
        some = np.sort(generator.choice(len(sample), min(len(sample), 64 * cell_count), replace=False))
        cells = train_centroids(sample[some], cell_count, generator)
    for _ in range(ROUNDS):
        vectors = _means(sample, with_cells(vectors, cells).nearest(sample), vectors)
    return with_cells(vectors.astype(np.float16).astype(np.float32), cells)


def with_cells(vectors: NDArray[np.float32], cells: Centroids | None) -> Centroids:
    """Centroids [K, D], and those near each of the cells."""
    points = torch.from_numpy(vectors)
    if cells is None:
        return Centroids(points)
    near = _closeness(cells.vectors, points).topk(min(len(points), FLAT + len(points) // 100), dim=1).indices
    return Centroids(points, cells, near)


def _means(sample: NDArray[np.float32], nearest: NDArray[np.int64], before: NDArray[np.float32]) -> NDArray[np.float32]:
    """[K, D], of the vectors of each centroid; one that has none stays where it was."""
    order = np.argsort(nearest, kind="stable")
    numbers, starts, counts = np.unique(nearest[order], return_index=True, return_counts=True)
    means = before.copy()
    means[numbers] = np.add.reduceat(sample[order], starts, axis=0) / counts[:, None].astype(np.float32)
    return means


def _nearest(points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    return _closeness(points, centroids).argmax(dim=1)


def _closeness(points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """[n, K], which falls as the distance rises: the squared length of a point, the same for all centroids, is left out."""
    return torch.addmm(centroids.square().sum(dim=1).div(-2), points, centroids.T)
