"""The files of a token_clusters index: written in a stream, mapped into memory, told apart from cut, damaged and mixed ones."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import DocumentEncodings, write_array
from retriever.files import write_atomic
from retriever.indexing._arrays import damaged, header, map_array, quick_digest
from retriever.indexing._centroids import Centroids
from retriever.indexing._residuals import Buckets
from retriever.indexing.multivector import half_precision, ranges
from retriever.ragged import Ragged

FACTS = "token_clusters.json"
OFFSETS, CENTROIDS, CODES, SCALES = "offsets.npy", "centroids.npy", "codes.npy", "scales.npy"
RESIDUALS, LISTS, ROWS = "residuals.npy", "lists.npy", "rows.npy"
ARRAYS = (OFFSETS, CENTROIDS, CODES, SCALES, RESIDUALS, LISTS, ROWS)

NUMBERS = ("documents", "dimensions", "tokens", "centroids", "bits", "probes", "candidates")
"""What the facts say in whole numbers."""

TOKENS = 2**16
"""Assigned and rounded at a time."""


@dataclasses.dataclass(frozen=True)
class TokenFiles:
    """What is kept of N documents with T tokens: 2 bytes for a token's centroid (4 above 65,536), 2 for its scale, `bits` for each dimension.

    Attributes:
        folder: named in errors.
        buckets: what the residuals' codes stand for.
        offsets: int64 [N + 1], where each document's tokens begin.
        centroids: float16 [K, D].
        codes: [T], the centroid of each token.
        scales: float16 [T]; a token's vector is its scale times the sum of centroid and residual, which gives it back its length.
        residuals: uint8 [T, width].
        lists: int64 [K + 1], where the documents of each centroid begin in `rows`.
        rows: int32 [E], the documents that have a token of a centroid, each once, in their order.
    """

    folder: Path
    buckets: Buckets
    offsets: NDArray[np.int64]
    centroids: NDArray[np.float16]
    codes: NDArray[Any]
    scales: NDArray[np.float16]
    residuals: NDArray[np.uint8]
    lists: NDArray[np.int64]
    rows: NDArray[np.int32]

    def tokens(self, rows: NDArray[np.int64]) -> Ragged:
        """The codes, scales and residuals of documents."""
        return Ragged(self.offsets, {"codes": self.codes, "scales": self.scales, "residuals": self.residuals})[rows]

    def token_codes(self, rows: NDArray[np.int64]) -> Ragged:
        """The codes alone."""
        return Ragged(self.offsets, {"codes": self.codes})[rows]

    def token_offsets(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """[n + 1], where the tokens of n documents would begin, end to end."""
        return np.concatenate([[0], np.cumsum(self.offsets[rows + 1] - self.offsets[rows])]).astype(np.int64)


def code_kind(centroids: int) -> str:
    """The type of a centroid's number."""
    return "<u2" if centroids <= 2**16 else "<i4"


def write_files(vectors: DocumentEncodings, folder: Path, offsets: NDArray[np.int64], centroids: Centroids, buckets: Buckets) -> None:
    """Writes all arrays of the index; each is whole or not there, and only the facts, written after them, make them an index.

    Raises:
        SearchIndexError: a vector has another dimension, or is not finite in float16.
    """
    write_array(folder / OFFSETS, offsets)
    write_array(folder / CENTROIDS, centroids.vectors.numpy().astype(np.float16))

    def write(codes: Path, scales: Path, residuals: Path) -> None:
        count, tokens = len(centroids.vectors), int(offsets[-1])
        with codes.open("wb") as code_file, scales.open("wb") as scale_file, residuals.open("wb") as residual_file:
            code_file.write(header(code_kind(count), (tokens,)))
            scale_file.write(header("<f2", (tokens,)))
            residual_file.write(header("|u1", (tokens, buckets.width)))
            for block in vectors.blocks():
                halves = half_precision(block, vectors)
                for start in range(0, len(halves), TOKENS):
                    code, scale, packed = _encoded(halves[start : start + TOKENS].astype(np.float32), centroids, buckets)
                    code_file.write(code.astype(code_kind(count)).data)
                    scale_file.write(scale.data)
                    residual_file.write(packed.data)

    def write_others(codes: Path) -> None:
        write_atomic(folder / SCALES, lambda scales: write_atomic(folder / RESIDUALS, lambda residuals: write(codes, scales, residuals)))

    write_atomic(folder / CODES, write_others)
    lists, rows = _lists(map_array(folder / CODES, code_kind(len(centroids.vectors))), offsets, len(centroids.vectors))
    write_array(folder / LISTS, lists)
    write_atomic(folder / ROWS, lambda path: path.write_bytes(header("<i4", rows.shape) + rows.tobytes()))


