"""Search with FAISS in lists around centroids, of which the nearest to the query are read (an inverted file, IVF)."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import DocumentEncodings
from retriever.errors import ConfigError
from retriever.files import fingerprint, write_atomic
from retriever.indexing._arrays import damaged
from retriever.indexing._effort import WANTED, doubling, settle
from retriever.indexing._faiss import DenseIndex, code_name, library, made, on_gpus, training_sample
from retriever.indexing._lists import ROW_BYTES, remove_parts, write_lists
from retriever.indexing._vector_files import FILE, VECTORS, Facts, open_dense, read_index, write_facts
from retriever.settings.index import IvfSettings

FACTS = "ivf.json"
PARTS, TRAINED = "parts", "trained.faiss"
"""The folder of an index that is being built, and what was trained of it."""

POINTS = 50
"""Vectors drawn for each centroid."""

ITERATIONS = 10
"""Of k-means: more move the centroids of an index by little."""

READ = 8
"""Times the wanted documents that the lists read should hold at least: what is chosen by 10 wanted documents is too little for 1,000."""


PASSED_OVER = 16
"""Documents that a search passes over in the time in which one is fetched and compared."""


class IvfIndex(DenseIndex):
    """An opened inverted file. A query's effort is the lists that it reads."""

    @cached_property
    def lists(self) -> int:
        """How many there are."""
        return int(self.index.nlist)

    @property
    def effort(self) -> int:
        """Lists read for a query."""
        return int(self.index.nprobe)

    @effort.setter
    def effort(self, effort: int) -> None:
        self.index.nprobe = effort
        self.__dict__.pop("_on_gpus", None)  # a copy keeps the number it was made with

    def _find(self, queries: NDArray[np.float32], depth: int, candidates: int, selector: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        probes = self._probes(candidates, max(1, depth // self.refine))
        scores, rows = self._read(queries, depth, probes, selector)
        while probes < self.lists and rows[:, -1].min() < 0:
            probes, lacking = min(4 * probes, self.lists), rows[:, -1] < 0
            scores[lacking], rows[lacking] = self._read(queries[lacking], depth, probes, selector)
        if rows.max() >= len(self):
            raise damaged(self.folder / FILE)
        return scores, rows

    def _read(self, queries: NDArray[np.float32], depth: int, probes: int, selector: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        parameters = None
        if selector is not None or probes != self.effort:
            parameters = library().SearchParametersIVF(sel=selector, nprobe=probes)
        scores, rows = self._engine(queries, depth, parameters).search(queries, depth, params=parameters)
        return scores, rows

    def _probes(self, candidates: int, k: int) -> int:
        """Lists to read for the best k of so many candidates: among fewer the best lie further off."""
        chosen = self.effort if candidates == len(self) else self.effort * math.sqrt(len(self) / candidates)
        return min(self.lists, math.ceil(max(chosen, READ * k * self.lists / candidates)))

    def least(self) -> int:
        """The fewest lists that are worth trying: no search for ten documents reads less."""
        return self._probes(len(self), WANTED + 1)

    def _few(self, candidates: int, k: int) -> bool:
        return candidates * PASSED_OVER * self.lists <= self._probes(candidates, k) * len(self)

    def _compare(self, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if self.quantisation == "rabitq" and self.full is None:  # its scores are not products with what it keeps of a vector
            scores, found = self._read(queries, k, self.lists, library().IDSelectorBatch(rows))
            return found, scores
        return super()._compare(queries, k, rows)

    def _decode(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        if self.index.direct_map.no():
            self.index.make_direct_map()
        return super()._decode(rows)


def build(vectors: DocumentEncodings, folder: Path, settings: IvfSettings) -> dict[str, Any]:
    """Writes an inverted file of the vectors that stock FAISS opens; where a build was stopped, it continues.

    Returns:
        What was chosen, and the recall and milliseconds that were measured of it.

    Raises:
        ConfigError: the codes do not fit the dimensions, or there are fewer documents than lists.
        SearchIndexError: there are no documents.
    """
    code = code_name(settings, vectors.dimensions)
    lists = settings.lists or max(1, min(round(4 * math.sqrt(len(vectors))), len(vectors) // 8))
    if lists > max(1, len(vectors)):
        raise ConfigError(f"index.lists: {lists:,} for {len(vectors):,} documents; name at most as many, or leave it out")
    for name in (FACTS, VECTORS):
        (folder / name).unlink(missing_ok=True)  # files of two indexes never stand beside each other
    name = f"IVF{lists},{code}"
    parts = _parts_folder(folder, vectors, name)
    trained = _trained(vectors, name, parts / TRAINED)
    write_lists(trained, vectors, parts, folder / FILE)
    served = IvfIndex(read_index(folder / FILE), folder, settings.quantisation)
    efforts = (min(settings.probes, lists),) if settings.probes else doubling(served.least(), lists)
    told = {"lists": lists, **settle(served, vectors, settings, efforts)}
    codes = len(vectors) * (trained.code_size + ROW_BYTES)
    facts = Facts(len(vectors), vectors.dimensions, settings.quantisation, served.effort, served.refine, codes, told)
    told = write_facts(folder / FACTS, facts, "probes")
    remove_parts(folder / PARTS)
    return told


def open_index(folder: Path) -> IvfIndex:
    """The index in a folder, memory-mapped.

    Raises:
        SearchIndexError: there is none, or a file of it is missing, cut or damaged.
    """
    return open_dense(IvfIndex, folder, FACTS, "probes")


def _parts_folder(folder: Path, vectors: DocumentEncodings, name: str) -> Path:
    """Where the parts of these lists of these vectors lie; those of others are removed."""
    owner = {"vectors": str(vectors.folder), "encoder": vectors.encoder, "documents": len(vectors), "dimensions": vectors.dimensions, "index": name}
    parts = folder / PARTS / fingerprint(owner)
    if not parts.is_dir():
        remove_parts(folder / PARTS)
    return parts


def _trained(vectors: DocumentEncodings, name: str, path: Path) -> Any:
    """An empty index whose centroids and codes are trained, kept so that a stopped build continues with the same."""
    faiss = library()
    if path.exists():
        return faiss.read_index(str(path))
    index = made(vectors.dimensions, name)
    sample = training_sample(vectors, max(POINTS * index.nlist, 1 << 16))
    index.cp.niter = ITERATIONS
    index.cp.max_points_per_centroid = len(sample)
    index.clustering_index = on_gpus(faiss.IndexFlatIP(vectors.dimensions))
    index.train(sample)
    index.clustering_index = None
    write_atomic(path, lambda temporary: faiss.write_index(index, str(temporary)))
    return index
