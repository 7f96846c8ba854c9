"""Search in stages: retrievers fused, then re-rankers over ever fewer documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retriever.bm25 import BM25
from retriever.candidates import bm25_run, pair_scores
from retriever.collection import Collection
from retriever.conversations.reading import ConversationReader
from retriever.errors import ConfigError
from retriever.filters import Condition
from retriever.runs import Run
from retriever.scores.views import reciprocal_ranks, z_scores
from retriever.search import Hit, SearchIndex, asked_query
from retriever.settings.stage import Fusion
from retriever.types import Query

Queries = Mapping[str, Query]

SCORED_TOGETHER = 2048
"""Pairs whose encodings are in memory at a time."""


class Ranker(Protocol):
    """What can say how well documents answer queries."""

    @property
    def name(self) -> str:
        """As reports call it."""
        ...

    @property
    def bytes(self) -> int | None:
        """What it keeps on disk or in memory for the documents; None where it reads their texts."""
        ...

    def score(self, queries: Queries, run: Run) -> NDArray[np.float32]:
        """[n], of each pair of the run; NaN for a document that it does not have."""
        ...


class Retriever(Ranker, Protocol):
    """A ranker that finds the best of all documents by itself."""

    def search(self, queries: Queries, k: int) -> Run:
        """The best k documents of each query."""
        ...


@dataclasses.dataclass(frozen=True)
class Lexical:
    """BM25 over a collection."""

    bm25: BM25
    documents: Collection
    name: str = "bm25"
    reader: ConversationReader = dataclasses.field(default_factory=ConversationReader)

    @property
    def bytes(self) -> int:
        """Of its index."""
        return self.bm25.n_bytes

    def search(self, queries: Queries, k: int) -> Run:
        """The best k documents of each query."""
        return bm25_run(self.name, self.bm25, self.documents, self.reader.read_all(queries), k)

    def score(self, queries: Queries, run: Run) -> NDArray[np.float32]:
        """[n]."""
        rows = self.documents.rows_of(run.doc_ids)
        scores = np.full(len(rows), np.nan, dtype=np.float32)
        for number, query_id in enumerate(run):
            own = run.pairs_of(number)
            known = rows[own] >= 0
            scores[own] = np.where(known, self.bm25.scores(self.reader.text(queries[query_id]).text)[rows[own]], np.nan)
        return scores


@dataclasses.dataclass(frozen=True)
class Indexed:
    """A student and its index over a collection, or over more: what was added to the index alone is not found, for no other ranker has it."""

    index: SearchIndex
    documents: Collection
    name: str

    @property
    def bytes(self) -> int:
        """Of the engines' files."""
        return self.index.bytes

    def search(self, queries: Queries, k: int) -> Run:
        """The best k documents of each query."""
        run = self.index.run(queries, k, self.name)
        return run.keep(self.documents.rows_of(run.doc_ids) >= 0)

    def score(self, queries: Queries, run: Run) -> NDArray[np.float32]:
        """[n], by the encodings that the index keeps; where it keeps an approximation alone, the texts are encoded again."""
        snapshot = self.index.snapshot
        encoded = snapshot.encoder.encode_queries([queries[query_id] for query_id in run])
        rows = snapshot.rows_of(run.doc_ids)
        known = np.flatnonzero(rows >= 0)
        scores = np.full(len(rows), np.nan, dtype=np.float32)
        for start in range(0, len(known), SCORED_TOGETHER):
            pairs = known[start : start + SCORED_TOGETHER]
            scores[pairs] = snapshot.encoder.score(encoded[run.query_numbers[pairs]], snapshot.encodings(rows[pairs]))
        return scores


@dataclasses.dataclass(frozen=True)
class ReadingPairs:
    """A student that reads query and document together."""

    student: Any
    documents: Collection
    name: str
    bytes: None = None

    def score(self, queries: Queries, run: Run) -> NDArray[np.float32]:
        """[n]."""
        rows = self.documents.rows_of(run.doc_ids)
        scores = np.full(len(rows), np.nan, dtype=np.float32)
        scores[rows >= 0] = pair_scores(self.student, run.keep(rows >= 0), queries, self.documents)
        return scores


@dataclasses.dataclass(frozen=True)
class ByFunction:
    """A ranker whose scores somebody else makes, such as the teachers of an experiment."""

    name: str
    scores: Callable[[Queries, Run], NDArray[np.float32]]
    bytes: None = None

    def score(self, queries: Queries, run: Run) -> NDArray[np.float32]:
        """[n]."""
        return self.scores(queries, run)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Rankers over the same documents, fused.

    Attributes:
        rankers: in the first stage they can retrieve.
        keep: documents of each query that are handed on.
        fusion: how their scores become one.
        weights: [rankers], shares for "weighted".
    """

    rankers: tuple[Any, ...]
    keep: int
    fusion: Fusion = "z_score"
    weights: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """Who ranks, and how many are kept."""
        return f"{' + '.join(ranker.name for ranker in self.rankers)}, best {self.keep}"

    def retrieve(self, queries: Queries) -> Run:
        """The documents that any of its retrievers has among its best, each scored by all of them."""
        found = self.found(queries)
        return found if len(self.rankers) == 1 else self.rerank(queries, found)

    def rerank(self, queries: Queries, run: Run) -> Run:
        """A run's documents in the order of this stage, the best that are kept."""
        return self.ranked(run, self.table(queries, run)).top(self.keep)

    def found(self, queries: Queries) -> Run:
        """The documents that any of its retrievers has among its best: of one with its scores, of several with scores that mean nothing."""
        found = [ranker.search(queries, self.keep) for ranker in self.rankers]
        return found[0] if len(found) == 1 else union(found)

    def ranked(self, run: Run, scores: NDArray[np.float32]) -> Run:
        """A run's documents in the order of this stage, without those that a ranker does not have; `scores` as `table` gives them."""
        known = np.asarray(~np.isnan(scores).any(axis=0))
        kept = run.keep(known)
        return kept.with_scores(self.name, fused(self.fusion, scores[:, known], kept.offsets, self.weights))

    def table(self, queries: Queries, run: Run) -> NDArray[np.float32]:
        """[rankers, n], each ranker's scores of a run's pairs."""
        return np.stack([ranker.score(queries, run) for ranker in self.rankers])


