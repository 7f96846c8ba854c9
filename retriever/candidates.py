"""Which documents a teacher scores: the best of BM25, of a dense model, or of several together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.bm25 import BM25
from retriever.collection import Collection
from retriever.conversations.reading import ConversationReader
from retriever.encodings import DocumentEncodings, Encoder, score_rows
from retriever.errors import DataError
from retriever.progress import Quiet, Reporter
from retriever.runs import Run, read_run, strings
from retriever.scopes import scope_of, search_of, search_scoped
from retriever.scores.scoring import CandidatePairs
from retriever.scores.views import RECIPROCAL_RANK_CONSTANT, z_scores
from retriever.settings.collection import NAMED_SOURCES
from retriever.types import Qrels, Query

RERANKED_TOGETHER = 1024
"""Pairs whose texts are in memory at a time."""

SEARCHED_TOGETHER = 256
"""Queries of one search: an exhaustive one reads all documents once for them."""


def bm25_run(name: str, bm25: BM25, collection: Collection, queries: Mapping[str, Query], depth: int, reporter: Reporter | None = None) -> Run:
    """The best `depth` documents of each query by BM25, among those that it may find."""
    rows, scores = [], []
    with (reporter or Quiet()).bar(name, len(queries)) as advance:
        for query in queries.values():
            found, values = bm25.search(query.text, depth, scope_of(collection, query))
            rows.append(found)
            scores.append(values)
            advance(1)
    return run_of_rows(name, collection, list(queries), rows, scores)


def index_run(
    name: str,
    encoder: Encoder,
    index: Any,
    documents: Any,
    queries: Mapping[str, Query],
    depth: int,
    reporter: Reporter | None = None,
    batch: int = SEARCHED_TOGETHER,
) -> Run:
    """The best `depth` documents of each query in an index, among those that it may find; `documents.ids_of` names what its rows are."""
    listed, search = list(queries.values()), search_of(index, documents)
    rows: list[NDArray[np.int64]] = []
    scores: list[NDArray[np.float32]] = []
    with (reporter or Quiet()).bar(name, len(listed)) as advance:
        for start in range(0, len(listed), batch):
            asked = listed[start : start + batch]
            found, values = search_scoped(search, encoder.encode_queries(asked), asked, depth)
            rows.extend(found)
            scores.extend(values)
            advance(len(asked))
    return run_of_rows(name, documents, list(queries), rows, scores)


def hybrid_run(
    bm25: BM25,
    index: Any,
    encodings: DocumentEncodings,
    collection: Collection,
    queries: Mapping[str, Query],
    depth: int,
    reader: ConversationReader,
    reporter: Reporter | None = None,
) -> Run:
    """BM25 and a student fused: the sum of both per-query z-scores over the union of their best `depth` documents.

    Each document of the union has the exact score of both, also where only one of them found it. `index` is a snapshot
    of the student's, and `reader` reads conversations for BM25.
    """
    encoder: Encoder = index.encoder
    listed, search = list(queries.values()), search_of(index, index)
    rows, scores = [], []
    with (reporter or Quiet()).bar("fusing with BM25", len(listed)) as advance:
        for start in range(0, len(listed), SEARCHED_TOGETHER):
            asked = listed[start : start + SEARCHED_TOGETHER]
            encoded = encoder.encode_queries(asked)
            found, _ = search_scoped(search, encoded, asked, depth)
            for number, query in enumerate(asked):
                text = reader.text(query).text
                lexical = bm25.scores(text)
                of_student = collection.rows_of(index.ids_of(found[number]))  # the index may hold documents of its own
                union = np.union1d(bm25.search(text, depth, scope_of(collection, query))[0], of_student[of_student >= 0])
                one_list = np.array([0, len(union)])
                own = score_rows(encoder, encoded, np.full(len(union), number), encodings, union)
                rows.append(union)
                scores.append(z_scores(lexical[union], one_list) + z_scores(own, one_list))
                advance(1)
    return run_of_rows("hybrid", collection, list(queries), rows, scores)


def pair_scores(reranker: Any, pairs: Run, queries: Mapping[str, Query], collection: Collection, reporter: Reporter | None = None) -> NDArray[np.float32]:
    """[n], the scores of a run's pairs by a student that reads query and document together."""
    texts = CandidatePairs.of(pairs, queries, collection)
    parts = [np.zeros(0, dtype=np.float32)]
    with (reporter or Quiet()).bar(f"re-ranking {pairs.name}", pairs.n_pairs) as advance:
        for start in range(0, pairs.n_pairs, RERANKED_TOGETHER):
            places = np.arange(start, min(start + RERANKED_TOGETHER, pairs.n_pairs))
            parts.append(reranker.score_pairs(texts.texts(places)))
            advance(len(places))
    return np.concatenate(parts)


