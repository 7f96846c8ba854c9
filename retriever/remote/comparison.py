"""Whether an engine finds what an exact comparison of the same encodings finds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import Encoding
from retriever.errors import SearchIndexError
from retriever.ragged import Ragged
from retriever.remote.addresses import Address
from retriever.remote.index import RemoteIndex

COMPARED = 4
"""Documents whose encodings are searched for in the end."""

COMPARED_TOKENS = 16
"""Of a late-interaction encoding that is searched for."""

DEPTH = 10

TOLERANCE = 1e-3
"""Share by which an engine's score may differ from the exact one: it may sum in another order, or keep less than 32 bits."""

LEAST_RECALL = 0.5
"""Below this the engine has lost documents: a graph that is merely too sparse finds more."""


class Comparison:
    """Encodings of some of the first documents as queries, and the exact best of all documents for them."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.queries: Any = None
        self.rows: NDArray[np.int64] = np.zeros((0, 0), dtype=np.int64)
        self.scores: NDArray[np.float32] = np.zeros((0, 0), dtype=np.float32)

    def see(self, first: int, encodings: Encoding) -> None:
        """Takes some documents, the first of which has the row `first`."""
        if not len(self.rows):
            self.queries = _questions(encodings)
            self.rows, self.scores = self.rows.reshape(len(self.queries), 0), self.scores.reshape(len(self.queries), 0)
        new = exact_scores(self.queries, encodings)
        rows = np.concatenate([self.rows, np.broadcast_to(np.arange(first, first + len(encodings)), new.shape)], axis=1)
        scores = np.concatenate([self.scores, new], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : DEPTH + 1]  # one more tells what stands below the best
        self.rows, self.scores = np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1)

    def recall(self, index: RemoteIndex) -> float:
        """The share of the exact best that a search finds.

        Raises:
            SearchIndexError: a score differs from the exact one, or much is not found.
        """
        wanted = found = 0
        sparse = index.facts.student_kind == "sparse"
        for points, rows, scores in zip(index.search(self.queries, DEPTH) if len(self.rows) else [], self.rows, self.scores, strict=True):
            best = scores[:DEPTH][scores[:DEPTH] > (0 if sparse else -np.inf)]
            if not len(best):
                continue
            exact, slack = dict(zip(rows.tolist(), scores.tolist(), strict=True)), TOLERANCE * max(1.0, float(np.abs(best).max()))
            for point in points:
                expected = exact.get(point.row, min(point.score, float(best[-1])))  # what is not among the best scores no better than they
                if abs(point.score - expected) > slack:
                    raise SearchIndexError(
                        f"{self.address}: row {point.row} has the score {point.score:g} there, and {expected:g} or less by its encoding. "
                        "Delete the collection, and upload it again"
                    )
            wanted += len(best)
            found += sum(point.score >= best[-1] - slack for point in points)
        recall = min(1.0, found / wanted) if wanted else 1.0
        if recall < LEAST_RECALL:
            raise SearchIndexError(f"{self.address}: a search finds {recall:.0%} of the exact best documents. Wait until the engine is idle, and upload again")
        return recall


def _questions(encodings: Encoding) -> Encoding:
    """Of documents that are not empty, spread over those given."""
    if not isinstance(encodings, Ragged):
        return encodings[np.unique(np.linspace(0, len(encodings) - 1, COMPARED).astype(int))] if len(encodings) else encodings
    filled = np.flatnonzero(encodings.counts > 0)
    some = encodings[filled[np.unique(np.linspace(0, len(filled) - 1, COMPARED).astype(int))] if len(filled) else filled]
    if "vectors" not in some.columns:
        return some
    counts = np.minimum(some.counts, COMPARED_TOKENS)
    kept = np.concatenate([np.arange(start, start + count) for start, count in zip(some.offsets[:-1], counts, strict=True)] or [np.zeros(0, dtype=np.int64)])
    return Ragged(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), {"vectors": some.columns["vectors"][kept]})


def exact_scores(queries: Encoding, documents: Encoding) -> NDArray[np.float32]:
    """[B, n], inner products of vectors or of sparse entries, or MaxSim of token vectors (-inf for a document without tokens)."""
    if not isinstance(queries, Ragged) or not isinstance(documents, Ragged):
        return np.asarray(np.asarray(queries, dtype=np.float32) @ np.asarray(documents, dtype=np.float32).T)
    scores = np.zeros((len(queries), len(documents)), dtype=np.float32)
    for number in range(len(queries)):
        query = queries[np.array([number])].columns
        if "values" in query:
            dimensions = documents.columns["dimensions"]
            weights = np.zeros(1 + max(query["dimensions"].max(initial=0), dimensions.max(initial=0)), dtype=np.float32)
            weights[query["dimensions"]] = query["values"]
            products = weights[dimensions] * documents.columns["values"]
            scores[number] = np.bincount(np.repeat(np.arange(len(documents)), documents.counts), products, minlength=len(documents))
        else:
            filled = documents.counts > 0
            similarities = query["vectors"].astype(np.float32) @ documents.columns["vectors"].astype(np.float32).T
            scores[number] = -np.inf
            if filled.any():
                scores[number, filled] = np.maximum.reduceat(similarities, documents.offsets[:-1][filled], axis=1).sum(axis=0)
    return scores
