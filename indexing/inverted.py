"""Exact search over an inverted index of sparse vectors: every document that shares a term with the query is scored, nothing is lost.

The postings of a term are the documents that have it, in their order, each with its value; they lie term by term in arrays. A query's
scores are the product of a sparse matrix, its terms' postings, and a vector: a block of documents at a time, whose sums stay in the
processor's cache.

Bounds of a term's values (MaxScore; by blocks in BMP, Mallia et al. 2024, arXiv:2405.01117) are left out. On SPLADE-like vectors 30 % of
the postings can decide whether a document is among the best 10, even where the tenth score is known beforehand, and 12 % of all documents
are still candidates after them. To look those up in the other postings takes numpy longer than to add these: 2 ns each.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from retriever.encodings import write_array
from retriever.errors import SearchIndexError
from retriever.files import write_atomic, write_json
from retriever.indexing._arrays import damaged, header
from retriever.indexing._sparse import SparseVectors, at_least, check_queries, opened
from retriever.ragged import Ragged
from retriever.settings.index import InvertedSettings
from retriever.vector_index import Found

FACTS = "inverted.json"
OFFSETS, ROWS, VALUES, SCALES = "offsets.npy", "rows.npy", "values.npy", "scales.npy"

DOCUMENTS = 2**17
"""Scored at a time: half a megabyte of sums."""

POSTINGS = 2**26
"""In memory at a time while an index is written, or its documents are rebuilt: half a gigabyte."""

GAP = 2048
"""Documents between two that are asked for, from which a search for the second is sooner done than reading what lies between."""

LEVELS = 255
"""Of a quantised value; the last is the largest value of its term."""


class InvertedIndex:
    """An opened inverted index: 8 bytes for each entry of a document, 5 where it is quantised, and 8 or 12 for each term.

    Attributes:
        offsets: int64 [V + 1]; the postings of term t are offsets[t]:offsets[t + 1].
        rows: int32 [P], documents.
        values: float32 [P], their values; uint8 where quantised.
        n_documents: N.
        folder: named in errors.
        scales: float32 [V], by which the values of each term are multiplied where they are quantised.
    """

    def __init__(
        self,
        offsets: NDArray[np.int64],
        rows: NDArray[np.int32],
        values: NDArray[Any],
        n_documents: int,
        folder: Path,
        scales: NDArray[np.float32] | None = None,
    ) -> None:
        self.offsets = offsets
        self.rows = rows
        self.values = values
        self.n_documents = n_documents
        self.folder = folder
        self.scales = scales

    def __len__(self) -> int:
        return self.n_documents

    @property
    def dimensions(self) -> int:
        """V."""
        return len(self.offsets) - 1

    def search(self, queries: Ragged, k: int, allowed: NDArray[np.bool_] | None = None) -> Found:
        """Rows and inner products of the best documents of each query, best first, equal ones in the order of their rows.

        Products are summed in float32, in the order of the query's entries: sums of 100 products differ from exact ones by less than a
        hundred-thousandth. Quantised, they are those of the rounded values.

        Args:
            queries: B sparse vectors, with the columns `dimensions` and `values`.
            k: documents a query at most; there are fewer where fewer have a score above 0.
            allowed: [N], the documents that may be found; all when left out.

        Returns:
            B arrays of rows, int64, and B of scores, float32.

        Raises:
            SearchIndexError: a query has a dimension that the index lacks, a value is not finite, or the postings are damaged.
        """
        check_queries(queries, self.dimensions, self.folder)
        dimensions, weights = queries.columns["dimensions"], np.asarray(queries.columns["values"], dtype=np.float32)
        if self.scales is not None:
            weights = weights * self.scales[dimensions]
        entries = [slice(start, end) for start, end in zip(queries.offsets[:-1], queries.offsets[1:], strict=True)]
        best = [self._search(dimensions[some], weights[some], k, allowed) for some in entries]
        return [rows for rows, _ in best], [scores for _, scores in best]

    def encodings(self, rows: NDArray[np.int64]) -> Ragged | None:
        """The entries of documents, by rising dimension, collected from the postings; None where these are quantised.

        Of rows that are no further apart than `GAP`, the postings between the first and the last are read, after a search in each term's
        for where they begin: ask for neighbours together.

        Raises:
            SearchIndexError: the postings are damaged.
        """
        if self.scales is not None:
            return None
        distinct, places = np.unique(rows, return_inverse=True)
        groups = np.split(distinct, np.flatnonzero(np.diff(distinct) > GAP) + 1) if len(distinct) else []
        parts = [part for group in groups for part in self._entries(group)]
        none = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64))
        owners, terms, postings = (np.concatenate(column) for column in zip(none, *parts, strict=True))
        order = np.argsort(owners, kind="stable")
        counts = np.searchsorted(owners[order], distinct, side="right") - np.searchsorted(owners[order], distinct)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Ragged(offsets, {"dimensions": terms[order], "values": self.values[postings[order]]})[places]

    def _entries(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]]:
        """The rows, terms and postings of all entries of some documents, which rise, some terms at a time."""
        first, last = int(rows[0]), int(rows[-1]) + 1
        wanted = np.zeros(last - first, dtype=np.bool_)
        wanted[rows - first] = True
        starts = self._begin(first)
        counts = self._begin(last) - starts
        bounds = np.concatenate([[0], np.cumsum(counts)])
        for begin, end in _terms(bounds):
            here = counts[begin:end]
            postings = np.arange(here.sum()) + np.repeat(starts[begin:end] - (bounds[begin:end] - bounds[begin]), here)
            owners = self._checked(self.rows[postings], first, last).astype(np.int64)
            kept = wanted[owners - first]
            yield owners[kept], np.repeat(np.arange(begin, end, dtype=np.int32), here)[kept], postings[kept]

    def _begin(self, row: int) -> NDArray[np.int64]:
        """[V], the first posting of each term whose document is not before a row, found by halving all terms' postings at once."""
        low, high = self.offsets[:-1].copy(), self.offsets[1:].copy()
        open_terms = np.flatnonzero(low < high)
        while len(open_terms):
            middle = (low[open_terms] + high[open_terms]) // 2
            before = self.rows[middle] < row
            low[open_terms[before]] = middle[before] + 1
            high[open_terms[~before]] = middle[~before]
            open_terms = open_terms[low[open_terms] < high[open_terms]]
        return low

    def _search(
        self, dimensions: NDArray[np.int32], weights: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best of one query."""
        rows, best = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        for start, scores in self._scores(dimensions, weights) if k else ():
            if allowed is not None:
                scores[~allowed[start : start + len(scores)]] = 0
            found = at_least(scores, k, best[k - 1] if len(best) == k else np.float32(0))
            rows, best = np.concatenate([rows, start + found]), np.concatenate([best, scores[found]])
            order = np.argsort(-best, kind="stable")[:k]
            rows, best = rows[order], best[order]
        return rows, best

    def _scores(self, dimensions: NDArray[np.int32], weights: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The first row of a block of documents, and the inner product of one query with each of them; nothing for a query without entries."""
        inner = np.arange(DOCUMENTS, len(self), DOCUMENTS, dtype=np.int32)
        bounds = zip(self.offsets[dimensions].tolist(), self.offsets[dimensions + 1].tolist(), strict=True)  # numbers of numpy's are slow in slices
        cuts = [[start, *(start + self.rows[start:end].searchsorted(inner)).tolist(), end] if len(inner) else [start, end] for start, end in bounds]
        for number, first in enumerate(range(0, len(self) if cuts else 0, DOCUMENTS)):
            last = min(first + DOCUMENTS, len(self))
            postings = [slice(cut[number], cut[number + 1]) for cut in cuts]
            rows = self._checked(np.concatenate([self.rows[some] for some in postings]), first, last)
            values = np.concatenate([self.values[some] for some in postings], dtype=np.float32)
            offsets = np.array([0, *itertools.accumulate(cut[number + 1] - cut[number] for cut in cuts)])
            rows -= np.int32(first)
            yield first, csc_array((values, rows, offsets), shape=(last - first, len(cuts))) @ weights

    def _checked(self, rows: NDArray[np.int32], first: int, last: int) -> NDArray[np.int32]:
        """Rows from the file, all of them from first to last - 1: scipy writes wherever they say."""
        if len(rows) and not first <= rows.min() <= rows.max() < last:
            raise damaged(self.folder / ROWS)
        return rows


def of_vectors(vectors: SparseVectors, folder: Path | None = None) -> InvertedIndex:
    """An inverted index in memory, not written anywhere."""
    offsets = _offsets(vectors)
    rows, values = _postings(vectors, offsets, 0, vectors.dimensions)
    return InvertedIndex(offsets, rows, values, len(vectors), folder or vectors.folder)


def build(vectors: SparseVectors, folder: Path, settings: InvertedSettings) -> dict[str, Any]:
    """Writes the index of the vectors' documents, in their order: arrays that numpy opens, and a file that says how long they are.

    The vectors are read once to count, and once for every `POSTINGS` postings.

    Raises:
        SearchIndexError: it shall be quantised, and a value is not above 0.
    """
    offsets = _offsets(vectors)
    kind = "|u1" if settings.quantised else "<f4"
    scales = np.zeros(vectors.dimensions, dtype=np.float32)

    def write(rows_path: Path, values_path: Path) -> None:
        with rows_path.open("wb") as rows_file, values_path.open("wb") as values_file:
            rows_file.write(header("<i4", (int(offsets[-1]),)))
            values_file.write(header(kind, (int(offsets[-1]),)))
            for first, last in _terms(offsets):
                rows, values = _postings(vectors, offsets, first, last)
                rows_file.write(rows.data)
                if settings.quantised:
                    levels, scales[first:last] = _quantised(values, offsets[first : last + 1] - offsets[first], vectors.folder)
                    values_file.write(levels.data)
                else:
                    values_file.write(values.data)

    (folder / FACTS).unlink(missing_ok=True)  # arrays of two indexes never stand beside it
    write_array(folder / OFFSETS, offsets)
    write_atomic(folder / ROWS, lambda rows_path: write_atomic(folder / VALUES, lambda values_path: write(rows_path, values_path)))
    (folder / SCALES).unlink(missing_ok=True)
    if settings.quantised:
        write_array(folder / SCALES, scales)
    facts = {"documents": len(vectors), "dimensions": vectors.dimensions, "postings": int(offsets[-1]), "quantised": settings.quantised}
    write_json(folder / FACTS, facts)
    return facts


def open_index(folder: Path) -> InvertedIndex:
    """The index in a folder, memory-mapped.

    Raises:
        SearchIndexError: there is none, or a file is missing, cut or damaged.
    """
    documents, dimensions, postings, quantised = _facts(folder / FACTS)
    offsets = opened(folder / OFFSETS, "<i8", dimensions + 1)
    if offsets[0] != 0 or offsets[-1] != postings or (np.diff(offsets) < 0).any():
        raise damaged(folder / OFFSETS)
    rows, values = opened(folder / ROWS, "<i4", postings), opened(folder / VALUES, "|u1" if quantised else "<f4", postings)
    scales = opened(folder / SCALES, "<f4", dimensions) if quantised else None
    return InvertedIndex(offsets, rows, values, documents, folder, scales)


def _offsets(vectors: SparseVectors) -> NDArray[np.int64]:
    """[V + 1], where the postings of each term begin."""
    counts = np.zeros(vectors.dimensions, dtype=np.int64)
    for block in vectors.blocks():
        counts += np.bincount(block.columns["dimensions"], minlength=vectors.dimensions)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _terms(offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Terms from .. to, as many at a time as have `POSTINGS` postings together, and at least one."""
    first = 0
    while first < len(offsets) - 1:
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + POSTINGS, side="right")) - 1)
        yield first, last
        first = last


def _postings(vectors: SparseVectors, offsets: NDArray[np.int64], first: int, last: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The rows and values of the terms first to last - 1, term by term."""
    size = int(offsets[last] - offsets[first])
    rows, values = np.empty(size, dtype=np.int32), np.empty(size, dtype=np.float32)
    free, row = offsets[first:last] - offsets[first], 0  # where the next posting of each term goes, and the row of the block's first document
    for block in vectors.blocks():
        dimensions = np.asarray(block.columns["dimensions"])
        order = np.argsort(dimensions, kind="stable")
        start, end = np.searchsorted(dimensions, [first, last], sorter=order)
        order = order[start:end]
        terms, starts, lengths = np.unique(dimensions[order] - first, return_index=True, return_counts=True)
        places = np.arange(len(order)) + np.repeat(free[terms] - starts, lengths)
        rows[places] = (row + np.repeat(np.arange(len(block)), block.counts))[order]
        values[places] = np.asarray(block.columns["values"])[order]
        free[terms] += lengths
        row += len(block)
    return rows, values


def _quantised(values: NDArray[np.float32], offsets: NDArray[np.int64], folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Values of some terms as 1 to 255, and the scale of each term, by which they are about what they were."""
    if len(values) and not values.min() > 0:
        raise SearchIndexError(f"{folder}: has the value {values.min()}, and quantised = true needs values above 0. Leave index.quantised out")
    scales, filled = np.zeros(len(offsets) - 1, dtype=np.float32), np.diff(offsets) > 0
    if filled.any():
        scales[filled] = np.maximum.reduceat(values, offsets[:-1][filled]) / LEVELS
    levels = np.rint(values / np.repeat(scales, np.diff(offsets)))
    return np.clip(levels, 1, LEVELS).astype(np.uint8), scales


def _facts(path: Path) -> tuple[int, int, int, bool]:
    """Documents, dimensions and postings, and whether their values are quantised."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        documents, dimensions, postings = (facts[name] for name in ("documents", "dimensions", "postings"))
        quantised = facts.get("quantised", False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path) from error
    if not all(isinstance(number, int) and number >= 0 for number in (documents, dimensions, postings)) or not isinstance(quantised, bool):
        raise damaged(path)
    return documents, dimensions, postings, quantised
