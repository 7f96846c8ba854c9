"""Exact search with FAISS: every document's vector is compared, nothing is lost."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import Vectors
from retriever.errors import MissingExtraError, SearchIndexError
from retriever.files import write_atomic
from retriever.index_settings import FlatSettings

FILE = "index.faiss"
_HEADER = struct.Struct("<4siqqq?iq")
"""FAISS's own: "IxFI", D, N, two numbers without meaning, trained, metric (0: inner product), numbers that follow."""


def build(vectors: Vectors, folder: Path, settings: FlatSettings) -> None:
    """Writes a flat inner-product index of the vectors, in their order, as a file that stock FAISS opens."""
    write_atomic(folder / FILE, lambda path: _faiss().write_index(of_vectors(vectors, folder).index, str(path)))


class FlatIndex:
    """An opened flat index."""

    def __init__(self, index: Any, folder: Path) -> None:
        self.index = index
        self.folder = folder

    def __len__(self) -> int:
        """N, the number of documents."""
        return int(self.index.ntotal)

    @property
    def dimensions(self) -> int:
        """D."""
        return int(self.index.d)

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and inner products of the best documents, best first.

        Args:
            queries: [B, D].
            k: documents a query; cut to N.

        Returns:
            Rows int64 [B, min(k, N)] and scores float32 of the same shape.

        Raises:
            SearchIndexError: the vectors have another dimension, or are not finite.
        """
        if queries.shape[1] != self.dimensions:
            raise SearchIndexError(
                f"{self.folder}: holds vectors of {self.dimensions} dimensions, the query has {queries.shape[1]}. Search with the student it was built with"
            )
        if not np.isfinite(queries).all():
            raise SearchIndexError(f"{self.folder}: a query's vector is not finite")
        scores, rows = self.index.search(np.ascontiguousarray(queries, dtype=np.float32), min(k, len(self)))
        return rows.astype(np.int64), scores


def of_vectors(vectors: Vectors, folder: Path | None = None) -> FlatIndex:
    """A flat index in memory, not written anywhere."""
    index = _faiss().IndexFlatIP(vectors.dimensions)
    for block in vectors.blocks():
        index.add(np.ascontiguousarray(block))
    return FlatIndex(index, folder or vectors.folder)


def open_index(folder: Path) -> FlatIndex:
    """The index in a folder, memory-mapped.

    Raises:
        SearchIndexError: there is none, or its file is cut or damaged.
    """
    faiss = _faiss()
    path = folder / FILE
    try:
        _check_header(path)
        return FlatIndex(faiss.read_index(str(path), getattr(faiss, "IO_FLAG_MMAP_IFC", 0)), folder)  # FAISS before 1.11 reads it into memory
    except (OSError, ValueError, RuntimeError) as error:
        reason = "cut or damaged" if path.exists() else "missing"
        raise SearchIndexError(f"{path}: the index file is {reason}. Build it again with: retriever index") from error


def _check_header(path: Path) -> None:
    """Raises ValueError unless the file is a flat inner-product index of the length that its header names.

    FAISS believes the header: it reads past the end of a cut file, and asks for as much memory as a damaged one says.
    """
    with path.open("rb") as stream:
        header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise ValueError("shorter than its header")
    magic, dimensions, documents, _, _, trained, metric, floats = _HEADER.unpack(header)
    right_kind = (magic, trained, metric) == (b"IxFI", True, 0) and min(dimensions, documents) >= 0
    if not right_kind or floats != dimensions * documents or path.stat().st_size != _HEADER.size + 4 * floats:
        raise ValueError("not a whole flat index")


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("faiss", "cpu") from error
    return faiss
