"""Queries that nobody judged: which ones teach, by whose word, and that nothing but students learns from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from retriever.collection import Collection, write_collection
from retriever.config import read_experiment
from retriever.pipeline import Pipeline
from retriever.queries import unjudged_queries
from retriever.settings.collection import CollectionSettings
from retriever.steps.systems import train_other
from retriever.types import Document, Query, Turn
from tests.test_pipeline import Noted
from tests.tiny_experiment import command, write_experiment

LOGS = {"log1": "a saw for metal", "log2": "night bird", "log3": "tool with a blade"}


@pytest.fixture
def collection(beir_folder: Path, tmp_path: Path) -> Path:
    """The tiny collection with three queries of a log."""
    folder = shutil.copytree(beir_folder, tmp_path / "logged")
    with (folder / "queries.jsonl").open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"_id": query_id, "text": text}) + "\n" for query_id, text in LOGS.items())
    return folder


def pipeline_of(tmp_path: Path, collection: Path, encoder_folder: Path, *overrides: str) -> Pipeline:
    file = write_experiment(tmp_path, collection, encoder_folder)
    return Pipeline(read_experiment(file, ["collection.unjudged=true", *overrides]), tmp_path / "work", Noted())


def test_queries_that_a_test_would_know_again_do_not_teach(tmp_path: Path) -> None:
    queries = [
        *(Query(query_id, f"text of {query_id}", conversation=talk) for query_id, talk in [("a", "learns"), ("b", "tests"), ("c", "spare"), ("d", "")]),
        *(Query(f"more_{talk}", f"more of {talk}", (Turn("user", "before"),), conversation=talk) for talk in ("learns", "tests", "spare", "alone")),
        Query("same", "Text  of D"),
        Query("again", "text of  A"),  # people said of it what there is to say
        Query("free", "text of nobody"),
    ]
    qrels = {"train": {"a": {"d": 1}}, "test": {"b": {"d": 1}, "d": {"d": 0}}, "dev": {"c": {"d": 1}}}
    made = write_collection(tmp_path / "c", [Document("d", "text")], queries, qrels)
    settings = CollectionSettings(path=tmp_path, unjudged=True)
    assert list(unjudged_queries(made, settings)) == ["more_learns", "more_alone", "free"]
    assert unjudged_queries(made, CollectionSettings(path=tmp_path)) == {}


def test_students_learn_from_unjudged_queries_and_nothing_else_does(collection: Path, encoder_folder: Path, tmp_path: Path) -> None:
    pipeline = pipeline_of(tmp_path, collection, encoder_folder, "training.epochs=1", "training.validation_fraction=0.8", "evaluation.ablation=true")
    train, held = pipeline.held_out
    assert pipeline.unjudged == list(LOGS)
    assert not {*train, *held} & set(LOGS)
    assert set(LOGS) <= set(pipeline.candidates["train"].query_ids) <= {*train, *held, *LOGS}
    assert set(pipeline.target.scores("train").run.query_ids) == {*train, *held, *LOGS}
    samples = pipeline.trained.result["samples"]
    positives = sum(grade > 0 for query_id in train for grade in pipeline.qrels("train")[query_id].values())
    assert samples == positives + 3
    assert list(pipeline.experiment.trainings) == ["contrastive", "judged"]
    times = round((positives + 3) / positives)  # so that there are as many steps
    assert train_other(pipeline, "contrastive").result["samples"] == times * positives  # no teacher, so nobody says anything of the others
    judged = train_other(pipeline, "judged")
    assert (judged.result["samples"], judged.result["target"]) == (times * positives, pipeline.target.name)
    said = pipeline.reporter.said
    assert f"train: {len(train) + 3} queries (3 unjudged), {samples} lists of 4 documents" in said
    plain = Pipeline(read_experiment(tmp_path / "tiny.toml", ["training.validation_fraction=0.8"]), tmp_path / "plain", Noted())
    assert (plain.held_out, plain.unjudged) == (pipeline.held_out, [])
    assert (plain.judgements, plain.lessons) == (pipeline.judgements, plain.judgements)  # what teachers learn from has not changed
    assert pipeline.lessons != plain.lessons
    assert pipeline.judged(pipeline.candidates["train"]).fingerprint == plain.candidates["train"].fingerprint


def test_another_text_of_an_unjudged_query_finds_other_candidates(collection: Path, encoder_folder: Path, tmp_path: Path) -> None:
    first = pipeline_of(tmp_path, collection, encoder_folder)
    before = dict(first.candidates["train"]["log2"])
    path = collection / "queries.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("night bird", "hammer and nails"), encoding="utf-8")
    second = pipeline_of(tmp_path, collection, encoder_folder)
    assert dict(second.candidates["train"]["log2"]) != before
    assert any(line.startswith("candidates: again; changed: train") for line in second.reporter.said)


def test_turns_of_a_held_out_conversation_do_not_teach_unjudged_either(tmp_path: Path, encoder_folder: Path) -> None:
    documents = [Document(f"d{number}", f"text number {number}") for number in range(8)]
    talks = [f"c{number}" for number in range(6)]
    queries = [Query(f"{talk}_{turn}", f"text {talk} {turn}", conversation=talk) for talk in talks for turn in ("judged", "unjudged")]
    qrels = {"train": {f"{talk}_judged": {"d1": 1} for talk in talks}, "test": {"test": {"d2": 1}}}
    made: Collection = write_collection(tmp_path / "c", documents, [*queries, Query("test", "a test")], qrels)
    made.to_beir(tmp_path / "beir")
    pipeline = pipeline_of(tmp_path, tmp_path / "beir", encoder_folder, "training.validation_fraction=0.4")
    held = {query_id.removesuffix("_judged") for query_id in pipeline.held_out[1]}
    assert len(held) == 2
    assert pipeline.unjudged == [f"{talk}_unjudged" for talk in talks if talk not in held]


def test_the_check_says_what_becomes_of_queries_without_judgements(collection: Path, encoder_folder: Path, tmp_path: Path) -> None:
    with (collection / "queries.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"_id": "log4", "text": "Mow grass  by hand"}) + "\n")  # what test8 asks
    file = write_experiment(tmp_path, collection, encoder_folder)
    plain, teaching = (command("check", file, "--work", tmp_path / "work", *more).err for more in ([], ["--set", "collection.unjudged=true"]))
    assert "4 queries without judgements are not used; to let them teach by teachers' scores: collection.unjudged = true\n" in plain
    assert "3 queries without judgements teach by teachers' scores alone; 1 do not, their texts are judged or tests would know them again\n" in teaching


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("collection={path='c', train='all', test='all', folds=3, unjudged=true}", "folds cuts judged queries, and unjudged takes others. Leave one of"),
    ],
)
def test_what_has_no_unjudged_queries_is_refused_with_them(other: str, said: str, collection: Path, encoder_folder: Path, tmp_path: Path) -> None:
    file = write_experiment(tmp_path, collection, encoder_folder)
    assert said in command("check", file, "--set", "collection.unjudged=true", "--set", other).error
