"""Approximate search by MaxSim: tokens as the number of a centroid and a coarse residual, compared where they are near the query's tokens.

ColBERTv2's compression (Santhanam et al. 2022, arXiv:2112.01488) and PLAID's search (arXiv:2205.09707). A query goes through four stages:
the centroids nearest to each of its tokens; the documents in their lists, by the best of those centroids for each token, as in WARP
(Scheerer et al. 2025, arXiv:2501.17788); the best of these by the centroids of all their tokens; the best of these again by MaxSim of the
decompressed vectors, by which they are ranked.

Fixed-dimensional encodings (MUVERA, Dhulipala et al. 2024, arXiv:2405.19504) are left out: with 10,240 dimensions, five times the bytes of
this index, .89 of the exact best 10 were among their best 50 documents, and .95 were among 50 chosen as above (2,000 abstracts of scifact).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retriever.encodings import DocumentEncodings
from retriever.errors import SearchIndexError
from retriever.files import write_json
from retriever.indexing._centroids import train_centroids
from retriever.indexing._residuals import Buckets, decode, fit_buckets
from retriever.indexing._token_files import FACTS, TokenFiles, digests, map_files, read_facts, write_files
from retriever.indexing._token_sample import BEST, QUERY_TOKENS, choose, exact_best, sample_queries, sample_tokens, share, without
from retriever.indexing.multivector import check_queries, ranges
from retriever.ragged import Ragged
from retriever.settings.index import TokenClustersSettings
from retriever.vector_index import Found

SEED = 1

MOST_CENTROIDS = 2**16
"""Chosen by rule: a number of them takes two bytes."""

SAMPLE_PER_CENTROID, SAMPLE = 32, 2**20
"""Tokens that the centroids are made from: at most `SAMPLE`, half a gigabyte of 128 dimensions."""

BUCKET_SAMPLE = 2**16
"""Tokens whose residuals the buckets are made from."""

MIDDLE = 8
"""Times the documents that are scored exactly are scored by the centroids of all their tokens: both take about as long."""

DOCUMENT_TOKENS = 2**14
"""Decompressed at a time: their vectors, 8 MB of 128 dimensions, stay in the processor's cache, or near it."""

POSTINGS_OF_A_TOKEN = 40
"""Entries of the lists that are read in the time in which a token is decompressed and compared."""


