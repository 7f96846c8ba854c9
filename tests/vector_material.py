"""Vectors on disk, and what numpy finds among them: what the tests of the indexes of vectors share."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import BLOCK, Vectors

CENTRES = 40


def stored(folder: Path, matrix: NDArray[np.float32]) -> Vectors:
    """The matrix as vectors on disk, in blocks."""
    folder.mkdir(exist_ok=True)
    for number, start in enumerate(range(0, len(matrix), BLOCK)):
        np.save(folder / f"{number:06d}.npy", matrix[start : start + BLOCK])
    return Vectors(folder, len(matrix), matrix.shape[1], "an encoder")


def random_matrix(rows: int, dimensions: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, dimensions)).astype(np.float32)


def clustered(rows: int, dimensions: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors around the same 40 centres, whatever the seed."""
    random = np.random.default_rng(seed)
    matrix = random_matrix(CENTRES, dimensions, seed=99)[random.integers(CENTRES, size=rows)] + random.normal(size=(rows, dimensions)) * 0.8
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), dtype=np.float32)


def small_integers(rows: int, seed: int) -> NDArray[np.float32]:
    """Vectors [rows, 4] whose products float32 holds exactly, many of them equal."""
    return np.random.default_rng(seed).integers(-2, 3, size=(rows, 4)).astype(np.float32)


def best(queries: NDArray[np.float32], documents: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Rows [B, min(k, allowed)] by inner product, equal ones in the order of their rows."""
    products = queries.astype(np.float64) @ documents.T.astype(np.float64)
    rows = np.arange(len(documents)) if allowed is None else np.flatnonzero(allowed)
    return rows[np.argsort(-products[:, rows], axis=1, kind="stable")[:, :k]]


def recall(found: NDArray[np.int64], expected: NDArray[np.int64]) -> float:
    return float(np.mean([len(set(some) & set(right)) / len(right) for some, right in zip(found.tolist(), expected.tolist(), strict=True)]))


def check_complete(rows: NDArray[np.int64], scores: NDArray[np.float32], allowed: NDArray[np.bool_], k: int) -> None:
    """As many as there are, each once, allowed, best first."""
    assert rows.shape == scores.shape == (len(rows), min(k, int(allowed.sum())))
    assert (rows.dtype, scores.dtype) == (np.int64, np.float32)
    assert allowed[rows].all()
    assert all(len(set(some)) == len(some) for some in rows.tolist())
    assert (np.diff(scores, axis=1) <= 0).all()
    assert np.isfinite(scores).all()


def flip(path: Path, place: int) -> None:
    """Damages a byte of a file; places below 0 count from the end."""
    content = bytearray(path.read_bytes())
    content[place] ^= 0x41
    path.write_bytes(bytes(content))
