"""What the indexes on FAISS share: how they are made, and how a query is answered."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import DocumentEncodings
from retriever.errors import ConfigError, MissingExtraError, SearchIndexError
from retriever.settings.index import QuantisedSettings

SEED = 1
"""Of what is drawn to train, and to choose by."""

TRAINING_BYTES = 1 << 29
"""Of the float32 vectors that centroids and codes are trained on."""

COMPARED = 1 << 14
"""Documents compared at a time where some, or all, are compared one by one."""

TOGETHER_NUMBERS = 800
"""Of the queries, for each thread, from which multiplying them together costs less than passing over the vectors for each (measured for FAISS's #5109)."""

_FOR_MANY_THREADS = 128_000
"""From how many numbers FAISS 1.15 multiplies, whatever the threads: with two, 64 queries of 384 dimensions took 8 times as long."""

GPU_QUERIES, GPU_DEPTH = 64, 2048
"""Queries together from which a GPU is asked, and the most documents that it finds for one."""


class DenseIndex:
    """An opened index of N vectors, which ranks by inner product.

    Attributes:
        index: FAISS's own.
        folder: where it lies, for messages.
        quantisation: how FAISS keeps a vector.
        full: float32 [N, D], memory-mapped, where they are kept beside the index.
        refine: so many times the wanted documents are scored again by their full vectors; 1: none.
    """

    def __init__(self, index: Any, folder: Path, quantisation: str = "none", full: NDArray[np.float32] | None = None, refine: int = 1) -> None:
        self.index = index
        self.folder = folder
        self.quantisation = quantisation
        self.full = full
        self.refine = refine
        self._n_documents, self._dimensions = int(index.ntotal), int(index.d)

    def __len__(self) -> int:
        """N, the number of documents."""
        return self._n_documents

    @property
    def dimensions(self) -> int:
        """D."""
        return self._dimensions

    @property
    def effort(self) -> int:
        """What a query may cost, in the unit of the kind; there is nothing to choose in one that compares all documents."""
        return 1

    @effort.setter
    def effort(self, effort: int) -> None:
        pass

    def search(self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and scores of the best documents, best first.

        Args:
            queries: [B, D].
            k: documents a query; cut to those that are allowed.
            allowed: [N], the documents that may be found; all when left out.

        Returns:
            Rows int64 [B, min(k, documents allowed)] and scores float32 of the same shape: inner products, exact where the index keeps whole
            vectors or scores again by them, else with what is left of a vector.

        Raises:
            SearchIndexError: the queries or `allowed` have another shape, or a query is not finite.
        """
        queries = self._checked(queries)
        candidates = len(self) if allowed is None else self._count(allowed)
        k = min(k, candidates)
        if k < 1 or len(queries) == 0:
            return np.zeros((len(queries), max(k, 0)), dtype=np.int64), np.zeros((len(queries), max(k, 0)), dtype=np.float32)
        if allowed is not None and self._few(candidates, k):
            return self._compare(queries, k, np.flatnonzero(allowed))
        selector = None if allowed is None else library().IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        scores, rows = self._find(queries, min(candidates, k * self.refine), candidates, selector)
        if self.refine > 1 and self.full is not None:
            scores, rows = _rescored(self.full, queries, rows, k)
        if rows[:, k - 1].min() < 0:  # a walk that ended early
            lacking = rows[:, k - 1] < 0
            rows[lacking], scores[lacking] = self._compare(queries[lacking], k, np.arange(len(self)) if allowed is None else np.flatnonzero(allowed))
        return rows, scores

    def encodings(self, rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """[len(rows), D], the vectors as they were encoded (rounded to float16 where the index keeps those alone), or None where only codes are kept."""
        return self._vectors(rows) if self.full is not None or self.quantisation in ("none", "fp16") else None

    def _find(self, queries: NDArray[np.float32], depth: int, candidates: int, selector: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and rows [B, depth] as FAISS finds them, the best of `candidates` documents; rows of -1 at the end where it found fewer."""
        raise NotImplementedError

    def _few(self, candidates: int, k: int) -> bool:
        """Whether comparing all documents that are allowed costs no more than a search among them."""
        raise NotImplementedError

    def _decode(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """[len(rows), D], what FAISS keeps of the vectors."""
        decoded: NDArray[np.float32] = self.index.reconstruct_batch(rows)
        return decoded

    def _vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._decode(rows) if self.full is None else self.full[rows]

    def _compare(self, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best of some documents, each compared; of equal ones the first."""
        best = np.zeros((len(queries), 0), dtype=np.int64)
        scores = np.zeros((len(queries), 0), dtype=np.float32)
        for start in range(0, len(rows), COMPARED):
            some = rows[start : start + COMPARED]
            scores = np.concatenate([scores, queries @ self._vectors(some).T], axis=1)
            best = np.concatenate([best, np.broadcast_to(some, (len(queries), len(some)))], axis=1)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            best, scores = np.take_along_axis(best, order, axis=1), np.take_along_axis(scores, order, axis=1)
        return best, scores

    def _engine(self, queries: NDArray[np.float32], depth: int, parameters: Any) -> Any:
        """FAISS's index, or its copy on the GPUs for many queries at once; a copy takes no parameters."""
        return self._on_gpus if len(queries) >= GPU_QUERIES and depth <= GPU_DEPTH and parameters is None else self.index

    @cached_property
    def _on_gpus(self) -> Any:
        try:
            return on_gpus(self.index)
        except RuntimeError:  # a kind that GPUs lack, or more than their memory
            return self.index

    def _checked(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        if queries.shape[1] != self._dimensions:
            raise SearchIndexError(
                f"{self.folder}: holds vectors of {self.dimensions} dimensions, the query has {queries.shape[1]}. Search with the student it was built with"
            )
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if not math.isfinite(np.vdot(queries, queries)) and not np.isfinite(queries).all():  # the product is the sooner by microseconds
            raise SearchIndexError(f"{self.folder}: a query's vector is not finite")
        return queries

    def _count(self, allowed: NDArray[np.bool_]) -> int:
        if allowed.shape != (len(self),) or allowed.dtype != np.bool_:
            raise SearchIndexError(f"{self.folder}: which of {len(self):,} documents are allowed was said of {len(allowed):,}. Give a bool for each document")
        return int(np.count_nonzero(allowed))


def library() -> Any:
    """FAISS, which multiplies queries together where that is the sooner; a threshold that the user's program has set stays.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("faiss", "cpu") from error
    if faiss.cvar.distance_compute_blas_threshold == _FOR_MANY_THREADS:
        faiss.cvar.distance_compute_blas_threshold = TOGETHER_NUMBERS * faiss.omp_get_max_threads()
    return faiss


def scores_one_by_one(index: Any, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Inner products [B, K] of each query with the vectors of its rows in a flat index: equal vectors have equal ones, which in a large product may differ."""
    faiss, scores = library(), np.empty(rows.shape, dtype=np.float32)
    index.compute_distance_subset(len(queries), faiss.swig_ptr(queries), rows.shape[1], faiss.swig_ptr(scores), faiss.swig_ptr(rows))
    return scores


def on_gpus(index: Any) -> Any:
    """An index copied to all GPUs where FAISS finds any, else itself."""
    faiss = library()
    return faiss.index_cpu_to_all_gpus(index) if faiss.get_num_gpus() else index


def code_name(settings: QuantisedSettings, dimensions: int) -> str:
    """What FAISS's factory calls the codes of the vectors.

    Raises:
        ConfigError: the dimensions do not split into as many parts as a pq code has bytes.
    """
    divisors = [parts for parts in range(1, dimensions + 1) if dimensions % parts == 0]
    parts = settings.pq_bytes or max(part for part in divisors if part <= max(1, dimensions // 16))
    if parts not in divisors:
        raise ConfigError(f"index.pq_bytes: {parts} does not divide the {dimensions} dimensions; possible are {', '.join(map(str, divisors))}")
    return {"none": "Flat", "fp16": "SQfp16", "int8": "SQ8", "rabitq": "RaBitQ", "pq": f"PQ{parts}np"}[settings.quantisation]


def made(dimensions: int, name: str) -> Any:
    """An empty index of inner products of the kind that FAISS's factory gives for a name; it trains by a fixed seed, and in silence."""
    faiss = library()
    index = faiss.index_factory(dimensions, name, faiss.METRIC_INNER_PRODUCT)
    for trained in (index, getattr(index, "pq", index)):
        if hasattr(trained, "cp"):
            trained.cp.min_points_per_centroid = 1
            trained.cp.seed = SEED
    return index


def reserve(array: Any, entries: int) -> None:
    """Gives an array of FAISS's room for so many entries: one that grows is copied, and takes twice its memory meanwhile."""
    array.resize(entries)
    array.resize(0)


def _rescored(full: NDArray[np.float32], queries: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores and rows [B, k], the best of what was found by their full vectors."""
    scores = np.empty(rows.shape, dtype=np.float32)
    for number, query in enumerate(queries):
        np.dot(full[rows[number]], query, out=scores[number])
    scores[rows < 0] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def training_sample(vectors: DocumentEncodings, wanted: int) -> NDArray[np.float32]:
    """[n, D], vectors drawn to train on; repeated where there are fewer than the 256 that a byte of a code tells apart.

    Raises:
        SearchIndexError: there are none.
    """
    if len(vectors) == 0:
        raise SearchIndexError(f"{vectors.folder}: there are no documents to index. Add some to the collection")
    size = min(len(vectors), wanted, TRAINING_BYTES // (4 * vectors.dimensions))
    rows = np.sort(np.random.default_rng(SEED).choice(len(vectors), size, replace=False))
    sample = vectors.rows(rows)
    return np.ascontiguousarray(np.resize(sample, (max(256, size), vectors.dimensions)), dtype=np.float32)