def map_files(folder: Path, buckets: Buckets, centroids: int) -> TokenFiles:
    """The arrays in a folder, memory-mapped.

    Raises:
        SearchIndexError: one is missing, cut or damaged, or does not fit the others.
    """
    kinds = {OFFSETS: "<i8", CENTROIDS: "<f2", CODES: code_kind(centroids), SCALES: "<f2", RESIDUALS: "|u1", LISTS: "<i8", ROWS: "<i4"}
    arrays: dict[str, NDArray[Any]] = {}
    for name, kind in kinds.items():
        try:
            arrays[name] = map_array(folder / name, kind)
        except (OSError, EOFError, ValueError) as error:
            raise damaged(folder / name) from error
    tokens, dimensions = len(arrays[CODES]), len(buckets.spread)
    shapes = {CENTROIDS: (centroids, dimensions), SCALES: (tokens,), RESIDUALS: (tokens, buckets.width), LISTS: (centroids + 1,)}
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise damaged(folder / name)
    for name, end in ((OFFSETS, tokens), (LISTS, len(arrays[ROWS]))):
        beginnings = arrays[name]
        if beginnings.ndim != 1 or len(beginnings) == 0 or beginnings[0] != 0 or beginnings[-1] != end or (np.diff(beginnings) < 0).any():
            raise damaged(folder / name)
    return TokenFiles(folder, buckets, *(arrays[name] for name in ARRAYS))


def read_facts(folder: Path) -> dict[str, Any]:
    """What the facts say of an index, after its files were compared with it.

    Raises:
        SearchIndexError: they are missing or damaged, or a file is not the one that they speak of.
    """
    path = folder / FACTS
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts, dict) or set(facts) != {*NUMBERS, "recall", "values", "spread", "files"}:
            raise ValueError("other keys")
        numbers = [facts[name] for name in NUMBERS]
        if any(type(number) is not int or number < 0 for number in numbers) or min(facts["probes"], facts["candidates"], facts["dimensions"]) < 1:
            raise ValueError("not whole numbers")
        if facts["bits"] not in (1, 2, 4) or (len(facts["values"]), len(facts["spread"])) != (2 ** facts["bits"], facts["dimensions"]):
            raise ValueError("other buckets")
        if not all(isinstance(number, float) and math.isfinite(number) for number in (*facts["values"], *facts["spread"])):
            raise ValueError("not numbers")
        if set(facts["files"]) != set(ARRAYS):
            raise ValueError("other files")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise damaged(path) from error
    for name in ARRAYS:
        try:
            whole = quick_digest(folder / name) == facts["files"][name]
        except OSError as error:
            raise damaged(folder / name) from error
        if not whole:
            raise damaged(folder / name)
    return facts


def digests(folder: Path) -> dict[str, str]:
    """Of each array's file, as the facts keep them."""
    return {name: quick_digest(folder / name) for name in ARRAYS}


def _encoded(vectors: NDArray[np.float32], centroids: Centroids, buckets: Buckets) -> tuple[NDArray[np.int64], NDArray[np.float16], NDArray[np.uint8]]:
    """Codes [n], scales [n] and residuals [n, width] of vectors [n, D]."""
    codes = centroids.nearest(vectors)
    near = centroids.vectors.numpy()[codes]
    packed = buckets.encode(vectors - near)
    rounded = near + buckets.decode(packed)
    lengths = np.linalg.norm(rounded, axis=1)
    scales = np.divide(np.linalg.norm(vectors, axis=1), lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return codes, np.minimum(scales, np.float32(np.finfo(np.float16).max)).astype(np.float16), packed


def _lists(codes: NDArray[Any], offsets: NDArray[np.int64], centroids: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Where the documents of each centroid begin, and the documents: 4 bytes of memory for a token at most."""

    def pairs(first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The distinct pairs of a centroid and a document that some documents have, in this order."""
        documents = np.repeat(np.arange(first, last), np.diff(offsets[first : last + 1]))
        keys = np.unique(codes[offsets[first] : offsets[last]].astype(np.int64) * (last - first) + documents - first)
        return keys // (last - first), first + keys % (last - first)

    counts = np.zeros(centroids, dtype=np.int64)
    for first, last in ranges(offsets, 2**20):
        counts += np.bincount(pairs(first, last)[0], minlength=centroids)
    lists = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    rows, free = np.empty(lists[-1], dtype=np.int32), lists[:-1].copy()
    for first, last in ranges(offsets, 2**20):
        numbers, documents = pairs(first, last)
        here, starts, lengths = np.unique(numbers, return_index=True, return_counts=True)
        rows[np.arange(len(numbers)) + np.repeat(free[here] - starts, lengths)] = documents
        free[here] += lengths
    return lists, rows
