"""Sparse vectors for tests of their indexes, and what the definition of an inner product finds in them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retriever.ragged import Ragged


class Blocks:
    """A matrix [N, V] as sparse vectors, a few documents at a time."""

    def __init__(self, matrix: NDArray[np.float32], size: int = 7, folder: Path = Path("vectors")) -> None:
        self.matrix = matrix
        self.size = size
        self.folder = folder
        self.dimensions = matrix.shape[1]

    def __len__(self) -> int:
        return len(self.matrix)

    def blocks(self) -> Iterator[Ragged]:
        for start in range(0, len(self.matrix), self.size):
            yield sparse(self.matrix[start : start + self.size])


def sparse(matrix: NDArray[np.float32]) -> Ragged:
    """The entries of each row that are not 0."""
    places, dimensions = np.nonzero(matrix)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(places, minlength=len(matrix)))]).astype(np.int64)
    return Ragged(offsets, {"dimensions": dimensions.astype(np.int32), "values": matrix[places, dimensions]})


def random_matrix(rows: int, dimensions: int, seed: int = 1, share: float = 0.2) -> NDArray[np.float32]:
    draw = np.random.default_rng(seed)
    return (draw.random((rows, dimensions)) * (draw.random((rows, dimensions)) < share)).astype(np.float32)


def brute_force(queries: NDArray[np.float32], documents: NDArray[np.float32], k: int) -> list[list[tuple[int, float]]]:
    """By the definition: every product, those above 0, best first, equal ones by row."""
    found = []
    for query in queries:
        scores = [sum(float(a) * float(b) for a, b in zip(query, document, strict=True)) for document in documents]
        ranked = sorted((-score, row) for row, score in enumerate(scores) if score > 0)
        found.append([(row, -score) for score, row in ranked[:k]])
    return found


def pairs(found: tuple[Sequence[NDArray[np.int64]], Sequence[NDArray[np.float32]]]) -> list[list[tuple[int, float]]]:
    return [list(zip(rows.tolist(), scores.tolist(), strict=True)) for rows, scores in zip(*found, strict=True)]
