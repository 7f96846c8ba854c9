"""Exact search by MaxSim: every token vector of every document is compared, nothing is lost (Khattab and Zaharia 2020, arXiv:2004.12832)."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retriever.encodings import DocumentEncodings, write_array
from retriever.errors import SearchIndexError
from retriever.files import write_atomic
from retriever.index_settings import MultiVectorSettings
from retriever.ragged import Ragged

VECTORS = "vectors.npy"
"""float16 [T, D], the token vectors of all documents end to end."""

OFFSETS = "offsets.npy"
"""int64 [N + 1], where each document's begin."""

_SHAPE = re.compile(rb"'shape': \((\d+), ?(\d*)\)")

DOCUMENT_TOKENS = 4096
"""Compared at a time: their float32 vectors and their similarities with the queries' tokens stay in the processor's cache, or near it."""

QUERY_TOKENS = 2048
"""Of the queries that are searched together: a block of documents is read and converted once for all of them."""

DOCUMENTS = 16_384
"""After which the best so far are chosen: scores of so many for each query are in memory."""


def build(vectors: DocumentEncodings, folder: Path, settings: MultiVectorSettings) -> None:
    """Writes the token vectors of a collection as one float16 file, and where each document's begin as another.

    Raises:
        SearchIndexError: a vector has another dimension, or is not finite in float16.
    """
    counts = [block.counts for block in vectors.blocks()]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, dtype=np.int64), *counts]))]).astype(np.int64)
    (folder / OFFSETS).unlink(missing_ok=True)  # written last: a stop before leaves an index that is refused, not a mixture of two
    write_atomic(folder / VECTORS, lambda path: _write_vectors(path, vectors, int(offsets[-1])))
    write_array(folder / OFFSETS, offsets)


