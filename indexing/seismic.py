"""Approximate search over sparse vectors with Seismic (Bruch et al. 2024, arXiv:2404.18812), and exact scores.

The engine keeps the heaviest postings of each term in blocks of similar documents and skips blocks by their summaries. It keeps values
in float16, has no filter, and says nothing of what it passed over. The documents' entries lie beside it as they were given: they
give the exact scores of what it finds, and find by themselves where few documents are allowed or it found too few.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from retriever.errors import MissingExtraError, SearchIndexError
from retriever.files import sha256_file, write_atomic, write_json
from retriever.indexing._arrays import damaged
from retriever.indexing._sparse import DIMENSIONS, U16, SparseVectors, at_least, check_queries, open_entries, rising, write_entries
from retriever.ragged import Ragged
from retriever.settings.index import SeismicSettings
from retriever.vector_index import Found

FACTS = "seismic.json"
ENGINE = "seismic.bin"
INPUT = ".seismic-input.bin"
"""The documents in the engine's own format, while it is built."""

MAX_FRACTION = 6.0
"""So many times `postings` a term may have: the engine's guide finds it a good choice."""

LEAST_POSTINGS = 32
QUERY_CUTS = (3, 5, 8, 12, 20, 32)
HEAP_FACTORS = (1.0, 0.9, 0.8, 0.7)
"""Tried in this order, each cut with each factor: from the fastest to the most thorough."""

SAMPLE = 128
"""Documents that stand for queries when a setting is chosen, each cut to its heaviest `SAMPLE_ENTRIES`."""

SAMPLE_ENTRIES = 32
DEPTH = 10

FEW = 2000
"""Allowed documents up to which all of them are scored: as fast as asking the engine for many."""

CHUNK = 2**14
"""Documents whose entries are in memory at a time."""

QUERIES = 64
"""Searched together: their weights [B, V] are in memory."""


Best = tuple[list[NDArray[np.int64]], list[NDArray[np.float32]]]
"""The rows and scores of each query."""


