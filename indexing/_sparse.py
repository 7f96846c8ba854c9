"""What indexes of sparse vectors share: the entries of documents on disk, the check of queries, and the best of many scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import write_array
from retriever.errors import SearchIndexError
from retriever.files import write_atomic
from retriever.indexing._arrays import damaged, header, map_array
from retriever.ragged import Ragged

OFFSETS, DIMENSIONS, VALUES = "document_offsets.npy", "document_dimensions.npy", "document_values.npy"

U16 = 2**16 - 1
"""Dimensions up to which they are numbered in two bytes."""

STRIPES = 64
"""Scores of which the best alone is looked at, to find one that the k best reach."""


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


def check_queries(queries: Ragged, dimensions: int, folder: Path) -> None:
    """Raises SearchIndexError unless queries fit the index of so many dimensions in a folder."""
    asked = queries.columns["dimensions"]
    wrong = asked[(asked < 0) | (asked >= dimensions)]
    if len(wrong):
        raise SearchIndexError(
            f"{folder}: holds vectors of {dimensions} dimensions, the query has dimension {wrong[0]}. Search with the student it was built with"
        )
    if not np.isfinite(queries.columns["values"]).all():
        raise SearchIndexError(f"{folder}: a query's vector is not finite")


def at_least(scores: NDArray[np.float32], k: int, least: np.float32) -> NDArray[np.int64]:
    """Rising numbers of n scores: of those that are above 0 and not below `least`, the k best and what is equal to the last of them."""
    stripes = scores[: len(scores) // STRIPES * STRIPES].reshape(STRIPES, -1).max(axis=0)
    if len(stripes) > k:  # k stripes have a score as high as this
        least = max(least, np.partition(stripes, len(stripes) - k)[len(stripes) - k])
    found = np.flatnonzero(scores >= least if least > 0 else scores > 0)
    if len(found) > k:
        found = found[scores[found] >= np.partition(scores[found], len(found) - k)[len(found) - k]]
    return found


def rising(texts: Ragged) -> Ragged:
    """The entries of each text by rising dimension."""
    dimensions = np.asarray(texts.columns["dimensions"])
    order = np.lexsort((dimensions, np.repeat(np.arange(len(texts)), texts.counts)))
    return Ragged(texts.offsets, {"dimensions": dimensions[order].astype(np.int32), "values": np.asarray(texts.columns["values"])[order].astype(np.float32)})


def write_entries(vectors: SparseVectors, folder: Path) -> int:
    """Writes the entries of documents, by rising dimension, as three arrays, block by block; returns how many there are."""
    counts = [np.zeros(0, dtype=np.int64), *(block.counts for block in vectors.blocks())]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    kind = _kind(vectors.dimensions)

    def write(dimensions_path: Path, values_path: Path) -> None:
        with dimensions_path.open("wb") as dimensions_file, values_path.open("wb") as values_file:
            dimensions_file.write(header(kind, (int(offsets[-1]),)))
            values_file.write(header("<f4", (int(offsets[-1]),)))
            for block in map(rising, vectors.blocks()):
                dimensions_file.write(block.columns["dimensions"].astype(kind).data)
                values_file.write(block.columns["values"].data)

    write_array(folder / OFFSETS, offsets)
    write_atomic(folder / DIMENSIONS, lambda dimensions_path: write_atomic(folder / VALUES, lambda values_path: write(dimensions_path, values_path)))
    return int(offsets[-1])


def open_entries(folder: Path, documents: int, dimensions: int, entries: int) -> Ragged:
    """What `write_entries` wrote, memory-mapped.

    Raises:
        SearchIndexError: a file is missing, cut or damaged, or there are not so many.
    """
    offsets = opened(folder / OFFSETS, "<i8", documents + 1)
    if offsets[0] != 0 or offsets[-1] != entries or (np.diff(offsets) < 0).any():
        raise damaged(folder / OFFSETS)
    return Ragged(offsets, {"dimensions": opened(folder / DIMENSIONS, _kind(dimensions), entries), "values": opened(folder / VALUES, "<f4", entries)})


def opened(path: Path, kind: str, length: int) -> NDArray[Any]:
    """The array of one dimension in a file, memory-mapped.

    Raises:
        SearchIndexError: it is missing, cut or damaged, or is not of this kind and length.
    """
    try:
        array = map_array(path, kind)
    except (OSError, ValueError) as error:
        raise damaged(path) from error
    if array.shape != (length,):
        raise damaged(path)
    return array


def _kind(dimensions: int) -> str:
    return "<u2" if dimensions <= U16 else "<u4"