def run_file(source: str) -> Path | None:
    """The file that a source of candidates names, None for a source of another kind."""
    return Path(source) if source not in NAMED_SOURCES and Path(source).is_file() else None


def file_run(path: Path, collection: Collection, queries: Mapping[str, Query], depth: int, reporter: Reporter | None = None) -> Run:
    """The best `depth` documents of each query by a run's file, in Parquet or TREC; a query that is not in the file has none.

    Raises:
        DataError: the file is no run, or it names documents that are not in the collection.
    """
    run = read_run(path)
    asked = run.select(queries).top(depth)
    found = sum(query_id in run for query_id in queries)
    if found < len(queries):
        (reporter or Quiet()).say(f"candidates: {path} has {found:,} of the {len(queries):,} queries")
    named = np.unique(asked.doc_ids)
    missing = named[collection.rows_of(named.tolist()) < 0]
    if len(missing):
        raise DataError(
            f'{path}: the document {missing[0]} is not in the collection "{collection.name}" ({len(missing):,} such). Is it the run of another collection?'
        )
    return asked


def reciprocal_rank_fusion(name: str, runs: Sequence[Run]) -> Run:
    """The union of runs over the same queries, scored by the sum of 1 / (60 + rank) (Cormack et al. 2009); one run stays itself."""
    if len(runs) == 1:
        return runs[0].rename(name)
    fused: dict[str, dict[str, float]] = {query_id: {} for query_id in runs[0].query_ids}
    for run in runs:
        for query_id in run:
            for rank, (doc_id, _) in enumerate(run[query_id], 1):
                fused[query_id][doc_id] = fused[query_id].get(doc_id, 0.0) + 1.0 / (RECIPROCAL_RANK_CONSTANT + rank)
    return Run.from_dict(name, fused)


def with_positives(run: Run, qrels: Qrels) -> Run:
    """The run with every judged-relevant document that it lacks, below all others: a teacher must score them too.

    Only for train queries: added to test candidates they would make any re-ranker look better than it is.
    """
    scores: dict[str, dict[str, float]] = {}
    for query_id in run:
        found = dict(run[query_id])
        lowest = min(found.values(), default=0.0)
        missing = [doc_id for doc_id, grade in qrels.get(query_id, {}).items() if grade > 0 and doc_id not in found]
        scores[query_id] = found | dict.fromkeys(missing, lowest - 1.0)
    return Run.from_dict(run.name, scores)


def run_of_rows(name: str, documents: Any, query_ids: Sequence[str], rows: Sequence[NDArray[np.int64]], scores: Iterable[NDArray[np.float32]]) -> Run:
    """A run of row numbers and scores, one array a query; `documents.ids_of` names the rows."""
    flat = np.concatenate([np.zeros(0, dtype=np.int64), *rows])
    distinct, places = np.unique(flat, return_inverse=True)
    vocabulary = strings(documents.ids_of(distinct))
    offsets = np.concatenate([[0], np.cumsum([len(found) for found in rows])]).astype(np.int64)
    return Run(
        name, tuple(query_ids), offsets, places.astype(np.int32), vocabulary, np.concatenate([np.zeros(0, dtype=np.float32), *scores]).astype(np.float32)
    )
