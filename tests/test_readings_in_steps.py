"""What the start reads of a conversation where others ask it, and what is made again when the student reads otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from retriever.audit.step import audit_teachers
from retriever.config import experiment_from, read_experiment
from retriever.conversations.reading import READER
from retriever.pipeline import Pipeline
from retriever.search import open_index
from retriever.settings.training import TrainingSettings
from retriever.steps.rounds import teacher_vectors, vectors_input
from tests.conversation_material import UTTERANCE, as_second_turns
from tests.tiny_experiment import manifest_times, write_experiment


@pytest.fixture
def talks(beir_folder: Path) -> Path:
    return as_second_turns(beir_folder, together=1)


@pytest.fixture
def opened(talks: Path, encoder_folder: Path, tmp_path: Path) -> Any:
    """Opens the experiment, always in the same folder, with a student that reads so."""

    def pipeline(reads: str | None, candidates: dict[str, Any] | None = None, teacher_reads: str | None = None, room: int | None = None) -> Pipeline:
        values = {
            "name": "talks",
            "collection": {"path": talks},
            "candidates": {"depth": 8, **(candidates or {"sources": ["student"]})},
            "teacher": [{"kind": "lexical", "reads": "rewrite"}, {"kind": "embedding", "name": "start", "model": "student", "reads": teacher_reads}],
            "student": {"kind": "dense", "model": str(encoder_folder), "reads": reads, "history_tokens": room},
            "training": {"losses": {"kl_divergence": 1.0}, "validation_fraction": 0.5},
            "evaluation": {"measures": ["RR"]},
        }
        return Pipeline(experiment_from(values), tmp_path / "work")

    return pipeline


@pytest.fixture
def stock(encoder_folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(encoder_folder), device="cpu")


def scores_of(stock: SentenceTransformer, pipeline: Pipeline, text: str) -> dict[str, float]:
    """Each document's cosine with a text, by sentence-transformers alone."""
    documents = list(pipeline.collection.documents())
    values = stock.encode_document([document.full_text for document in documents]) @ stock.encode_query(text)
    return dict(zip([document.doc_id for document in documents], values.tolist(), strict=True))


def best_of(scores: dict[str, float], k: int) -> set[str]:
    return set(sorted(scores, key=lambda doc_id: -scores[doc_id])[:k])


# Where the last turn is asked for


@pytest.mark.parametrize("reads", ["latest_first", "rewrite"])
def test_the_start_as_a_teacher_of_the_last_turn_scores_that_alone_whatever_the_student_reads(opened: Any, stock: SentenceTransformer, reads: str) -> None:
    pipeline = opened(reads)
    expected = scores_of(stock, pipeline, UTTERANCE)
    queries, documents = list(pipeline.queries_of("start", "test").values()), list(pipeline.collection.documents())
    scores = pipeline.teachers["start"].score([(query, document) for query in queries for document in documents]).scores
    np.testing.assert_allclose(scores.reshape(len(queries), -1), [[expected[document.doc_id] for document in documents]] * len(queries), atol=1e-5)


def test_scores_are_kept_apart_only_where_the_start_could_have_read_more_than_its_teacher(opened: Any) -> None:
    def settings(student: str | None, teacher: str | None) -> dict[str, Any]:
        return dict(opened(student, teacher_reads=teacher).identities["start"].settings)

    assert settings("latest_first", None) == settings("all", "last") == {"reads": "last"}
    assert settings("last", None) == settings(None, "last") == settings("latest_first", "rewrite") == settings("all", "user") == {}


def test_candidates_under_the_reading_last_are_those_of_the_last_turn(opened: Any, stock: SentenceTransformer) -> None:
    pipeline = opened("latest_first", {"sources": ["student"], "reads": ["last"]})
    expected = best_of(scores_of(stock, pipeline, UTTERANCE), 8)
    for run in pipeline.candidates.values():
        assert [{doc_id for doc_id, _ in run[query_id]} for query_id in run] == [expected] * len(run)


