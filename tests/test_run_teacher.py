"""Scores that lie in a file: as a teacher, and as a source of candidates."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from retriever.candidates import file_run
from retriever.collection import Collection
from retriever.config import experiment_from, read_experiment
from retriever.errors import ConfigError, DataError, StoreError
from retriever.pipeline import Pipeline
from retriever.plugins import load_kind
from retriever.resources import Resources
from retriever.runs import Run, read_run, unit_of
from retriever.scores.store import ScoreStore
from retriever.settings.collection import CandidateSettings
from retriever.settings.teacher import RunSettings
from retriever.types import Document, Query, Teacher
from tests.scoring_material import DOCUMENTS, QUERIES, write_tiny_collection
from tests.tiny_experiment import write_experiment

SCORES = {"q1": {"d1": 3.5, "d2": -1.25, "d5": -8.0}, "q2": {"d5": 0.5, "d7": 12.75}}
"""Numbers that float32 holds exactly."""


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return write_tiny_collection(tmp_path / "collection")


def unused(*_: object) -> object:
    raise AssertionError("a run's teacher computes nothing")


def teacher_of(collection: Collection, path: Path, **settings: object) -> Teacher:
    resources = Resources(collection, CandidateSettings(), unused, unused)  # type: ignore[arg-type]
    teacher: Teacher = load_kind("teachers", "run", "teacher").load(RunSettings.model_validate({"path": path, **settings}), resources)
    return teacher


def as_trec(folder: Path, scores: Mapping[str, Mapping[str, float]] = SCORES) -> Path:
    Run.from_dict("ce", scores).write_trec(folder / "ce.trec")
    return folder / "ce.trec"


def as_parquet(folder: Path, scores: Mapping[str, Mapping[str, float]] = SCORES) -> Path:
    Run.from_dict("ce", scores).write_parquet(folder / "ce.parquet", "logit")
    return folder / "ce.parquet"


def pairs_of(scores: Mapping[str, Mapping[str, float]]) -> list[tuple[Query, Document]]:
    documents = {document.doc_id: document for document in DOCUMENTS}
    return [(QUERIES[query_id], documents[doc_id]) for query_id, listed in scores.items() for doc_id in listed]


@pytest.mark.parametrize("write", [as_trec, as_parquet])
def test_a_pairs_score_is_what_the_file_says(collection: Collection, tmp_path: Path, write: Callable[[Path], Path]) -> None:
    teacher = teacher_of(collection, write(tmp_path), unit="logit")
    scored = teacher.score(pairs_of(SCORES))
    assert scored.scores.tolist() == [3.5, -1.25, -8.0, 0.5, 12.75]
    assert scored.scores.dtype == np.float32
    assert (teacher.identity.name, teacher.identity.kind, teacher.identity.unit) == ("run-ce", "run", "logit")
    backwards = teacher.score(pairs_of(SCORES)[::-1])
    assert backwards.scores.tolist() == [12.75, 0.5, -8.0, -1.25, 3.5]


def test_scores_unit_and_the_rule_for_missing_pairs_are_the_identity(collection: Collection, tmp_path: Path) -> None:
    trec, parquet = as_trec(tmp_path), as_parquet(tmp_path)
    same = {teacher_of(collection, path, unit="logit").identity.fingerprint for path in (trec, parquet)}
    (tmp_path / "other").mkdir()
    changed = as_trec(tmp_path / "other", {**SCORES, "q2": {"d5": 0.5, "d7": 12.5}})
    others = [
        teacher_of(collection, trec, unit="log_odds"),
        teacher_of(collection, trec, unit="logit", missing="lowest"),
        teacher_of(collection, changed, unit="logit"),
    ]
    assert len(same) == 1
    assert len({*same, *(other.identity.fingerprint for other in others)}) == 4


def test_missing_pairs_are_an_error_that_counts_them(collection: Collection, tmp_path: Path) -> None:
    teacher = teacher_of(collection, as_trec(tmp_path), unit="logit")
    with pytest.raises(StoreError) as refusal:
        teacher.score(pairs_of({"q1": {"d1": 0, "d3": 0, "d4": 0}}))
    assert str(refusal.value) == (
        f'teacher "run-ce": 2 of 3 pairs are not in {tmp_path}/ce.trec (the first is query q1, document d3). '
        'Score them too, set missing = "lowest" for this teacher, or take the candidates from the file: candidates.sources'
    )


def test_a_missing_pair_can_have_the_lowest_score_of_its_list(collection: Collection, tmp_path: Path) -> None:
    teacher = teacher_of(collection, as_trec(tmp_path), unit="logit", missing="lowest")
    assert teacher.score(pairs_of({"q1": {"d1": 0, "d3": 0}, "q2": {"d1": 0}})).scores.tolist() == [3.5, -8.0, 0.5]
    assert teacher.score(pairs_of({"q4": {"d1": 0, "d2": 0}})).scores.tolist() == [-8.0, -8.0]  # of q4 the file says nothing
    with pytest.raises(StoreError, match=r"1 of 1 pairs are not in .* 1 queries are not there at all"):
        teacher_of(collection, as_trec(tmp_path), unit="logit").score(pairs_of({"q4": {"d1": 0}}))


def test_the_store_keeps_what_the_file_says(collection: Collection, tmp_path: Path) -> None:
    teacher, run = teacher_of(collection, as_trec(tmp_path), unit="logit"), Run.from_dict("ce", SCORES)
    store = ScoreStore.open(tmp_path / "store", collection)
    store.score(teacher, run, QUERIES)
    stored = store.read(teacher.identity, run, QUERIES)
    assert stored.run.to_dict() == run.to_dict()
    assert stored.unit == "logit"


@pytest.mark.parametrize(
    ("write", "settings", "message"),
    [
        (as_trec, {}, "ce.trec does not say what its scores mean. Set unit to one of logit, log_odds, "),
        (as_parquet, {"unit": "dot"}, 'unit = "dot", but .*ce.parquet says "logit". Leave one of them out'),
    ],
)
def test_a_unit_that_is_missing_or_contradicted_is_refused(
    collection: Collection, tmp_path: Path, write: Callable[[Path], Path], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        teacher_of(collection, write(tmp_path), **settings)


def test_the_unit_in_the_file_is_enough(collection: Collection, tmp_path: Path) -> None:
    assert teacher_of(collection, as_parquet(tmp_path)).identity.unit == "logit"
    assert (unit_of(as_parquet(tmp_path)), unit_of(as_trec(tmp_path))) == ("logit", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"q1 Q0 d1 1 3.5\n", r"ce:1: a TREC run has 6 fields .* becomes a run by: retriever import .*ce"),
        (b"PAR1 and nothing more", "not a run in Parquet"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_run_is_one_clear_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "ce").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_run(tmp_path / "ce")


# As a source of candidates


def test_a_runs_best_documents_are_the_candidates(collection: Collection, tmp_path: Path) -> None:
    run = file_run(as_trec(tmp_path), collection, QUERIES, 2)
    assert run.to_dict() == {"q1": {"d1": 3.5, "d2": -1.25}, "q2": {"d7": 12.75, "d5": 0.5}, "q3": {}, "q4": {}}


def test_candidates_of_another_collection_are_refused(collection: Collection, tmp_path: Path) -> None:
    path = as_trec(tmp_path, {"q1": {"d1": 1.0, "x9": 0.5}})
    with pytest.raises(DataError, match=r'ce.trec: the document x9 is not in the collection "collection" \(1 such\)'):
        file_run(path, collection, QUERIES, 10)


def test_paths_of_runs_are_relative_to_the_experiment_file(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    as_trec(tmp_path / "runs")
    values = {
        "name": "x",
        "collection": {"path": "c"},
        "candidates": {"sources": ["bm25", "runs/ce.trec"]},
        "teacher": [{"kind": "run", "path": "runs/ce.trec", "unit": "logit"}],
        "student": {"model": "m"},
    }
    (tmp_path / "bm25").mkdir()  # a name of ours stays one, whatever lies beside the file
    experiment = experiment_from(values, base=tmp_path)
    assert experiment.candidates.sources == ("bm25", str(tmp_path / "runs" / "ce.trec"))
    assert experiment.teacher[0].model_dump()["path"] == tmp_path / "runs" / "ce.trec"
    assert experiment.teacher[0].label == "run-ce"


def test_a_file_gives_candidates_and_scores_of_an_experiment(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    first = Pipeline(read_experiment(write_experiment(tmp_path, shared_beir_folder, encoder_folder)), tmp_path / "work")
    scored = {query_id: documents for split in ("train", "test") for query_id, documents in first.scores[split]["lexical"].to_dict().items()}
    as_trec(tmp_path, scored)
    changes = {
        'sources = ["bm25", "student"]': 'sources = ["ce.trec"]',
        'kind = "lexical"': 'kind = "run"\npath = "ce.trec"\nunit = "bm25"',
        '"tiny"': '"again"',
    }
    again = Pipeline(read_experiment(write_experiment(tmp_path, shared_beir_folder, encoder_folder, changes)), tmp_path / "work")
    for split in ("train", "test"):
        assert again.candidates[split].to_dict() == first.scores[split]["lexical"].top(10).to_dict()
        assert all(
            again.scores[split]["run-ce"].to_dict()[query_id][doc_id] == score
            for query_id in again.candidates[split]
            for doc_id, score in again.candidates[split][query_id]
        )