class MultiVectorIndex:
    """An opened index.

    Attributes:
        vectors: float16 [T, D], memory-mapped where it comes from a file.
        offsets: int64 [N + 1].
        folder: where it lies, for messages.
    """

    def __init__(self, vectors: NDArray[np.float16], offsets: NDArray[np.int64], folder: Path) -> None:
        self.vectors = vectors
        self.offsets = offsets
        self.folder = folder

    def __len__(self) -> int:
        """N, the number of documents."""
        return len(self.offsets) - 1

    @property
    def dimensions(self) -> int:
        """D, of a token's vector."""
        return int(self.vectors.shape[1])

    def search(self, queries: Ragged, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and MaxSim scores of the best documents, best first; of equal ones, the collection's order.

        Args:
            queries: float32 [Lq, D] for each of B queries.
            k: documents a query; cut to N.

        Returns:
            Rows int64 [B, min(k, N)] and scores float32 of the same shape. A document without tokens has the lowest score that
            unit vectors could have.

        Raises:
            SearchIndexError: the vectors have another dimension, or are not finite.
        """
        tokens = queries.columns["vectors"]
        if tokens.shape[1] != self.dimensions:
            raise SearchIndexError(
                f"{self.folder}: holds vectors of {self.dimensions} dimensions, the query has {tokens.shape[1]}. Search with the student it was built with"
            )
        if not np.isfinite(tokens).all():
            raise SearchIndexError(f"{self.folder}: a query's vector is not finite")
        rows, scores = [np.zeros((0, min(k, len(self))), dtype=np.int64)], [np.zeros((0, min(k, len(self))), dtype=np.float32)]
        for start, end in _ranges(queries.offsets, QUERY_TOKENS):
            found, values = self._search(queries[np.arange(start, end)], k)
            rows.append(found)
            scores.append(values)
        return np.concatenate(rows), np.concatenate(scores)

    def _search(self, queries: Ragged, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        rows, scores = np.zeros((len(queries), 0), dtype=np.int64), np.zeros((len(queries), 0), dtype=np.float32)
        for start in range(0, len(self), DOCUMENTS):
            end = min(start + DOCUMENTS, len(self))
            rows = np.concatenate([rows, np.broadcast_to(np.arange(start, end), (len(queries), end - start))], axis=1)
            scores = np.concatenate([scores, self._scores(queries, start, end)], axis=1)
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            rows, scores = np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1)
        return rows, scores

    def _scores(self, queries: Ragged, start: int, end: int) -> NDArray[np.float32]:
        """[B, end - start], of the documents with the numbers start to end."""
        scores = np.empty((len(queries), end - start), dtype=np.float32)
        offsets = self.offsets[start : end + 1]
        for first, last in _ranges(offsets, DOCUMENT_TOKENS):
            block = self.vectors[offsets[first] : offsets[last]]
            single = torch.from_numpy(block).float().numpy()  # three times as fast as numpy's astype
            scores[:, first:last] = _maxsim(queries, Ragged(offsets[first : last + 1] - offsets[first], {"vectors": single}))
        return scores


def of_vectors(vectors: DocumentEncodings, folder: Path | None = None) -> MultiVectorIndex:
    """An index in memory, not written anywhere."""
    offsets, parts = [np.zeros(1, dtype=np.int64)], [np.empty((0, vectors.dimensions), dtype=np.float16)]
    for block in vectors.blocks():
        offsets.append(block.offsets[1:] + offsets[-1][-1])
        parts.append(_float16(block, vectors))
    return MultiVectorIndex(np.concatenate(parts), np.concatenate(offsets), folder or vectors.folder)


def open_index(folder: Path) -> MultiVectorIndex:
    """The index in a folder, memory-mapped.

    Raises:
        SearchIndexError: there is none, or a file of it is cut or damaged.
    """
    path = folder / OFFSETS
    try:
        offsets = np.array(_map(path, "<i8"))
        if offsets.ndim != 1 or len(offsets) == 0 or offsets[0] != 0 or (np.diff(offsets) < 0).any():
            raise ValueError("not the beginnings of documents")
        path = folder / VECTORS
        vectors = _map(path, "<f2")
        if vectors.ndim != 2 or len(vectors) != offsets[-1]:
            raise ValueError("not the vectors of these documents")
        return MultiVectorIndex(vectors, offsets, folder)
    except (OSError, EOFError, ValueError) as error:
        reason = "cut or damaged" if path.exists() else "missing"
        raise SearchIndexError(f"{path}: the index file is {reason}. Build it again with: retriever index") from error


def _maxsim(queries: Ragged, documents: Ragged) -> NDArray[np.float32]:
    """[B, n], the sum over each query's tokens of the best inner product with a token of each document."""
    tokens: NDArray[np.float32] = queries.columns["vectors"]
    best = np.empty((len(tokens), len(documents)), dtype=np.float32)
    filled = documents.counts > 0
    best[:, ~filled] = -np.linalg.norm(tokens, axis=1, keepdims=True)  # as unit vectors that all point away
    if filled.any():
        best[:, filled] = np.maximum.reduceat(tokens @ documents.columns["vectors"].T, documents.offsets[:-1][filled], axis=1)
    scores = np.zeros((len(queries), len(documents)), dtype=np.float32)
    asked = queries.counts > 0
    if asked.any():
        scores[asked] = np.add.reduceat(best, queries.offsets[:-1][asked], axis=0)
    return scores


def _ranges(offsets: NDArray[np.int64], entries: int) -> Iterator[tuple[int, int]]:
    """Texts from .. to, as many at a time as have `entries` entries together, and at least one."""
    start = 0
    while start < len(offsets) - 1:
        end = max(start + 1, int(np.searchsorted(offsets, offsets[start] + entries, side="right")) - 1)
        yield start, end
        start = end


def _write_vectors(path: Path, vectors: DocumentEncodings, tokens: int) -> None:
    with path.open("wb") as stream:
        stream.write(_header("<f2", (tokens, vectors.dimensions)))
        for block in vectors.blocks():
            stream.write(np.ascontiguousarray(_float16(block, vectors)).data)


def _float16(block: Ragged, vectors: DocumentEncodings) -> NDArray[np.float16]:
    tokens = block.columns["vectors"]
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused here
        rounded = tokens.astype(np.float16, copy=False)
    if tokens.shape[1] != vectors.dimensions or not np.isfinite(rounded).all():
        raise SearchIndexError(f"{vectors.folder}: token vectors are not of {vectors.dimensions} finite numbers that float16 can hold. Normalise them")
    return rounded


def _header(kind: str, shape: tuple[int, ...]) -> bytes:
    """What a .npy file of an array begins with."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": kind, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _map(path: Path, kind: str) -> NDArray[Any]:
    """The array of a .npy file, memory-mapped, after its header and its length were compared with what is written of its shape.

    Raises:
        ValueError: they differ. numpy would read an array of another shape from a damaged header, and the beginning of too long a file.
    """
    with path.open("rb") as stream:
        start = stream.read(128)
    found = _SHAPE.search(start)
    shape = tuple(int(number) for number in found.groups() if number) if found else ()
    header = _header(kind, shape)
    entries = math.prod(shape)
    if not start.startswith(header) or path.stat().st_size != len(header) + entries * np.dtype(kind).itemsize:
        raise ValueError("not a whole array")
    if entries == 0:  # which cannot be mapped
        return np.empty(shape, dtype=kind)
    return np.asarray(np.memmap(path, dtype=kind, mode="c", offset=len(header), shape=shape))  # "c": torch warns of arrays that are read-only
