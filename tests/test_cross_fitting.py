"""Teachers in folds: no train query is scored by a model that was taught on it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retriever.config import read_experiment
from retriever.errors import ConfigError
from retriever.eval.measures import evaluate
from retriever.pipeline import Pipeline
from retriever.progress import Reporter
from retriever.runs import Run
from retriever.settings.teacher import CrossFittedSettings
from retriever.steps import teach as teach_step
from retriever.steps.target import by_heart_note, on_their_lessons
from retriever.steps.train import Lesson
from retriever.teachers._cross_fitted import CrossFittedTeacher
from retriever.types import Document, Query, ScoredPairs, TeacherIdentity
from tests.tiny_experiment import Noted, write_experiment

DOCUMENT = Document("d", "text")


class Constant:
    """Gives every pair the same score, and notes who asked."""

    shard_pairs = 100

    def __init__(self, value: float) -> None:
        self.value = value
        self.asked: list[str] = []
        self.identity = TeacherIdentity("part", "embedding", f"model {value}", "cosine")

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
        self.asked += [query.query_id for query, _ in pairs]
        return ScoredPairs(np.full(len(pairs), self.value, np.float32), np.full(len(pairs), 7, np.int32), np.ones(len(pairs), np.bool_))


def test_a_train_query_is_scored_by_the_model_of_its_fold_and_any_other_by_the_mean() -> None:
    parts = [Constant(1.0), Constant(4.0)]
    teacher = CrossFittedTeacher("both", parts, {"a": 0, "b": 1})
    found = teacher.score([(Query(name, "words"), DOCUMENT) for name in ("b", "new", "a", "b")])
    assert found.scores.tolist() == [4.0, 2.5, 1.0, 4.0]
    assert found.n_tokens.tolist() == [7] * 4
    assert found.truncated.all()
    assert [part.asked for part in parts] == [["new", "a"], ["b", "new", "b"]]
    assert teacher.score([]).scores.shape == (0,)


def test_models_and_folds_decide_the_identity() -> None:
    def fingerprint(values: Sequence[float], fold_of: dict[str, int]) -> str:
        return CrossFittedTeacher("both", [Constant(value) for value in values], fold_of).identity.fingerprint

    kept = fingerprint([1.0, 4.0], {"a": 0, "b": 1})
    assert kept == fingerprint([1.0, 4.0], {"b": 1, "a": 0})
    assert len({kept, fingerprint([1.0, 5.0], {"a": 0, "b": 1}), fingerprint([1.0, 4.0], {"a": 1, "b": 0}), fingerprint([4.0, 1.0], {"a": 0, "b": 1})}) == 4


BI_ENCODER = 'kind = "embedding"\nname = "taught"\nmodel = "student"\ntrain = { epochs = 2, batch_size = 8, learning_rate = 2e-2, max_length = 64, folds = 2 }'
CROSS_ENCODER = 'kind = "cross_encoder"\nname = "taught"\nmodel = "ENCODER"\ntrain = { epochs = 1, batch_size = 12, folds = 2 }'


@pytest.mark.parametrize("table", [BI_ENCODER, CROSS_ENCODER])
def test_each_model_is_taught_without_the_queries_that_it_scores(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path, table: str) -> None:
    table = table.replace("ENCODER", str(encoder_folder))
    path = write_experiment(tmp_path, shared_beir_folder, encoder_folder, {'kind = "embedding"\nmodel = "student"': table})
    pipeline = Pipeline(read_experiment(path), tmp_path / "work", noted := Noted())
    teacher = pipeline.teachers["taught"]
    assert isinstance(teacher, CrossFittedTeacher)
    assert noted.done == {"candidates", "teach-taught"}
    folder = tmp_path / "work" / "tiny" / "teach-taught"
    assert {entry.name for entry in folder.iterdir()} == {"manifest.json", "fold-1", "fold-2"}
    assert not [entry for entry in folder.rglob("*") if entry.name in ("checkpoints", "best", "frozen")]
    train, held = pipeline.held_out
    assert set(teacher.fold_of) == set(train)
    assert not set(held) & set(teacher.fold_of)
    assert abs(list(teacher.fold_of.values()).count(0) - len(train) / 2) <= 1
    assert teacher.parts[0].identity.model != teacher.parts[1].identity.model
    pairs = pipeline.pairs("train")
    stored = pipeline.scores["train"]["taught"]
    for query_id, by in ((next(one for one in train if teacher.fold_of[one] == 1), 1), (held[0], None)):
        query = pipeline.queries("train")[query_id]
        asked = [(query, document) for document in pipeline.collection.documents_by_row(pipeline.collection.rows_of(pairs.select([query_id]).doc_ids))]
        own = np.stack([part.score(asked).scores for part in teacher.parts])
        expected = own.mean(axis=0) if by is None else own[by]
        assert np.allclose([dict(stored[query_id])[document.doc_id] for _, document in asked], expected, atol=1e-5)
    again = Pipeline(read_experiment(path), tmp_path / "work", noted := Noted())
    assert again.teachers["taught"].identity == teacher.identity
    assert noted.done == set()


def test_a_stopped_teaching_keeps_the_models_that_are_whole(
    tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_experiment(tmp_path, shared_beir_folder, encoder_folder, {'kind = "embedding"\nmodel = "student"': BI_ENCODER})
    teach = teach_step.teach_student
    taught: list[tuple[str, set[str]]] = []

    def stopped_at_the_second(student: Any, lesson: Lesson, folder: Path, reporter: Reporter, name: str) -> dict[str, Any]:
        taught.append((name, set(lesson.train)))
        if len(taught) == 2:
            raise KeyboardInterrupt
        return teach(student, lesson, folder, reporter, name)

    monkeypatch.setattr(teach_step, "teach_student", stopped_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        _ = Pipeline(read_experiment(path), tmp_path / "work").teachers
    pipeline = Pipeline(read_experiment(path), tmp_path / "work")
    settings = pipeline.taught["taught"]
    assert isinstance(settings, CrossFittedSettings)
    assert taught == [(f"teach-taught, fold {number}", {query_id for query_id, fold in settings.fold_of.items() if fold != number - 1}) for number in (1, 2, 2)]


def test_a_teacher_that_has_learnt_its_queries_by_heart_is_told_where_nobody_cross_fits(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    lessons = {}
    for folds in ("", ", folds = 2"):
        table = BI_ENCODER.replace(", folds = 2", folds).replace("epochs = 2", "epochs = 10")
        path = write_experiment(tmp_path, shared_beir_folder, encoder_folder, {'kind = "embedding"\nmodel = "student"': table})
        pipeline = Pipeline(read_experiment(path), tmp_path / f"work{len(folds)}")
        run, qrels = pipeline.candidates["train"].select(pipeline.held_out[0]), pipeline.qrels("train")
        by_teacher = pipeline.scores["train"]["taught"].to_dict()
        again = Run.from_dict("taught", {query_id: {doc_id: by_teacher[query_id][doc_id] for doc_id, _ in run[query_id]} for query_id in run.query_ids})
        asked = {query_id: qrels[query_id] for query_id in run.query_ids}
        lessons[folds] = evaluate(again, asked, ["nDCG@10"]).means["nDCG@10"], on_their_lessons(pipeline, pipeline.scores["train"]), pipeline.target.reason
    value, found, _ = lessons[""]
    assert found == {"taught": pytest.approx(value, abs=1e-6)}
    assert value > lessons[", folds = 2"][0]
    assert lessons[", folds = 2"][1] == {}
    assert "see train.folds" not in lessons[", folds = 2"][2]


def test_the_note_names_teachers_that_are_surer_of_their_lessons() -> None:
    note = "On the queries that they were taught on, teachers rank better than on those held out (a 0.800 against 0.600); see train.folds."
    assert by_heart_note({"a": 0.8, "b": 0.64}, {"a": 0.6, "b": 0.6, "c": 0.1}) == note
    assert by_heart_note({"b": 0.64}, {"b": 0.6}) == ""
    assert by_heart_note({}, {"b": 0.6}) == ""


def test_vectors_of_several_models_are_refused(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    path = write_experiment(tmp_path, shared_beir_folder, encoder_folder, {'kind = "embedding"\nmodel = "student"': BI_ENCODER})
    with pytest.raises(ConfigError, match=r"the models of a teacher with train\.folds have vectors of their own"):
        _ = Pipeline(read_experiment(path, ["training.losses={gram=1.0}"]), tmp_path / "work").trained