def test_vectors_of_the_start_as_a_teacher_of_the_last_turn_are_those_of_that_turn(opened: Any, stock: SentenceTransformer) -> None:
    training = TrainingSettings(losses={"vector_mse": 1.0})
    expected = stock.encode_query(UTTERANCE)
    inputs = {}
    for reads in ("latest_first", "last"):
        pipeline = opened(reads)
        vectors = teacher_vectors(pipeline, training)
        assert vectors is not None
        np.testing.assert_allclose(list(vectors.queries.values()), [expected] * 20, atol=1e-5)
        inputs[reads] = vectors_input(pipeline, training, vectors)
    assert inputs["last"] == {"teacher's vectors": pipeline.start.document_identity}
    assert inputs["latest_first"] == {**inputs["last"], "read by that teacher": "last"}  # a training on other vectors of that name is no longer the same


# Where the student reads otherwise than before


def test_candidates_of_a_student_that_reads_otherwise_are_found_again(opened: Any, stock: SentenceTransformer) -> None:
    times = []
    for reads in ("latest_first", "rewrite", "rewrite"):
        pipeline = opened(reads)
        run = pipeline.candidates["test"]
        times.append(manifest_times(pipeline.folder)["candidates"])
        texts = {query_id: query.text for query_id, query in pipeline.student_queries("test").items()}
        for query_id in run:
            assert {doc_id for doc_id, _ in run[query_id]} == best_of(scores_of(stock, pipeline, texts[query_id]), 8)
    assert times[0] < times[1] == times[2]


@pytest.mark.parametrize("candidates", [{"sources": ["bm25"]}, {"sources": ["student"], "reads": ["user"]}])
def test_candidates_that_the_students_reading_does_not_decide_are_kept(opened: Any, candidates: dict[str, Any]) -> None:
    times = []
    for reads in ("latest_first", "rewrite"):
        pipeline = opened(reads, candidates)
        _ = pipeline.candidates
        times.append(manifest_times(pipeline.folder)["candidates"])
    assert times[0] == times[1]


def test_the_audit_of_a_student_that_reads_otherwise_is_made_again(opened: Any) -> None:
    candidates = {"sources": ["bm25"], "reads": ["rewrite"]}
    means = {}
    for reads in ("last", "rewrite"):
        done, audit = audit_teachers(opened(reads, candidates))
        assert done.done_now
        means[reads] = audit.baselines["student_before"].mean["RR"]
    assert means["last"] < means["rewrite"]  # nobody can know what "yes please" asks for
    assert not audit_teachers(opened("rewrite", candidates))[0].done_now


def test_the_index_of_the_start_reads_as_the_student_does_now(opened: Any, stock: SentenceTransformer) -> None:
    for reads, room in [("latest_first", None), ("latest_first", 5), ("all", None), ("last", None), ("rewrite", None)]:
        pipeline = opened(reads, room=room)
        index = pipeline.index_before
        alone = open_index(pipeline.folder / "index_before").encoder
        assert index.encoder.reader.reading == alone.reader.reading == reads
        query = next(iter(pipeline.conversations("test").values()))
        np.testing.assert_allclose(alone.encode_queries([query])[0], stock.encode_query(pipeline.reader.text(query).text), atol=1e-5)
        (kept,) = (pipeline.folder / "index_before" / "students").iterdir()
        assert (kept / READER).is_file() == (reads != "last")
        version = index.snapshot.version.number
        assert opened(reads, room=room).index_before.snapshot.version.number == version  # nothing has changed


def test_steps_of_an_experiment_without_conversations_are_known_by_what_they_always_were(
    tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path
) -> None:
    pipeline = Pipeline(read_experiment(write_experiment(tmp_path, shared_beir_folder, encoder_folder)), tmp_path / "work")
    _, _ = pipeline.index_before, audit_teachers(pipeline)
    made = {step: json.loads((pipeline.folder / step / "manifest.json").read_text()) for step in ("candidates", "teachers", "index_before")}
    assert made["candidates"]["inputs"].keys() == {"collection", "train", "test", "student"}
    assert made["index_before"]["inputs"].keys() == {"encoder", "collection"}
    assert "reader" not in made["index_before"]["settings"]
    shared = {"start", "collection", "candidates", "queries", "judgements"}
    assert {name for name in made["teachers"]["inputs"] if not name.startswith(("scores of ", "teacher "))} == shared
    assert [dict(identity.settings) for name, identity in pipeline.identities.items() if name.startswith("embedding")] == [{}]
