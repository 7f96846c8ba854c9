"""Exact search over an inverted index of sparse vectors: every document that shares a term with the query is scored, nothing is lost.

The postings of a term are the documents that have it, in their order, each with its value; they lie term by term in three arrays.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import write_array
from retriever.errors import SearchIndexError
from retriever.files import write_json
from retriever.index_settings import InvertedSettings
from retriever.ragged import Ragged

FACTS = "inverted.json"
OFFSETS, ROWS, VALUES = "offsets.npy", "rows.npy", "values.npy"


class SparseVectors(Protocol):
    """The entries `dimensions` and `values` of N documents."""

    @property
    def folder(self) -> Path:
        """Where they lie."""
        ...

    @property
    def dimensions(self) -> int:
        """V, the size of the vocabulary."""
        ...

    def __len__(self) -> int:
        """N."""
        ...

    def blocks(self) -> Iterator[Ragged]:
        """Some documents' entries at a time, all of them in the end, in their order."""
        ...


class InvertedIndex:
    """An opened inverted index: 8 bytes for each entry of a document, and 8 for each term.

    Attributes:
        offsets: int64 [V + 1]; the postings of term t are offsets[t]:offsets[t + 1].
        rows: int32 [P], documents.
        values: float32 [P], their values.
        n_documents: N.
        folder: named in errors.
    """

    def __init__(self, offsets: NDArray[np.int64], rows: NDArray[np.int32], values: NDArray[np.float32], n_documents: int, folder: Path) -> None:
        self.offsets = offsets
        self.rows = rows
        self.values = values
        self.n_documents = n_documents
        self.folder = folder

    def __len__(self) -> int:
        return self.n_documents

    @property
    def dimensions(self) -> int:
        """V."""
        return len(self.offsets) - 1

    def search(self, queries: Ragged, k: int) -> tuple[list[NDArray[np.int64]], list[NDArray[np.float32]]]:
        """Rows and inner products of the best documents of each query, best first, equal ones in the order of their rows.

        Args:
            queries: B sparse vectors, with the columns `dimensions` and `values`.
            k: documents a query at most; there are fewer where fewer have a score above 0.

        Returns:
            B arrays of rows, int64, and B of scores, float32.

        Raises:
            SearchIndexError: a query has a dimension that the index lacks, a value is not finite, or the postings are damaged.
        """
        dimensions, weights = queries.columns["dimensions"], queries.columns["values"]
        wrong = dimensions[(dimensions < 0) | (dimensions >= self.dimensions)]
        if len(wrong):
            raise SearchIndexError(
                f"{self.folder}: holds vectors of {self.dimensions} dimensions, the query has dimension {wrong[0]}. Search with the student it was built with"
            )
        if not np.isfinite(weights).all():
            raise SearchIndexError(f"{self.folder}: a query's vector is not finite")
        entries = [slice(start, end) for start, end in zip(queries.offsets[:-1], queries.offsets[1:], strict=True)]
        best = [_best(self._scores(dimensions[some], weights[some]), k) for some in entries]
        return [rows for rows, _ in best], [scores for _, scores in best]

    def _scores(self, dimensions: NDArray[np.int32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """[N], the inner product of one query with every document."""
        postings = [slice(self.offsets[dimension], self.offsets[dimension + 1]) for dimension in dimensions]
        if not postings:
            return np.zeros(len(self), dtype=np.float32)
        rows = np.concatenate([self.rows[some] for some in postings])
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise _damaged(self.folder / ROWS)
        products = np.concatenate([self.values[some] * weight for some, weight in zip(postings, weights, strict=True)])
        return np.bincount(rows, products, minlength=len(self)).astype(np.float32)


def of_vectors(vectors: SparseVectors, folder: Path | None = None) -> InvertedIndex:
    """An inverted index in memory, not written anywhere."""
    counts = np.zeros(vectors.dimensions, dtype=np.int64)
    for block in vectors.blocks():
        counts += np.bincount(block.columns["dimensions"], minlength=vectors.dimensions)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    rows, values = np.empty(offsets[-1], dtype=np.int32), np.empty(offsets[-1], dtype=np.float32)
    free, first = offsets[:-1].copy(), 0  # where the next posting of each term goes, and the row of the block's first document
    for block in vectors.blocks():
        dimensions = np.asarray(block.columns["dimensions"])
        order = np.argsort(dimensions, kind="stable")
        terms, starts, lengths = np.unique(dimensions[order], return_index=True, return_counts=True)
        places = np.arange(len(order)) + np.repeat(free[terms] - starts, lengths)
        rows[places] = (first + np.repeat(np.arange(len(block)), block.counts))[order]
        values[places] = block.columns["values"][order]
        free[terms] += lengths
        first += len(block)
    return InvertedIndex(offsets, rows, values, len(vectors), folder or vectors.folder)


def build(vectors: SparseVectors, folder: Path, settings: InvertedSettings) -> None:
    """Writes the index of the vectors' documents, in their order: three arrays that numpy opens, and a file that says how long they are."""
    index = of_vectors(vectors, folder)
    (folder / FACTS).unlink(missing_ok=True)  # arrays of two indexes never stand beside it
    for name, array in ((OFFSETS, index.offsets), (ROWS, index.rows), (VALUES, index.values)):
        write_array(folder / name, array)
    write_json(folder / FACTS, {"documents": len(index), "dimensions": index.dimensions, "postings": len(index.rows)})


def open_index(folder: Path) -> InvertedIndex:
    """The index in a folder, memory-mapped.

    Raises:
        SearchIndexError: there is none, or a file is missing, cut or damaged.
    """
    documents, dimensions, postings = _facts(folder / FACTS)
    offsets = _opened(folder / OFFSETS, np.dtype(np.int64), dimensions + 1)
    if offsets[0] != 0 or offsets[-1] != postings or (np.diff(offsets) < 0).any():
        raise _damaged(folder / OFFSETS)
    rows, values = _opened(folder / ROWS, np.dtype(np.int32), postings), _opened(folder / VALUES, np.dtype(np.float32), postings)
    return InvertedIndex(offsets, rows, values, documents, folder)


def _best(scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k best of N scores that are above 0."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > k:
        least = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
        rows = rows[scores[rows] >= least]  # more than k where several have the least score; the stable sort keeps the first of them
    rows = rows[np.argsort(-scores[rows], kind="stable")][:k]
    return rows.astype(np.int64), scores[rows]


def _facts(path: Path) -> tuple[int, int, int]:
    """Documents, dimensions and postings."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        documents, dimensions, postings = (facts[name] for name in ("documents", "dimensions", "postings"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error
    if not all(isinstance(number, int) and number >= 0 for number in (documents, dimensions, postings)):
        raise _damaged(path)
    return documents, dimensions, postings


def _opened(path: Path, kind: np.dtype[Any], length: int) -> NDArray[Any]:
    """An array as long as it must be, memory-mapped; one without entries cannot be mapped.

    The header is compared, not read: numpy evaluates it, and fails on a damaged one in many ways.
    """
    header = _header(kind, length)
    try:
        with path.open("rb") as stream:
            whole = stream.read(len(header)) == header and path.stat().st_size == len(header) + length * kind.itemsize
    except OSError as error:
        raise _damaged(path) from error
    if not whole:
        raise _damaged(path)
    return np.asarray(np.memmap(path, kind, "r", len(header), (length,))) if length else np.zeros(0, dtype=kind)


def _header(kind: np.dtype[Any], length: int) -> bytes:
    """What a .npy file of one dimension begins with."""
    stream = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(stream, facts)
    return stream.getvalue()


def _damaged(path: Path) -> SearchIndexError:
    reason = "cut or damaged" if path.exists() else "missing"
    return SearchIndexError(f"{path}: the index file is {reason}. Build it again with: retriever index")