class SeismicIndex:
    """An opened index.

    Attributes:
        engine: Seismic's index, in memory; None where no document has an entry.
        entries: of the N documents, memory-mapped: `dimensions` uint16 or uint32, rising, and `values` float32.
        dimensions: V.
        query_cut: heaviest terms of a query whose blocks are looked at.
        heap_factor: blocks below this share of the least kept score are skipped.
        folder: named in errors.
    """

    def __init__(self, engine: Any, entries: Ragged, dimensions: int, query_cut: int, heap_factor: float, folder: Path) -> None:
        self.engine = engine
        self.entries = entries
        self.dimensions = dimensions
        self.query_cut = query_cut
        self.heap_factor = heap_factor
        self.folder = folder

    def __len__(self) -> int:
        return len(self.entries)

    def search(self, queries: Ragged, k: int, allowed: NDArray[np.bool_] | None = None) -> Found:
        """Rows and exact inner products of the documents found for each query, best first, equal ones in the order of their rows.

        Where fewer than k documents with a score above 0 are found, all (allowed) documents are scored, as they are where `FEW` or
        fewer are allowed: about a microsecond for each.

        Args:
            queries: B sparse vectors, with the columns `dimensions` and `values`.
            k: documents a query at most; there are fewer where fewer have a score above 0.
            allowed: [N], the documents that may be found; all when left out.

        Raises:
            SearchIndexError: a query has a dimension that the index lacks, a value is not finite, or the entries are damaged.
        """
        check_queries(queries, self.dimensions, self.folder)
        rows: list[NDArray[np.int64]] = []
        scores: list[NDArray[np.float32]] = []
        n_allowed = len(self) if allowed is None else int(np.count_nonzero(allowed))
        for start in range(0, len(queries), QUERIES):
            some = rising(queries if len(queries) <= QUERIES else queries[np.arange(start, min(start + QUERIES, len(queries)))])
            found, values = self._search(some, min(k, n_allowed), allowed, n_allowed)
            rows += found
            scores += values
        return rows, scores

    def encodings(self, rows: NDArray[np.int64]) -> Ragged:
        """The entries of documents as they were given, by rising dimension."""
        found = self.entries[rows]
        return Ragged(found.offsets, {"dimensions": found.columns["dimensions"].astype(np.int32), "values": found.columns["values"]})

    def exact(self, queries: Ragged, k: int, allowed: NDArray[np.bool_] | None = None) -> Best:
        """The best of all documents, or of those allowed, each of which is scored, for up to `QUERIES` queries."""
        wanted = np.arange(len(self)) if allowed is None else np.flatnonzero(allowed)
        weights = _dense(queries, self.dimensions).T.copy()
        best = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)) for _ in range(len(queries))]
        for start in range(0, len(wanted) if k else 0, CHUNK):
            rows = wanted[start : start + CHUNK]
            entries = self.entries[rows]
            matrix = (entries.columns["values"], self._checked(entries.columns["dimensions"]).astype(np.int32), entries.offsets)
            products = csr_array(matrix, shape=(len(rows), self.dimensions)) @ weights
            for number, scores in enumerate(np.ascontiguousarray(products.T)):
                found, values = best[number]
                kept = at_least(scores, k, values[k - 1] if len(values) == k else np.float32(0))
                best[number] = _best(np.concatenate([found, rows[kept]]), np.concatenate([values, scores[kept]]), k)
        return [rows for rows, _ in best], [values for _, values in best]

    def engine_rows(self, dimensions: NDArray[np.int32], values: NDArray[np.float32], k: int, query_cut: int, heap_factor: float) -> NDArray[np.int64]:
        """What the engine finds for one query of rising dimensions, in its order."""
        known = slice(0, np.searchsorted(dimensions, self.engine.dim))  # it panics at a dimension above those of all documents
        return np.array([row for _, row in self.engine.search(dimensions[known], values[known], k, query_cut, heap_factor, 0, True)], dtype=np.int64)

    def _search(self, queries: Ragged, k: int, allowed: NDArray[np.bool_] | None, n_allowed: int) -> Best:
        if self.engine is None or k == 0 or (allowed is not None and n_allowed <= FEW):
            return self.exact(queries, k, allowed)
        asked = k if allowed is None else min(len(self), 4 * k * len(self) // n_allowed)
        weights = np.zeros(self.dimensions, dtype=np.float32)
        best = [self._rescored(query, self._found(*query, k, asked, allowed), k, weights) for query in _each(queries)]
        rows, scores = [found for found, _ in best], [values for _, values in best]
        short = np.array([number for number, found in enumerate(rows) if len(found) < k], dtype=np.int64)
        if len(short):
            for number, found, values in zip(short, *self.exact(queries[short], k, allowed), strict=True):
                rows[number], scores[number] = found, values
        return rows, scores

    def _found(self, dimensions: NDArray[np.int32], values: NDArray[np.float32], k: int, asked: int, allowed: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        """Allowed rows that the engine finds, k or more where it can: asked for more and more, then with all terms of the query."""
        cut = self.query_cut
        while True:
            found = self.engine_rows(dimensions, values, asked, cut, self.heap_factor)
            kept = found if allowed is None else found[allowed[found]]
            if len(kept) >= k:
                return kept
            if len(found) == asked < len(self):
                asked = min(len(self), 4 * asked)
            elif cut < len(dimensions):
                cut = len(dimensions)
            else:
                return kept

    def _rescored(
        self, query: tuple[NDArray[np.int32], NDArray[np.float32]], found: NDArray[np.int64], k: int, weights: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best k of the rows found for a query by their exact scores, those above 0; `weights` are 0 [V] before and after."""
        if not len(found):
            return found, np.zeros(0, dtype=np.float32)
        starts, ends = self.entries.offsets[found], self.entries.offsets[found + 1]
        places = [slice(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]  # faster than one index for all entries
        dimensions, values = (np.concatenate([self.entries.columns[name][some] for some in places]) for name in ("dimensions", "values"))
        np.add.at(weights, query[0], query[1])
        try:
            products = weights[dimensions] * values
        except IndexError as error:
            raise damaged(self.folder / DIMENSIONS) from error
        weights[query[0]] = 0
        counts = ends - starts
        return _best(found, np.add.reduceat(products, np.cumsum(counts) - counts), k)

    def _checked(self, dimensions: NDArray[Any]) -> NDArray[Any]:
        if len(dimensions) and not 0 <= dimensions.min() <= dimensions.max() < self.dimensions:
            raise damaged(self.folder / DIMENSIONS)
        return dimensions


def build(vectors: SparseVectors, folder: Path, settings: SeismicSettings) -> dict[str, Any]:
    """Writes the engine's file, the documents' entries, and what was chosen and measured.

    What is left out is chosen on a sample: `SAMPLE` documents stand for queries, and are not to find themselves. `postings` begins with
    a tenth of what a term has on average, and is doubled while no cut and factor reach the recall; the first of these that do are taken.
    The engine builds with all cores; the variable RAYON_NUM_THREADS gives it fewer.

    Returns:
        What the index was made with, the recall of the best 10 on the sample, and the size and checksum of the engine's file.

    Raises:
        MissingExtraError: Seismic is not installed.
    """
    seismic = _seismic()
    (folder / FACTS).unlink(missing_ok=True)  # files of two indexes never stand beside it
    facts: dict[str, Any] = {"documents": len(vectors), "dimensions": vectors.dimensions, "entries": write_entries(vectors, folder)}
    facts |= {"query_cut": settings.query_cut or QUERY_CUTS[0], "heap_factor": settings.heap_factor or HEAP_FACTORS[0]}
    if facts["entries"]:
        index = _opened(folder, facts, None)
        try:
            write_atomic(folder / INPUT, lambda path: _write_input(path, index))
            facts |= _chosen(seismic, index, settings)
        finally:
            (folder / INPUT).unlink(missing_ok=True)
        with _quiet():
            write_atomic(folder / ENGINE, lambda path: index.engine.save(str(path)))
        facts |= {"seismic": version("pyseismic-lsr"), "bytes": (folder / ENGINE).stat().st_size, "sha256": sha256_file(folder / ENGINE)}
    write_json(folder / FACTS, facts)
    return facts


def open_index(folder: Path) -> SeismicIndex:
    """The index in a folder: its entries memory-mapped, the engine in memory.

    Raises:
        MissingExtraError: Seismic is not installed.
        SearchIndexError: there is none, a file is missing, cut or damaged, or another version of Seismic wrote it.
    """
    facts = _facts(folder / FACTS)
    return _opened(folder, facts, _load_engine(folder / ENGINE, facts) if facts["entries"] else None)


def _opened(folder: Path, facts: dict[str, Any], engine: Any) -> SeismicIndex:
    entries = open_entries(folder, facts["documents"], facts["dimensions"], facts["entries"])
    return SeismicIndex(engine, entries, facts["dimensions"], facts["query_cut"], facts["heap_factor"], folder)


# Files


def _write_input(path: Path, index: SeismicIndex) -> None:
    """Writes the documents for the engine: their number, and for each its number of entries, their dimensions and their values; 4 bytes each."""
    with path.open("wb") as stream:
        stream.write(np.uint32(len(index)).tobytes())
        for start in range(0, len(index), CHUNK):
            block = index.encodings(np.arange(start, min(start + CHUNK, len(index))))
            counts = block.counts
            words = np.empty(len(block) + 2 * block.offsets[-1], dtype=np.uint32)
            begins = np.arange(len(block)) + 2 * block.offsets[:-1]
            words[begins] = counts
            first = np.arange(block.offsets[-1]) + np.repeat(begins + 1 - block.offsets[:-1], counts)
            words[first] = block.columns["dimensions"]
            words[first + np.repeat(counts, counts)] = block.columns["values"].view(np.uint32)
            stream.write(words.data)


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        numbers = [facts[name] for name in ("documents", "dimensions", "entries", "query_cut")]
        whole = all(isinstance(number, int) and number >= 0 for number in numbers) and isinstance(facts["heap_factor"], float | int)
        whole = whole and (facts["entries"] == 0 or (isinstance(facts["bytes"], int) and isinstance(facts["sha256"], str)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path) from error
    if not whole:
        raise damaged(path)
    return facts


def _load_engine(path: Path, facts: dict[str, Any]) -> Any:
    """The engine, after its file was compared with its checksum: it believes what it reads."""
    engine = _engine_class(_seismic(), facts["dimensions"])
    try:
        whole = path.stat().st_size == facts["bytes"] and sha256_file(path) == facts["sha256"]
    except OSError as error:
        raise damaged(path) from error
    if not whole:
        raise damaged(path)
    try:
        return engine.load(str(path))
    except OSError as error:
        found = f"Seismic {version('pyseismic-lsr')} cannot read what {facts.get('seismic')} wrote"
        raise SearchIndexError(f"{path}: {found} ({error}). Build it again with: retriever index") from error


def _seismic() -> Any:
    try:
        import seismic
    except ImportError as error:
        raise MissingExtraError("seismic", "sparse") from error
    return seismic


def _engine_class(seismic: Any, dimensions: int) -> Any:
    return seismic.SeismicIndexRaw if dimensions <= U16 else seismic.SeismicIndexRawLV


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Standard output goes nowhere: the engine prints on it what it does, past Python."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


# Settings that were left out


def _chosen(seismic: Any, index: SeismicIndex, settings: SeismicSettings) -> dict[str, Any]:
    """Builds the engine of an index, and again while the recall is not reached; returns with what, and the recall on the sample."""
    rows, queries = _sample(index)
    parts = [index.exact(queries[some], DEPTH + 1)[0] for some in np.split(np.arange(len(rows)), range(QUERIES, len(rows), QUERIES))]
    exact = [_others(found, row) for found, row in zip(itertools.chain(*parts), rows, strict=True)]
    average = len(index.entries.columns["values"]) // index.dimensions
    postings = settings.postings or max(LEAST_POSTINGS, average // 10)
    cuts = [settings.query_cut] if settings.query_cut else QUERY_CUTS
    factors = [settings.heap_factor] if settings.heap_factor else HEAP_FACTORS
    while True:
        index.engine = None
        with _quiet():
            source = str(index.folder / INPUT)
            index.engine = _engine_class(seismic, index.dimensions).build(source, n_postings=postings, max_fraction=MAX_FRACTION)
        tried = []
        for cut, factor in itertools.product(cuts, factors):
            tried.append((_recall(index, queries, rows, exact, cut, factor), cut, factor))
            if tried[-1][0] >= settings.recall:
                break
        recall, cut, factor = max(tried, key=lambda one: one[0])
        if recall >= settings.recall or settings.postings or postings >= average:
            return {"postings": postings, "query_cut": cut, "heap_factor": factor, "recall": round(recall, 4), "sample": len(rows)}
        postings *= 2


def _sample(index: SeismicIndex) -> tuple[NDArray[np.int64], Ragged]:
    """Documents that have entries, and what stands for a query of each: its heaviest entries."""
    filled = np.flatnonzero(index.entries.counts)
    rows = np.sort(np.random.default_rng(0).choice(filled, min(SAMPLE, len(filled)), replace=False))
    whole = index.encodings(rows)
    owners = np.repeat(np.arange(len(rows)), whole.counts)
    order = np.lexsort((-whole.columns["values"], owners))
    ranks = np.arange(len(order)) - np.repeat(whole.offsets[:-1], whole.counts)
    kept = np.sort(order[ranks < SAMPLE_ENTRIES])
    offsets = np.concatenate([[0], np.cumsum(np.minimum(whole.counts, SAMPLE_ENTRIES))]).astype(np.int64)
    return rows, Ragged(offsets, {name: column[kept] for name, column in whole.columns.items()})


def _recall(index: SeismicIndex, queries: Ragged, rows: NDArray[np.int64], exact: list[NDArray[np.int64]], cut: int, factor: float) -> float:
    """The share of the exact best that the engine finds; 1 where there are none."""
    found = [_others(index.engine_rows(*query, DEPTH + 1, cut, factor), row) for query, row in zip(_each(queries), rows, strict=True)]
    hits, wanted = sum(len(np.intersect1d(one, other)) for one, other in zip(found, exact, strict=True)), sum(map(len, exact))
    return hits / wanted if wanted else 1.0


def _others(found: NDArray[np.int64], row: np.int64) -> NDArray[np.int64]:
    """The best `DEPTH` without the document that asks."""
    others: NDArray[np.int64] = found[found != row][:DEPTH]
    return others


# Entries


def _each(queries: Ragged) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """The dimensions and values of each query."""
    for start, end in itertools.pairwise(queries.offsets):
        yield queries.columns["dimensions"][start:end], queries.columns["values"][start:end]


def _dense(queries: Ragged, dimensions: int) -> NDArray[np.float32]:
    """[B, V], the weights of queries."""
    matrix = (queries.columns["values"], queries.columns["dimensions"], queries.offsets)
    return np.asarray(csr_array(matrix, shape=(len(queries), dimensions)).toarray(), dtype=np.float32)


def _best(rows: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best k with a score above 0, equal ones in the order of their rows."""
    order = np.lexsort((rows, -scores))[:k]
    order = order[scores[order] > 0]
    return rows[order], scores[order]
