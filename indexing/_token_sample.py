"""What a token_clusters index takes from a sample: the tokens its centroids are made from, and how far a search must look."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import DocumentEncodings
from retriever.indexing.multivector import half_precision, search_blocks
from retriever.ragged import Ragged
from retriever.settings.index import TokenClustersSettings

QUERIES, QUERY_TOKENS = 64, 32
"""Pieces of documents that stand for queries, of so many tokens at most: ColBERT's length."""

BEST = 10
"""Of whose exact best documents the recall is measured."""

PROBES = (1, 2, 4, 8, 16)
CANDIDATES = (16, 32, 64, 128, 256, 512)
"""What is tried, where the settings leave it open."""

NEAR_BEST = 0.005
"""Where rounding alone loses more than is allowed, the least work is taken that reaches the best recall but for this."""


def sample_tokens(vectors: DocumentEncodings, tokens: int, count: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """[min(tokens, count), D], vectors of the `tokens` tokens of a collection, any as likely as any other.

    Raises:
        SearchIndexError: a vector has another dimension, or is not finite in float16.
    """
    chosen = np.sort(generator.choice(tokens, min(tokens, count), replace=False))
    parts, start = [np.zeros((0, vectors.dimensions), dtype=np.float32)], 0
    for block in vectors.blocks():
        halves = half_precision(block, vectors)
        first, last = np.searchsorted(chosen, [start, start + len(halves)])
        parts.append(halves[chosen[first:last] - start].astype(np.float32))
        start += len(halves)
    return np.concatenate(parts)


def sample_queries(vectors: DocumentEncodings, counts: NDArray[np.int64], generator: np.random.Generator) -> tuple[Ragged, NDArray[np.int64]]:
    """Pieces of some documents, and the rows of these.

    Args:
        vectors: of N documents.
        counts: [N], tokens of each.
        generator: chooses.
    """
    filled = np.flatnonzero(counts)
    rows = np.sort(generator.choice(filled, min(len(filled), QUERIES), replace=False))
    documents = vectors.rows(rows)
    lengths = np.minimum(counts[rows], QUERY_TOKENS)
    starts = documents.offsets[:-1] + generator.integers(0, counts[rows] - lengths + 1)
    pieces = [documents.columns["vectors"][start : start + length].astype(np.float32) for start, length in zip(starts, lengths, strict=True)]
    return Ragged.of_lists("vectors", pieces, vectors.dimensions), rows


def exact_best(vectors: DocumentEncodings, queries: Ragged, own: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The `BEST` best documents of each query by exact MaxSim, its own left out."""
    return without(list(search_blocks(vectors, queries, BEST + 1)[0]), own)


def without(found: list[NDArray[np.int64]], own: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The first `BEST` of each query's documents but its own."""
    return [rows[rows != row][:BEST] for rows, row in zip(found, own, strict=True)]


def share(found: list[NDArray[np.int64]], exact: list[NDArray[np.int64]]) -> float:
    """The part of the exact documents of all queries that were found; 1 where there are none."""
    wanted = sum(len(rows) for rows in exact)
    return sum(len(np.intersect1d(one, other)) for one, other in zip(found, exact, strict=True)) / wanted if wanted else 1.0


def choose(settings: TokenClustersSettings, documents: int, recall: Callable[[int, int], float], work: Callable[[int, int], float]) -> tuple[int, int, float]:
    """Probes and candidates that reach the wanted recall with the least work, and what they reach.

    Args:
        settings: the recall wanted; what it says of probes or candidates is kept.
        documents: N; candidates are fewer, where there are as many as the least that is tried.
        recall: measures it for probes and candidates.
        work: of a query with them, in any unit.
    """
    open_probes = (settings.probes,) if settings.probes else PROBES
    open_candidates = (settings.candidates,) if settings.candidates else [number for number in CANDIDATES if number < documents] or CANDIDATES[:1]
    tried: list[tuple[int, int, float]] = []
    for probes, candidates in sorted(product(open_probes, open_candidates), key=lambda pair: work(*pair)):
        tried.append((probes, candidates, recall(probes, candidates)))
        if tried[-1][2] >= settings.recall:
            return tried[-1]
    best = max(reached for _, _, reached in tried)
    return next(one for one in tried if one[2] >= best - NEAR_BEST)
