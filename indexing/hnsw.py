"""Search with FAISS in a graph of near vectors, walked from far to near (Malkov and Yashunin 2018, arXiv:1603.09320).

The graph lies in memory with the codes while it is built, and is added to in the documents' order; a stop begins it anew. There is none of pq
codes: FAISS builds it slowly, and its walks miss a fifth of what other graphs find.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import DocumentEncodings
from retriever.files import write_atomic
from retriever.indexing._effort import doubling, settle
from retriever.indexing._faiss import DenseIndex, code_name, library, made, reserve, training_sample
from retriever.indexing._vector_files import FILE, VECTORS, Facts, chunks, open_dense, read_index, write_facts
from retriever.settings.index import HnswSettings

FACTS = "hnsw.json"
TRAINED_ON = 1 << 16
CANDIDATES = (16, 4096)
"""The fewest and the most that are chosen for a query."""


class HnswIndex(DenseIndex):
    """An opened graph. A query's effort is the candidates that its walk keeps; more documents than those need as many."""

    @property
    def effort(self) -> int:
        """Candidates of a query."""
        return int(self.index.hnsw.efSearch)

    @effort.setter
    def effort(self, effort: int) -> None:
        self.index.hnsw.efSearch = effort

    def _find(self, queries: NDArray[np.float32], depth: int, candidates: int, selector: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        parameters = None
        if selector is not None:  # the walk's candidates are all documents: of so many more as many are allowed
            parameters = library().SearchParametersHNSW(sel=selector, efSearch=self._walked(candidates, depth))
        scores, rows = self.index.search(queries, depth, params=parameters)
        return scores, rows

    def _few(self, candidates: int, k: int) -> bool:
        return candidates <= self._walked(candidates, k * self.refine) * int(self.index.hnsw.nb_neighbors(1))

    def _walked(self, candidates: int, depth: int) -> int:
        """Candidates of a walk that has the usual number among those that are allowed."""
        return math.ceil(max(self.effort, depth) * len(self) / candidates)

    def _decode(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        decoded: NDArray[np.float32] = self.index.storage.reconstruct_batch(rows)
        return decoded


def build(vectors: DocumentEncodings, folder: Path, settings: HnswSettings) -> dict[str, Any]:
    """Writes a graph of the vectors as a file that stock FAISS opens.

    Returns:
        What was chosen, and the recall and milliseconds that were measured of it.

    Raises:
        SearchIndexError: there are no documents.
    """
    index = made(vectors.dimensions, f"HNSW{settings.neighbours},{code_name(settings, vectors.dimensions)}")
    index.hnsw.efConstruction = settings.ef_construction
    for name in (FACTS, VECTORS):
        (folder / name).unlink(missing_ok=True)  # files of two indexes never stand beside each other
    codes = _write_graph(index, vectors, folder / FILE)
    served = HnswIndex(read_index(folder / FILE), folder, settings.quantisation)
    efforts = (settings.ef_search,) if settings.ef_search else doubling(CANDIDATES[0], max(CANDIDATES[0], min(CANDIDATES[1], len(vectors))))
    told = {"neighbours": settings.neighbours, "ef_construction": settings.ef_construction, **settle(served, vectors, settings, efforts)}
    return write_facts(folder / FACTS, Facts(len(vectors), vectors.dimensions, settings.quantisation, served.effort, served.refine, codes, told), "ef_search")


def open_index(folder: Path) -> HnswIndex:
    """The index in a folder, memory-mapped.

    Raises:
        SearchIndexError: there is none, or a file of it is missing, cut or damaged.
    """
    return open_dense(HnswIndex, folder, FACTS, "ef_search")


def _write_graph(index: Any, vectors: DocumentEncodings, path: Path) -> int:
    """Trains, fills and writes an empty graph; returns the bytes of the codes in the file."""
    index.train(training_sample(vectors, TRAINED_ON))
    storage = library().downcast_index(index.storage)
    codes = int(storage.code_size) * len(vectors)
    reserve(storage.codes, codes)
    reserve(index.hnsw.neighbors, index.hnsw.nb_neighbors(0) * len(vectors))
    for chunk in chunks(vectors):
        index.add(chunk)
    write_atomic(path, lambda temporary: library().write_index(index, str(temporary)))
    return codes
