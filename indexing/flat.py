"""Search with FAISS in which every document's vector is compared: exact, unless the vectors are quantised."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import DocumentEncodings
from retriever.files import write_atomic
from retriever.indexing._arrays import damaged
from retriever.indexing._effort import settle
from retriever.indexing._faiss import DenseIndex, code_name, library, made, reserve, scores_one_by_one, training_sample
from retriever.indexing._vector_files import FILE, VECTORS, Facts, chunks, open_dense, read_index, write_facts
from retriever.settings.index import FlatSettings

FACTS = "flat.json"
"""Beside an index of codes; one of whole vectors says all of itself."""

TRAINED_ON = 1 << 16

FEW = 4
"""Where no more than this part of the documents is allowed, their vectors are copied and compared: sooner than passing over the others."""

_HEADER = struct.Struct("<4siqqq?iq")
"""FAISS's own: "IxFI", D, N, two numbers without meaning, trained, metric (0: inner product), numbers that follow."""


class FlatIndex(DenseIndex):
    """An opened flat index."""

    def _find(self, queries: NDArray[np.float32], depth: int, candidates: int, selector: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        parameters = library().SearchParameters(sel=selector) if selector is not None else None
        if self.quantisation != "none":
            scores, rows = self._engine(queries, depth, parameters).search(queries, depth, params=parameters)
            return scores, rows
        further = min(candidates, depth + 1)
        scores, rows = self._engine(queries, further, parameters).search(queries, further, params=parameters)
        if len(queries) > 1:  # which FAISS may have multiplied together
            scores = scores_one_by_one(self.index, queries, rows)
            order = np.lexsort((rows, -scores))
            scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
        if (scores[:, 1:] == scores[:, :-1]).any():
            for number in np.flatnonzero((scores[:, 1:] == scores[:, :-1]).any(axis=1)):
                scores[number, :depth], rows[number, :depth] = self._first_of_equals(queries[number : number + 1], depth, candidates, parameters)
        return scores[:, :depth], rows[:, :depth]

    def _first_of_equals(self, query: NDArray[np.float32], depth: int, candidates: int, parameters: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """What was found for a query of which several documents have the same score, those in the order of their rows: FAISS keeps any of them."""
        further = min(candidates, depth + 1)
        scores, rows = self.index.search(query, further, params=parameters)
        while further < candidates and scores[0, depth - 1] == scores[0, -1]:
            further = min(candidates, 4 * further)
            scores, rows = self.index.search(query, further, params=parameters)
        order = np.lexsort((rows[0], -scores[0]))[:depth]
        return scores[0, order], rows[0, order]

    def _few(self, candidates: int, k: int) -> bool:
        if self.quantisation == "rabitq" and self.full is None:
            return False  # its scores are not products with what it keeps of a vector
        return self.quantisation == "pq" or candidates * FEW <= len(self)  # FAISS selects among no pq codes


def of_vectors(vectors: DocumentEncodings, folder: Path | None = None) -> FlatIndex:
    """A flat index in memory, not written anywhere."""
    index = library().IndexFlatIP(vectors.dimensions)
    reserve(index.codes, 4 * len(vectors) * vectors.dimensions)
    for chunk in chunks(vectors):
        index.add(chunk)
    return FlatIndex(index, folder or vectors.folder)


def build(vectors: DocumentEncodings, folder: Path, settings: FlatSettings) -> dict[str, Any]:
    """Writes a flat inner-product index of the vectors, in their order, as a file that stock FAISS opens.

    Returns:
        The quantisation; of one that loses something the refinement, and the recall and milliseconds that were measured of it.

    Raises:
        ConfigError: the codes do not fit the dimensions.
        SearchIndexError: there are no documents.
    """
    code = code_name(settings, vectors.dimensions)
    for name in (FACTS, VECTORS):
        (folder / name).unlink(missing_ok=True)  # files of two indexes never stand beside each other
    if settings.quantisation == "none":
        write_atomic(folder / FILE, lambda path: _write_whole(vectors, path))
        return {"quantisation": "none"}
    index = made(vectors.dimensions, code)
    index.train(training_sample(vectors, TRAINED_ON))
    reserve(index.codes, index.code_size * len(vectors))
    for chunk in chunks(vectors):
        index.add(chunk)
    write_atomic(folder / FILE, lambda path: library().write_index(index, str(path)))
    served = FlatIndex(read_index(folder / FILE), folder, settings.quantisation)
    told = settle(served, vectors, settings, (1,))
    facts = Facts(len(vectors), vectors.dimensions, settings.quantisation, 1, served.refine, index.code_size * len(vectors), told)
    return write_facts(folder / FACTS, facts, None)


def open_index(folder: Path) -> FlatIndex:
    """The index in a folder, memory-mapped.

    Raises:
        SearchIndexError: there is none, or its file is cut or damaged.
    """
    path = folder / FILE
    if not (folder / FACTS).exists():
        try:
            _check_header(path)
        except (OSError, ValueError) as error:
            raise damaged(path) from error
        return FlatIndex(read_index(path), folder)
    return open_dense(FlatIndex, folder, FACTS, None)


def file_header(documents: int, dimensions: int) -> bytes:
    """What the file of a flat inner-product index begins with; float32 [documents, dimensions] follow it."""
    return _HEADER.pack(b"IxFI", dimensions, documents, 1 << 20, 1 << 20, True, 0, documents * dimensions)


def _write_whole(vectors: DocumentEncodings, path: Path) -> None:
    with path.open("wb") as stream:
        stream.write(file_header(len(vectors), vectors.dimensions))
        for chunk in chunks(vectors):
            stream.write(chunk.data)


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
