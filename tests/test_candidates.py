"""Candidates: each source against a slow reference, and what fusing and adding positives do."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from retriever.bm25 import BM25, build_bm25
from retriever.candidates import bm25_run, hybrid_run, index_run, reciprocal_rank_fusion, run_of_rows, with_positives
from retriever.collection import Collection, open_collection
from retriever.conversations.reading import ConversationReader
from retriever.encodings import Vectors, encode_collection
from retriever.indexing.flat import FlatIndex, of_vectors
from retriever.progress import Quiet
from retriever.runs import Run
from retriever.settings.collection import CollectionSettings
from retriever.students.dense import DenseStudent, load_folder
from retriever.types import Query

DEPTH = 7


@pytest.fixture(scope="module")
def collection(shared_beir_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return open_collection(CollectionSettings(path=shared_beir_folder), tmp_path_factory.mktemp("candidates") / "collection")


@pytest.fixture(scope="module")
def queries(collection: Collection) -> dict[str, Query]:
    return collection.queries("test") | {"none": Query("none", "zzz qqq")}  # no document has a word of it


@pytest.fixture(scope="module")
def bm25(collection: Collection) -> BM25:
    return build_bm25(document.full_text for document in collection.documents())


@pytest.fixture(scope="module")
def encoder(encoder_folder: Path) -> DenseStudent:
    return load_folder(encoder_folder)


@pytest.fixture(scope="module")
def vectors(encoder: DenseStudent, collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    return encode_collection(encoder, collection, tmp_path_factory.mktemp("candidates") / "vectors")


@pytest.fixture(scope="module")
def index(vectors: Vectors) -> FlatIndex:
    return of_vectors(vectors)


def all_dense_scores(encoder: DenseStudent, collection: Collection, query: Query) -> dict[str, float]:
    """Every document's inner product with the query, without any index."""
    documents = list(collection.documents())
    products = encoder.encode_documents(documents) @ encoder.encode_queries([query])[0]
    return {document.doc_id: float(product) for document, product in zip(documents, products, strict=True)}


def best(scores: dict[str, float], depth: int) -> list[str]:
    return sorted(scores, key=lambda doc_id: -scores[doc_id])[:depth]


def standardised(scores: dict[str, float]) -> dict[str, float]:
    mean = sum(scores.values()) / len(scores)
    deviation = math.sqrt(sum((score - mean) ** 2 for score in scores.values()) / len(scores))
    return {doc_id: (score - mean) / deviation if deviation > 1e-6 else 0.0 for doc_id, score in scores.items()}


def test_bm25_s_candidates_are_the_best_of_all_scores(bm25: BM25, collection: Collection, queries: dict[str, Query]) -> None:
    run = bm25_run("bm25", bm25, collection, queries, DEPTH)
    assert (run.name, list(run)) == ("bm25", list(queries))
    for query_id, query in queries.items():
        scores = dict(zip(collection.doc_ids.tolist(), bm25.scores(query.text).tolist(), strict=True))
        found = dict(run[query_id])
        assert len(found) == min(DEPTH, sum(score > 0 for score in scores.values()))
        assert found == {doc_id: scores[doc_id] for doc_id in found}
        assert min(found.values(), default=math.inf) >= max((scores[doc_id] for doc_id in scores if doc_id not in found), default=0.0)


def test_a_query_that_shares_no_word_has_no_bm25_candidates_but_stays(bm25: BM25, collection: Collection, queries: dict[str, Query]) -> None:
    run = bm25_run("bm25", bm25, collection, queries, DEPTH)
    assert "none" in run
    assert run["none"] == []


def test_progress_is_told_once_for_each_query(bm25: BM25, collection: Collection, queries: dict[str, Query]) -> None:
    told: list[Any] = []

    class Listening(Quiet):
        def bar(self, description: str, total: int) -> Any:
            import contextlib

            told.append((description, total))
            return contextlib.nullcontext(told.append)

    bm25_run("bm25", bm25, collection, queries, DEPTH, Listening())
    assert told == [("bm25", 11), *[1] * 11]


