"""Every kind of student through a whole experiment on a tiny collection: trained, indexed or re-ranking, evaluated, and open in stock libraries."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers

from retriever import distill
from retriever.config import read_experiment
from retriever.errors import ConfigError
from retriever.pipeline import Pipeline
from retriever.search import open_index
from retriever.types import Document, Query
from tests.tiny_experiment import write_experiment

KINDS = {
    "dense": ("SentenceTransformer", "layers = 1"),
    "sparse": ("SparseEncoder", "query_dimensions = 8\ndocument_dimensions = 16"),
    "late_interaction": ("MultiVectorEncoder", "dimensions = 16"),
    "static": ("SentenceTransformer", "dimensions = 16"),
}
NO_STUDENT = {'kind = "embedding"\nmodel = "student"': 'kind = "embedding"\nmodel = "{model}"', 'sources = ["bm25", "student"]': 'sources = ["bm25"]'}


def experiment_of(tmp_path: Path, beir: Path, encoder: Path, kind: str, keys: str = "", **settings: Any) -> Any:
    changes = {old: new.replace("{model}", str(encoder)) for old, new in NO_STUDENT.items()}
    changes |= {"[student]": f'[student]\nkind = "{kind}"\n{keys}'}
    return read_experiment(write_experiment(tmp_path, beir, encoder, changes), [f"{key}={value}" for key, value in settings.items()])


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_distilled_indexed_and_opens_in_stock(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path, kind: str) -> None:
    stock, keys = KINDS[kind]
    found = distill(experiment_of(tmp_path, shared_beir_folder, encoder_folder, kind, keys), tmp_path / "work")
    assert [run.name for run in found.report.runs] == ["bm25", "student_before", "hybrid_before", "teacher", "student", "hybrid"]
    index = open_index(found.folder)
    hits = index.hits("which bird hunts at night", 5)
    assert len(hits) == 5
    model = getattr(sentence_transformers, stock)(str(found.student), device="cpu")
    plain = {"convert_to_sparse_tensor": False} if kind == "sparse" else {}
    query = model.encode_query(["which bird hunts at night"], **plain)
    documents = model.encode_document([hit.document.full_text for hit in hits], **plain)
    tolerance = 2e-3 if kind == "late_interaction" else 1e-4  # token vectors are indexed in float16
    np.testing.assert_allclose([hit.score for hit in hits], np.asarray(model.similarity(query, documents))[0], rtol=tolerance, atol=tolerance)
    assert f"from sentence_transformers import {stock}" in (found.student / "README.md").read_text()


def test_a_cross_encoder_is_distilled_and_re_ranks(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    experiment = experiment_of(tmp_path, shared_beir_folder, encoder_folder, "cross_encoder", **{"evaluation.ablation": "true"})
    found = distill(experiment, tmp_path / "work")
    assert [run.name for run in found.report.runs] == ["bm25", "student_before", "teacher", "contrastive", "student"]
    assert found.index is None
    pipeline = Pipeline(experiment, tmp_path / "work")
    pairs = [(Query("q", "owl"), Document("d", "a bird of prey")), (Query("q", "owl"), Document("e", "it drives nails"))]
    stock = sentence_transformers.CrossEncoder(str(found.student), device="cpu")
    np.testing.assert_allclose(
        stock.predict([("owl", "a bird of prey"), ("owl", "it drives nails")]), pipeline.student.score_pairs(pairs), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(ConfigError, match="a cross_encoder re-ranks what others find, so there is nothing to index"):
        _ = pipeline.index


def test_a_cross_encoder_cannot_be_a_source_of_candidates(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    experiment = experiment_of(tmp_path, shared_beir_folder, encoder_folder, "cross_encoder", **{"candidates.sources": '["student"]'})
    with pytest.raises(ConfigError, match='"student" encodes nothing: it is a cross_encoder'):
        _ = Pipeline(experiment, tmp_path / "work").candidates


def test_each_round_adds_what_the_student_before_it_finds(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    experiment = experiment_of(
        tmp_path, shared_beir_folder, encoder_folder, "dense", **{"training.rounds": 3, "candidates.depth": 3, "training.epochs": 1, "training.batch_size": 16}
    )
    pipeline = Pipeline(experiment, tmp_path / "work")
    done = pipeline.trained
    assert done.folder.name == "train"
    before = pipeline.pairs("train")
    first, second = (pipeline_pairs(pipeline.folder / f"mine-train-{number}") for number in (1, 2))
    assert pairs_of(before) < pairs_of(first) <= pairs_of(second)
    assert pipeline.store.missing(pipeline.identities["lexical"], second, pipeline.queries("train")).n_pairs == 0  # the teachers scored what was found
    student = pipeline.open_student(pipeline.folder / "train-1" / "student")
    query_id, query = next(iter(pipeline.queries("train").items()))
    found = student.encode_documents(list(pipeline.collection.documents())) @ student.encode_queries([query])[0]
    best = pipeline.collection.doc_ids[np.argsort(-found, kind="stable")[:3]]
    assert {(query_id, doc_id) for doc_id in best} <= pairs_of(first)


def pipeline_pairs(folder: Path) -> Any:
    from retriever.runs import Run

    return Run.read_parquet(folder / "train.parquet")


def pairs_of(run: Any) -> set[tuple[str, str]]:
    return {(query_id, doc_id) for query_id in run for doc_id, _ in run[query_id]}


LOSSES = [
    "standardised_kl",
    "ranknet",
    "lambda_loss",
    "list_mle",
    "partial_ranking",
    "adr_mse",
    "contrastive_four_ways",
    "in_batch_similarity",
    "vector_cosine",
    "gram",
]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_a_dense_student(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path, loss: str) -> None:
    experiment = experiment_of(tmp_path, shared_beir_folder, encoder_folder, "dense", **{"training.losses": f"{{{loss} = 1.0}}", "training.epochs": 1})
    pipeline = Pipeline(experiment, tmp_path / "work")
    assert pipeline.trained.result["validation"]["step"] >= 0
    assert (pipeline.trained.folder / "curve.json").is_file()


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("dense", {"student.layers": 9}, "student.layers: 9"),
        ("sparse", {"training.losses": "{gram = 1.0}"}, "gram compares one vector a text; only dense and static students have one"),
        ("cross_encoder", {"training.losses": "{in_batch_similarity = 1.0}"}, "in_batch_similarity compares whole batches or vectors"),
        ("dense", {"training.losses": "{gram = 1.0}", "training.vectors_from": "lexical"}, 'gram compares with a teacher\'s vectors, and "lexical" has none'),
        ("dense", {"training.losses": "{vector_mse = 1.0}", "student.projection": 8}, "Set student.projection = 32"),
    ],
)
def test_what_cannot_train_is_refused(
    tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path, kind: str, settings: dict[str, Any], message: str
) -> None:
    pipeline = Pipeline(experiment_of(tmp_path, shared_beir_folder, encoder_folder, kind, **settings), tmp_path / "work")
    with pytest.raises(ConfigError, match=re.escape(message)):
        _ = pipeline.trained
    assert not (tmp_path / "work" / "tiny" / "train").exists()
    if "projection" not in message:
        assert not (tmp_path / "work" / "tiny" / "score").exists()  # before anything was scored