def search(stages: Sequence[Stage], queries: Queries, done: Callable[[str], None] = lambda name: None) -> Run:
    """The documents of each query that the last stage keeps, in its order; `done` is told the name of each stage behind it."""
    run = stages[0].retrieve(queries)
    done(stages[0].name)
    for stage in stages[1:]:
        run = stage.rerank(queries, run)
        done(stage.name)
    return run


@dataclasses.dataclass(frozen=True)
class Part:
    """A ranker's own score of a document, before those of a stage are fused; None for a document that the ranker does not have."""

    ranker: str
    score: float | None


@dataclasses.dataclass(frozen=True)
class Standing:
    """What a stage gave a document.

    Attributes:
        name: of the stage.
        candidates: how many documents it ranked.
        rank: of the document among them, from 1; None where it is none of them: it fell out before, was not found, or a ranker does not have it.
        score: by which it has this rank; None without one.
        kept: whether the stage hands it on.
        parts: of each ranker; empty where the document did not come to this stage.
    """

    name: str
    candidates: int
    rank: int | None
    score: float | None
    kept: bool
    parts: tuple[Part, ...]


def standings(stages: Sequence[Stage], query: Query, doc_id: str) -> tuple[Standing, ...]:
    """What each stage gives a document, the whole list searched as `search` does it: a score may depend on what else is ranked."""
    queries = {query.query_id: query}
    run = stages[0].found(queries)
    found = []
    for number, stage in enumerate(stages):
        retrieves_alone = number == 0 and len(stage.rankers) == 1
        scores = run.scores[np.newaxis] if retrieves_alone else stage.table(queries, run)
        ranked = stage.ranked(run, scores)
        found.append(_standing(stage, ranked, doc_id, scores[:, np.asarray(run.doc_ids == doc_id)]))
        run = ranked.top(stage.keep)
    return tuple(found)


def _standing(stage: Stage, ranked: Run, doc_id: str, own: NDArray[np.float32]) -> Standing:
    """Of a document with each ranker's score, `own` [rankers, 1]; [rankers, 0] where it did not come to the stage."""
    parts = tuple(Part(ranker.name, None if np.isnan(score) else float(score)) for ranker, scores in zip(stage.rankers, own, strict=True) for score in scores)
    place = next(iter(np.flatnonzero(ranked.doc_ids == doc_id).tolist()), None)
    if place is None:
        return Standing(stage.name, ranked.n_pairs, None, None, False, parts)
    return Standing(stage.name, ranked.n_pairs, place + 1, float(ranked.scores[place]), place < stage.keep, parts)


@dataclasses.dataclass(frozen=True)
class StagedSearch:
    """Stages over a collection, searched as an index is."""

    stages: tuple[Stage, ...]
    documents: Collection

    def hits(self, query: str | Query, k: int = 10, where: Sequence[Condition] = ()) -> list[Hit]:
        """The best k documents of one query with their texts, best first; the last stage keeps no more than it says."""
        asked = asked_query(query)
        found = self.run({asked.query_id: asked}, k, where=where)[asked.query_id]
        texts = self.documents.documents_by_row(self.documents.rows_of([doc_id for doc_id, _ in found]))
        return [Hit(rank, score, document) for rank, ((_, score), document) in enumerate(zip(found, texts, strict=True), 1)]

    def run(self, queries: Queries, k: int = 1000, name: str = "stages", where: Sequence[Condition] = ()) -> Run:
        """The best k documents of many queries, as a run.

        Raises:
            ConfigError: there are conditions, which not all rankers could keep.
        """
        if where:
            raise ConfigError("search: stages take no --filter. Search the index: retriever search FOLDER")
        return search(self.stages, queries).top(k).rename(name)


def fused(fusion: Fusion, scores: NDArray[np.float32], offsets: NDArray[np.int64], weights: Sequence[float] | None = None) -> NDArray[np.float32]:
    """[n], one score from several: a mean of the z-scores of each list, or the sum of 1 / (60 + rank) (Cormack et al. 2009).

    Args:
        fusion: which; "weighted" without weights is "z_score".
        scores: [rankers, n].
        offsets: [Q + 1], the borders of the lists.
        weights: [rankers].
    """
    if len(scores) == 1:
        return np.asarray(scores[0])
    view = reciprocal_ranks if fusion == "reciprocal_rank" else z_scores
    seen = np.stack([view(own, offsets) for own in scores])
    shares = np.asarray(weights if fusion == "weighted" and weights else [1 / len(scores)] * len(scores))
    found: NDArray[np.float32] = (shares @ seen).astype(np.float32)
    return found


def union(runs: Sequence[Run]) -> Run:
    """The pairs of several runs over the same queries, with scores that mean nothing."""
    pairs = {query_id: dict.fromkeys((doc_id for run in runs for doc_id, _ in run[query_id]), 0.0) for query_id in runs[0].query_ids}
    return Run.from_dict("union", pairs)
