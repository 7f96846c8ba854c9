"""Exact search with FAISS: every document's vector is compared, nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import Vectors
from retriever.errors import MissingExtraError, SearchIndexError
from retriever.files import write_atomic

FILE = "index.faiss"


def build(vectors: Vectors, folder: Path) -> None:
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
        return FlatIndex(faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY), folder)
    except RuntimeError as error:
        reason = "missing" if not path.exists() else "cut or damaged"
        raise SearchIndexError(f"{path}: the index file is {reason}. Build it again with: retriever index") from error


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("faiss", "cpu") from error
    return faiss