@pytest.mark.parametrize("batch", [1, 4, 256])
def test_dense_candidates_are_the_best_inner_products_whatever_the_batch(
    encoder: DenseStudent, index: FlatIndex, collection: Collection, queries: dict[str, Query], batch: int
) -> None:
    run = index_run("dense", encoder, index, collection, queries, DEPTH, batch=batch)
    for query_id, query in queries.items():
        scores = all_dense_scores(encoder, collection, query)
        assert [doc_id for doc_id, _ in run[query_id]] == best(scores, DEPTH)
        assert [score for _, score in run[query_id]] == pytest.approx([scores[doc_id] for doc_id in best(scores, DEPTH)], abs=1e-5)


def test_a_hybrid_is_the_sum_of_both_z_scores_over_the_union(
    bm25: BM25, encoder: DenseStudent, index: FlatIndex, vectors: Vectors, collection: Collection, queries: dict[str, Query]
) -> None:
    snapshot = SimpleNamespace(encoder=encoder, search=index.search, ids_of=collection.ids_of)
    run = hybrid_run(bm25, snapshot, vectors, collection, queries, DEPTH, ConversationReader())
    lexical_run = bm25_run("bm25", bm25, collection, queries, DEPTH)
    assert list(run) == list(queries)
    for query_id, query in queries.items():
        dense = all_dense_scores(encoder, collection, query)
        lexical = dict(zip(collection.doc_ids.tolist(), bm25.scores(query.text).tolist(), strict=True))
        union = {doc_id for doc_id, _ in lexical_run[query_id]} | set(best(dense, DEPTH))
        parts = [standardised({doc_id: scores[doc_id] for doc_id in union}) for scores in (lexical, dense)]
        expected = {doc_id: parts[0][doc_id] + parts[1][doc_id] for doc_id in union}
        assert dict(run[query_id]) == pytest.approx(expected, abs=1e-3)


def test_fusion_adds_reciprocal_ranks_from_sixty_on() -> None:
    first = Run.from_dict("first", {"q": {"a": 9.0, "b": 5.0}, "empty": {}})
    second = Run.from_dict("second", {"q": {"b": 0.3, "c": 0.2, "a": 0.1}, "empty": {}})
    fused = reciprocal_rank_fusion("both", [first, second])
    assert dict(fused["q"]) == pytest.approx({"a": 1 / 61 + 1 / 63, "b": 1 / 62 + 1 / 61, "c": 1 / 62})
    assert [doc_id for doc_id, _ in fused["q"]] == ["b", "a", "c"]
    assert (fused.name, fused["empty"]) == ("both", [])


def test_one_run_fused_with_nothing_keeps_its_scores() -> None:
    fused = reciprocal_rank_fusion("one", [Run.from_dict("first", {"q": {"a": 9.0}})])
    assert (fused.name, fused["q"]) == ("one", [("a", 9.0)])


def test_missing_positives_are_added_below_all_others() -> None:
    run = Run.from_dict("r", {"q1": {"a": 2.0, "b": 0.5}, "q2": {}, "q3": {"a": 1.0}})
    added = with_positives(run, {"q1": {"b": 1, "c": 2, "d": 0, "e": -1}, "q2": {"c": 1}, "elsewhere": {"c": 1}})
    assert added.to_dict() == {"q1": {"a": 2.0, "b": 0.5, "c": -0.5}, "q2": {"c": -1.0}, "q3": {"a": 1.0}}


def test_rows_become_ids_and_queries_without_rows_stay(collection: Collection) -> None:
    rows = [np.array([3, 0], dtype=np.int64), np.array([], dtype=np.int64), np.array([3], dtype=np.int64)]
    scores = [np.array([0.5, 1.5], dtype=np.float32), np.array([], dtype=np.float32), np.array([2.0], dtype=np.float32)]
    run = run_of_rows("r", collection, ["q1", "q2", "q3"], rows, scores)
    ids = collection.doc_ids.tolist()
    assert run.to_dict() == {"q1": {ids[0]: 1.5, ids[3]: 0.5}, "q2": {}, "q3": {ids[3]: 2.0}}
    assert run_of_rows("r", collection, [], [], []).to_dict() == {}