def build(vectors: DocumentEncodings, folder: Path, settings: TokenClustersSettings) -> dict[str, Any]:
    """Writes the index of a collection's token vectors, which are read block by block: to sample, to write and to measure.

    Returns:
        Documents, dimensions, tokens, bits; centroids, probes and candidates, given or chosen; the share of the exact best 10 that they
        find on a sample of documents' tokens, the document itself left out. It is under `settings.recall` where rounding alone loses more.

    Raises:
        SearchIndexError: a vector has another dimension, or is not finite in float16.
    """
    generator = np.random.default_rng(SEED)
    counts = np.concatenate([np.zeros(0, dtype=np.int64), *(block.counts for block in vectors.blocks())])
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    tokens = int(offsets[-1])
    wanted = settings.centroids or min(16 * math.isqrt(tokens), -(-tokens // 4), MOST_CENTROIDS)
    sample = sample_tokens(vectors, tokens, min(SAMPLE_PER_CENTROID * wanted, SAMPLE), generator)
    centroids = train_centroids(sample, wanted, generator)
    some = generator.permutation(sample)[:BUCKET_SAMPLE]
    buckets = fit_buckets(some - centroids.vectors.numpy()[centroids.nearest(some)], settings.bits)
    del sample
    (folder / FACTS).unlink(missing_ok=True)  # arrays of two indexes never stand beside it
    write_files(vectors, folder, offsets, centroids, buckets)
    files = map_files(folder, buckets, len(centroids.vectors))
    probes, candidates, recall = _chosen(settings, vectors, files, generator)
    facts: dict[str, Any] = {"documents": len(counts), "dimensions": vectors.dimensions, "tokens": tokens, "bits": settings.bits}
    facts |= {"centroids": len(centroids.vectors), "probes": probes, "candidates": candidates, "recall": recall}
    write_json(folder / FACTS, {**facts, "values": buckets.values.tolist(), "spread": buckets.spread.tolist(), "files": digests(folder)})
    return facts


def open_index(folder: Path) -> TokenClustersIndex:
    """The index in a folder, memory-mapped.

    Raises:
        SearchIndexError: there is none, or a file is missing, cut or damaged.
    """
    facts = read_facts(folder)
    buckets = Buckets(*(np.array(facts[name], dtype=np.float32) for name in ("values", "spread")))
    return TokenClustersIndex(map_files(folder, buckets, facts["centroids"]), facts["probes"], facts["candidates"])


class TokenClustersIndex:
    """An opened index.

    Attributes:
        files: the arrays.
        probes: centroids looked at for each token of a query; more where they hold too few documents.
        candidates: documents scored exactly for a query, more where more are wanted.
    """

    def __init__(self, files: TokenFiles, probes: int, candidates: int) -> None:
        self.files = files
        self.probes = probes
        self.candidates = candidates
        self._filled = np.diff(files.offsets) > 0
        self._centroids = torch.from_numpy(files.centroids.astype(np.float32))
        self._table = files.buckets.table()

    def __len__(self) -> int:
        """N, the number of documents."""
        return len(self._filled)

    @property
    def folder(self) -> Path:
        """Where it lies, for messages."""
        return self.files.folder

    @property
    def dimensions(self) -> int:
        """D, of a token's vector."""
        return len(self.files.buckets.spread)

    def search(self, queries: Ragged, k: int, allowed: NDArray[np.bool_] | None = None) -> Found:
        """The best documents of each query by MaxSim of decompressed vectors, best first; equal ones in the order of their rows.

        Args:
            queries: float32 [Lq, D] for each of B queries.
            k: documents a query; cut to the number of those that may be found.
            allowed: [N], the documents that may be found; all when left out. Where they are no more than twice the candidates, they are
                all scored; otherwise ever more centroids are looked at until these hold enough of them.

        Returns:
            B arrays of rows, int64, and B of scores, float32. Documents without tokens come last, with the lowest score that unit vectors
            could have.

        Raises:
            SearchIndexError: the vectors have another dimension, or are not finite; or the index is damaged.
        """
        check_queries(queries, self.dimensions, self.folder)
        tokens = queries.columns["vectors"].astype(np.float32, copy=False)
        bounds = zip(queries.offsets[:-1], queries.offsets[1:], strict=True)
        try:
            found = [self._search(tokens[start:end], k, allowed) for start, end in bounds]
        except IndexError as error:
            raise SearchIndexError(f"{self.folder}: the index is damaged ({error}). Build it again with: retriever index") from error
        return [rows for rows, _ in found], [scores for _, scores in found]

    def encodings(self, rows: NDArray[np.int64]) -> None:
        """None: vectors are kept rounded."""

    def _search(self, query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best of one query [Lq, D]."""
        possible = self._filled if allowed is None else self._filled & allowed
        wanted = max(k, self.candidates)
        if len(query) == 0:
            rows = np.arange(len(self)) if allowed is None else np.flatnonzero(allowed)
            return rows[:k], np.zeros(min(k, len(rows)), dtype=np.float32)
        near = (torch.from_numpy(query) @ self._centroids.T).numpy()
        few = np.count_nonzero(possible) <= 2 * wanted
        rows = np.flatnonzero(possible) if few else self._candidates(near, wanted, None if allowed is None else possible)
        scores = self._scores(query, near, rows)
        best = np.argsort(-scores, kind="stable")[:k]
        last = np.flatnonzero(~self._filled if allowed is None else allowed & ~self._filled)[: k - len(best)]
        lowest = np.full(len(last), -np.linalg.norm(query, axis=1).sum(), dtype=np.float32)
        return np.concatenate([rows[best], last]), np.concatenate([scores[best], lowest])

    def _candidates(self, near: NDArray[np.float32], wanted: int, allowed: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        """The documents to score exactly, in the order of their rows; `near` [Lq, K] are the similarities with the centroids."""
        probes = min(self.probes, len(self._centroids))
        rows, scores = self._probed(near, probes, allowed)
        while len(rows) < wanted and probes < len(self._centroids):
            probes = min(2 * probes, len(self._centroids))
            rows, scores = self._probed(near, probes, allowed)
        rows = _best(rows, scores, MIDDLE * wanted)
        return _best(rows, self._centroid_scores(near, rows), wanted)

    def _probed(self, near: NDArray[np.float32], probes: int, allowed: NDArray[np.bool_] | None) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The documents of the nearest centroids of each token, in the order of their rows, and what is known of their MaxSim.

        Where a document has none of a token's centroids, the last of these stands in for it.
        """
        nearest = torch.from_numpy(near).topk(probes, dim=1)
        numbers, values = nearest.indices.numpy()[:, ::-1], nearest.values.numpy()[:, ::-1]  # a better centroid overwrites a worse one
        scores, seen, last = np.zeros(len(self), dtype=np.float32), np.zeros(len(self), dtype=np.bool_), np.empty(len(self), dtype=np.int64)
        starts, ends = self.files.lists[numbers], self.files.lists[numbers + 1]
        for token in range(len(near)):
            rows = np.concatenate([self.files.rows[start:end] for start, end in zip(starts[token], ends[token], strict=True)])
            gains = np.repeat(values[token] - values[token, 0], ends[token] - starts[token])
            if allowed is not None:
                kept = allowed[rows]
                rows, gains = rows[kept], gains[kept]
            places = np.arange(len(rows))
            last[rows] = places
            once = last[rows] == places
            scores[rows[once]] += gains[once]
            seen[rows] = True
        found = np.flatnonzero(seen)
        return found, scores[found]

    def _centroid_scores(self, near: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n], MaxSim of a query and the centroids of n documents' tokens."""
        parts = [np.zeros(0, dtype=np.float32)]
        for first, last in ranges(self.files.token_offsets(rows), DOCUMENT_TOKENS):
            some = self.files.token_codes(rows[first:last])
            parts.append(np.maximum.reduceat(near.take(some.columns["codes"], axis=1), some.offsets[:-1], axis=1).sum(axis=0))
        return np.concatenate(parts)

    def _scores(self, query: NDArray[np.float32], near: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n], MaxSim of a query and n documents that have tokens.

        A vector is never put together: its product with a token is that of the centroid, which is known, and that of the residual.
        """
        spread = np.zeros((len(query), self._table.shape[1] * self.files.buckets.width // 2), dtype=np.float32)
        spread[:, : self.dimensions] = query * self.files.buckets.spread
        tokens, parts = torch.from_numpy(spread), [np.zeros(0, dtype=np.float32)]
        for first, last in ranges(self.files.token_offsets(rows), DOCUMENT_TOKENS):
            some = self.files.tokens(rows[first:last])
            products = (tokens @ decode(some.columns["residuals"], self._table).T).numpy()
            products += near.take(some.columns["codes"], axis=1)
            products *= some.columns["scales"].astype(np.float32)
            parts.append(np.maximum.reduceat(products, some.offsets[:-1], axis=1).sum(axis=0))
        return np.concatenate(parts)


def _best(rows: NDArray[np.int64], scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The `count` best of rising rows, in their order; of equal ones the first."""
    if len(rows) <= count:
        return rows
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    better = np.flatnonzero(scores > least)
    equal = np.flatnonzero(scores == least)[: count - len(better)]
    return np.asarray(rows[np.sort(np.concatenate([better, equal]))])


def _chosen(settings: TokenClustersSettings, vectors: DocumentEncodings, files: TokenFiles, generator: np.random.Generator) -> tuple[int, int, float]:
    """Probes, candidates and the recall that they reach on a sample."""
    counts = np.diff(files.offsets)
    if len(files.codes) == 0:
        return settings.probes or 1, settings.candidates or 1, 1.0
    queries, own = sample_queries(vectors, counts, generator)
    exact = exact_best(vectors, queries, own)

    def recall(probes: int, candidates: int) -> float:
        rows, _ = TokenClustersIndex(files, probes, candidates).search(queries, BEST + 1)
        return share(without(list(rows), own), exact)

    def work(probes: int, candidates: int) -> float:
        documents = 2 * candidates * float(counts.mean())
        return documents + probes * QUERY_TOKENS * len(files.rows) / len(files.centroids) / POSTINGS_OF_A_TOKEN

    return choose(settings, len(counts), recall, work)
