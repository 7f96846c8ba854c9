"""Exact search by MaxSim: every token vector of every document is compared, nothing is lost (Khattab and Zaharia 2020, arXiv:2004.12832)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retriever.encodings import DocumentEncodings, write_array
from retriever.errors import SearchIndexError
from retriever.files import write_atomic
from retriever.indexing._arrays import damaged, header, map_array
from retriever.ragged import Ragged
from retriever.settings.index import MultiVectorSettings
from retriever.vector_index import Found

VECTORS = "vectors.npy"
"""float16 [T, D], the token vectors of all documents end to end."""

OFFSETS = "offsets.npy"
"""int64 [N + 1], where each document's begin."""

DOCUMENT_TOKENS = 4096
"""Compared at a time: their float32 vectors and their similarities with the queries' tokens stay in the processor's cache, or near it."""

QUERY_TOKENS = 2048
"""Of the queries that are searched together: a block of documents is read and converted once for all of them."""

DOCUMENTS = 16_384
"""After which the best so far are chosen: scores of so many for each query are in memory."""


def build(vectors: DocumentEncodings, folder: Path, settings: MultiVectorSettings) -> dict[str, Any]:
    """Writes the token vectors of a collection as one float16 file, and where each document's begin as another.

    Raises:
        SearchIndexError: a vector has another dimension, or is not finite in float16.
    """
    counts = [block.counts for block in vectors.blocks()]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, dtype=np.int64), *counts]))]).astype(np.int64)
    (folder / OFFSETS).unlink(missing_ok=True)  # written last: a stop before leaves an index that is refused, not a mixture of two
    write_atomic(folder / VECTORS, lambda path: _write_vectors(path, vectors, int(offsets[-1])))
    write_array(folder / OFFSETS, offsets)
    return {"tokens": int(offsets[-1])}


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

    def search(self, queries: Ragged, k: int, allowed: NDArray[np.bool_] | None = None) -> Found:
        """Rows and MaxSim scores of the best documents of each query, best first; of equal ones, the collection's order.

        Args:
            queries: float32 [Lq, D] for each of B queries.
            k: documents a query; cut to the number of those that may be found.
            allowed: [N], the documents that may be found, no others are compared; all when left out.

        Returns:
            B arrays of rows, int64, and B of scores, float32. A document without tokens has the lowest score that unit vectors could have.

        Raises:
            SearchIndexError: the vectors have another dimension, or are not finite.
        """
        check_queries(queries, self.dimensions, self.folder)
        candidates = np.arange(len(self)) if allowed is None else np.flatnonzero(allowed)
        rows: list[NDArray[np.int64]] = []
        scores: list[NDArray[np.float32]] = []
        for start, end in ranges(queries.offsets, QUERY_TOKENS):
            found, values = self._search(queries[np.arange(start, end)], k, candidates)
            rows.extend(found)
            scores.extend(values)
        return rows, scores

    def encodings(self, rows: NDArray[np.int64]) -> Ragged:
        """The token vectors of documents, float16."""
        return Ragged(self.offsets, {"vectors": self.vectors})[rows]

    def _search(self, queries: Ragged, k: int, candidates: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        rows, scores = np.zeros((len(queries), 0), dtype=np.int64), np.zeros((len(queries), 0), dtype=np.float32)
        for start in range(0, len(candidates), DOCUMENTS):
            some = candidates[start : start + DOCUMENTS]
            rows, scores = keep_best(rows, scores, some, self._scores(queries, some), k)
        return rows, scores

    def _scores(self, queries: Ragged, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """[B, n], of n documents in the order of their rows."""
        scores = np.empty((len(queries), len(rows)), dtype=np.float32)
        offsets = np.concatenate([[0], np.cumsum(self.offsets[rows + 1] - self.offsets[rows])]).astype(np.int64)
        for first, last in ranges(offsets, DOCUMENT_TOKENS):
            single = torch.from_numpy(self._tokens(rows[first:last])).float().numpy()  # three times as fast as numpy's astype
            scores[:, first:last] = maxsim(queries, Ragged(offsets[first : last + 1] - offsets[first], {"vectors": single}))
        return scores

    def _tokens(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """The token vectors of one document or more, whose rows rise; not copied where they lie together."""
        if rows[-1] - rows[0] == len(rows) - 1:
            return self.vectors[self.offsets[rows[0]] : self.offsets[rows[-1] + 1]]
        return np.asarray(self.encodings(rows).columns["vectors"])


def of_vectors(vectors: DocumentEncodings, folder: Path | None = None) -> MultiVectorIndex:
    """An index in memory, not written anywhere."""
    offsets, parts = [np.zeros(1, dtype=np.int64)], [np.empty((0, vectors.dimensions), dtype=np.float16)]
    for block in vectors.blocks():
        offsets.append(block.offsets[1:] + offsets[-1][-1])
        parts.append(half_precision(block, vectors))
    return MultiVectorIndex(np.concatenate(parts), np.concatenate(offsets), folder or vectors.folder)


def open_index(folder: Path) -> MultiVectorIndex:
    """The index in a folder, memory-mapped.

    Raises:
        SearchIndexError: there is none, or a file of it is cut or damaged.
    """
    path = folder / OFFSETS
    try:
        offsets = np.array(map_array(path, "<i8"))
        if offsets.ndim != 1 or len(offsets) == 0 or offsets[0] != 0 or (np.diff(offsets) < 0).any():
            raise ValueError("not the beginnings of documents")
        path = folder / VECTORS
        vectors = map_array(path, "<f2")
        if vectors.ndim != 2 or len(vectors) != offsets[-1]:
            raise ValueError("not the vectors of these documents")
        return MultiVectorIndex(vectors, offsets, folder)
    except (OSError, EOFError, ValueError) as error:
        raise damaged(path) from error


def search_blocks(vectors: DocumentEncodings, queries: Ragged, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows and scores [B, min(k, N)] of the best documents of each query, read once from their encodings and kept nowhere."""
    rows, scores, start = np.zeros((len(queries), 0), dtype=np.int64), np.zeros((len(queries), 0), dtype=np.float32), 0
    for block in vectors.blocks():
        tokens = half_precision(block, vectors)
        for first, last in ranges(block.offsets, DOCUMENT_TOKENS):
            offsets = block.offsets[first : last + 1]
            some = Ragged(offsets - offsets[0], {"vectors": tokens[offsets[0] : offsets[-1]].astype(np.float32)})
            rows, scores = keep_best(rows, scores, np.arange(start + first, start + last), maxsim(queries, some), k)
        start += len(block)
    return rows, scores


def check_queries(queries: Ragged, dimensions: int, folder: Path) -> None:
    """Raises SearchIndexError unless queries fit an index of token vectors of so many dimensions."""
    tokens = queries.columns["vectors"]
    if tokens.shape[1] != dimensions:
        raise SearchIndexError(
            f"{folder}: holds vectors of {dimensions} dimensions, the query has {tokens.shape[1]}. Search with the student it was built with"
        )
    if not np.isfinite(tokens).all():
        raise SearchIndexError(f"{folder}: a query's vector is not finite")


def keep_best(
    rows: NDArray[np.int64], scores: NDArray[np.float32], more: NDArray[np.int64], values: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """[B, <= k] twice, the best of those so far and of `more` [n], which come behind them, with the scores `values` [B, n]."""
    rows = np.concatenate([rows, np.broadcast_to(more, values.shape)], axis=1)
    scores = np.concatenate([scores, values], axis=1)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1)


def maxsim(queries: Ragged, documents: Ragged) -> NDArray[np.float32]:
    """[B, n], the sum over each query's tokens of the best inner product with a token of each document."""
    tokens: NDArray[np.float32] = queries.columns["vectors"]
    best = np.empty((len(tokens), len(documents)), dtype=np.float32)
    filled = documents.counts > 0
    best[:, ~filled] = -np.linalg.norm(tokens, axis=1, keepdims=True)  # as unit vectors that all point away
    if filled.any():
        of_queries, of_documents = (torch.from_numpy(one.columns["vectors"]).float() for one in (queries, documents))  # a check asks with float16 vectors
        products = (of_queries @ of_documents.T).numpy()  # numpy's threads would wait for torch's, 20 times as long
        best[:, filled] = np.maximum.reduceat(products, documents.offsets[:-1][filled], axis=1)
    scores = np.zeros((len(queries), len(documents)), dtype=np.float32)
    asked = queries.counts > 0
    if asked.any():
        scores[asked] = np.add.reduceat(best, queries.offsets[:-1][asked], axis=0)
    return scores


def ranges(offsets: NDArray[np.int64], entries: int) -> Iterator[tuple[int, int]]:
    """Texts from .. to, as many at a time as have `entries` entries together, and at least one."""
    start = 0
    while start < len(offsets) - 1:
        end = max(start + 1, int(np.searchsorted(offsets, offsets[start] + entries, side="right")) - 1)
        yield start, end
        start = end


def _write_vectors(path: Path, vectors: DocumentEncodings, tokens: int) -> None:
    with path.open("wb") as stream:
        stream.write(header("<f2", (tokens, vectors.dimensions)))
        for block in vectors.blocks():
            stream.write(np.ascontiguousarray(half_precision(block, vectors)).data)


def half_precision(block: Ragged, vectors: DocumentEncodings) -> NDArray[np.float16]:
    """The token vectors of a block in float16.

    Raises:
        SearchIndexError: a vector has another dimension, or is not finite in float16.
    """
    tokens = block.columns["vectors"]
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused here
        rounded = tokens.astype(np.float16, copy=False)
    if tokens.shape[1] != vectors.dimensions or not np.isfinite(rounded).all():
        raise SearchIndexError(f"{vectors.folder}: token vectors are not of {vectors.dimensions} finite numbers that float16 can hold. Normalise them")
    return rounded
