"""A conversational experiment from one end to the other: readings, folds by conversation, other collections, results by turn."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from retriever.config import experiment_from
from retriever.errors import ConfigError, DataError
from retriever.eval.report import read_report
from retriever.evaluate_step import evaluate_experiment
from retriever.folds import parts_of
from retriever.pipeline import Pipeline
from retriever.queries import kept_together
from retriever.runs import read_run
from retriever.search import open_index
from retriever.types import Query


@pytest.fixture
def talks(beir_folder: Path) -> Path:
    """The tiny collection with its queries as second turns: "yes", after the question was asked before."""
    records = [json.loads(line) for line in (beir_folder / "queries.jsonl").read_text().splitlines()]
    (beir_folder / "queries.jsonl").unlink()
    turns = [
        {
            "id": record["_id"],
            "conversation_id": f"c{number // 2}",
            "history": [{"speaker": "user", "text": record["text"]}, {"speaker": "agent", "text": "is it that you ask?"}],
            "utterance": "yes please",
            "rewrite": record["text"],
            "domain": ("animals", "tools")[number % 2],
        }
        for number, record in enumerate(records)
    ]
    (beir_folder / "conversations.jsonl").write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    return beir_folder


def experiment(talks: Path, encoder: Path, **sections: Any) -> Any:
    values: dict[str, Any] = {
        "name": "talks",
        "collection": {"path": talks, "conversation": "user"},
        "candidates": {"depth": 8, "reads": ["last", "rewrite"]},
        "teacher": [{"kind": "lexical", "reads": "rewrite"}],
        "student": {"kind": "dense", "model": str(encoder), "reads": "latest_first"},
        "training": {"documents_per_query": 3, "epochs": 1, "batch_size": 8, "losses": {"kl_divergence": 1.0}},
        "evaluation": {"measures": ["nDCG@10", "RR"], "latency_queries": 2, "by": ["domain"]},
    }
    return experiment_from({**values, **sections})


def test_every_system_reads_the_conversation_as_the_file_says(talks: Path, encoder_folder: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(experiment(talks, encoder_folder), tmp_path)
    query = next(iter(pipeline.conversations("test").values()))
    asked = query.rewrites["human"]
    assert pipeline.queries("test")[query.query_id].text == f"{asked} yes please"
    assert pipeline.queries_of("lexical", "test")[query.query_id].text == asked
    assert pipeline.student_queries("test")[query.query_id].text == f"yes please [SEP] is it that you ask? [SEP] {asked}"
    report = read_report(evaluate_experiment(pipeline).folder)
    names = [run.name for run in report.runs]
    assert names == ["bm25", "student_before", "hybrid_before", "last_turn", "all_turns", "rewrite", "teacher", "student", "hybrid"]
    assert report.clusters is not None
    assert len(set(report.clusters.values())) == 5  # of 10 test queries, two a conversation
    assert {facet.name for facet in report.facets} >= {"domain"}
    # nobody can know what "yes please" asks for: the same documents for every query
    last_turn = read_run(pipeline.folder / "evaluate" / "runs" / "last_turn.trec")
    assert len({tuple(doc_id for doc_id, _ in last_turn[query_id]) for query_id in last_turn}) == 1
    index = open_index(pipeline.folder)
    found = [hit.document.doc_id for hit in index.hits(query, 5)]
    read = [doc_id for doc_id, _ in read_run(pipeline.folder / "evaluate" / "runs" / "student.trec")[query.query_id][:5]]
    assert found == read  # a folder that is opened alone reads conversations as in the experiment


def test_an_index_of_the_start_serves_a_student_whose_queries_alone_learned(talks: Path, encoder_folder: Path, tmp_path: Path) -> None:
    teacher = [{"kind": "embedding", "name": "rewrite", "model": str(encoder_folder), "reads": "rewrite"}]
    student = {"kind": "dense", "model": str(encoder_folder), "reads": "latest_first", "frozen_documents": True}
    evaluation = {"measures": ["nDCG@10"], "latency_queries": 2, "other_losses": {"convdr": {"vector_mse": 1.0}}}
    training = {"documents_per_query": 4, "epochs": 5, "batch_size": 4, "learning_rate": 2e-3, "validation_fraction": 0.3, "precision": "fp32"}
    training["losses"] = {"kl_divergence": 1.0, "contrastive": 1.0}
    sections = {"teacher": teacher, "student": student, "training": training, "evaluation": evaluation}
    pipeline = Pipeline(experiment(talks, encoder_folder, **sections), tmp_path)
    report = read_report(evaluate_experiment(pipeline).folder)
    assert {"convdr", "student"} <= {run.name for run in report.runs}
    assert pipeline.student.identity != pipeline.start.identity
    assert pipeline.student.document_identity == pipeline.start.document_identity
    assert len(list((pipeline.folder / "encodings").glob("*-*"))) == 1  # documents were encoded once for start, students and teacher
    query = next(iter(pipeline.conversations("test").values()))
    own = [(hit.document.doc_id, hit.score) for hit in open_index(pipeline.folder).hits(query, 5)]
    before = open_index(pipeline.folder / "index_before", student=pipeline.folder)
    assert [(hit.document.doc_id, hit.score) for hit in before.hits(query, 5)] == own


def test_folds_keep_conversations_together_and_are_about_equal() -> None:
    queries = {f"q{number}": Query(f"q{number}", "x", conversation=f"c{number % 7}") for number in range(40)} | {"alone": Query("alone", "y")}
    parts = parts_of(kept_together(queries, {}), 3, seed=1)
    assert sorted(query_id for part in parts for query_id in part) == sorted(queries)
    places = {query_id: number for number, part in enumerate(parts) for query_id in part}
    assert all(len({places[query_id] for query_id, query in queries.items() if query.conversation == f"c{number}"}) == 1 for number in range(7))
    assert max(map(len, parts)) - min(map(len, parts)) <= 6
    assert parts_of(kept_together(queries, {}), 3, seed=1) == parts
    with pytest.raises(ConfigError, match=r"^collection\.folds = 9, but there are 8 conversations"):
        parts_of(kept_together(queries, {}), 9, seed=1)


def test_every_query_of_a_split_in_folds_is_scored_by_a_student_that_did_not_see_its_conversation(talks: Path, encoder_folder: Path, tmp_path: Path) -> None:
    collection = {"path": talks, "conversation": "user", "train": "train", "test": "train", "folds": 2}
    pipeline = Pipeline(experiment(talks, encoder_folder, collection=collection), tmp_path)
    report = read_report(evaluate_experiment(pipeline).folder)
    assert report.folds == 2
    student = report.run("student")
    assert student is not None
    assert set(student.evaluation.query_ids) == set(pipeline.qrels("train"))
    tested: list[str] = []
    for number in (1, 2):
        fold = read_report(pipeline.folder / f"fold-{number}" / "evaluate")
        own = fold.run("student")
        assert own is not None
        learned = json.loads((pipeline.folder / "folds" / str(number) / "collection.json").read_text())["counts"]["pairs"]["train"]
        assert learned == sum(len(judged) for query_id, judged in pipeline.qrels("train").items() if query_id not in own.evaluation.query_ids)
        values = dict(zip(student.evaluation.query_ids, student.evaluation.values["RR"], strict=True))
        assert [values[query_id] for query_id in own.evaluation.query_ids] == own.evaluation.values["RR"].tolist()
        tested += own.evaluation.query_ids
    assert sorted(tested) == sorted(pipeline.qrels("train"))
    assert evaluate_experiment(Pipeline(pipeline.experiment, tmp_path)).done_now is False


def test_other_collections_are_measured_without_learning_from_them(talks: Path, encoder_folder: Path, tmp_path: Path) -> None:
    transfer = [{"path": talks, "name": "again", "test": "test"}]
    pipeline = Pipeline(experiment(talks, encoder_folder, transfer=transfer), tmp_path)
    report = read_report(evaluate_experiment(pipeline).folder)
    there = report.transfer[0]
    assert (there.collection, there.split, there.queries, there.clusters) == ("again", "test", 10, 5)
    for name in ("bm25", "student_before", "last_turn", "rewrite", "student"):  # the same collection: the same values
        run = report.run(name)
        assert run is not None
        assert there.means[name]["nDCG@10"] == pytest.approx(run.evaluation.means["nDCG@10"], abs=1e-9)
    assert evaluate_experiment(Pipeline(pipeline.experiment, tmp_path)).done_now is False
    judged = talks / "qrels" / "test.tsv"
    judged.write_text("\n".join(judged.read_text().splitlines()[:-1]) + "\n")
    other = talks.with_name("other")
    shutil.copytree(talks, other)
    moved = experiment(talks, encoder_folder, transfer=[{"path": other, "name": "again", "test": "test"}])
    evaluate_experiment(Pipeline(moved, tmp_path))
    with (other / "qrels" / "test.tsv").open("a") as file:
        file.write(f"{next(iter(pipeline.qrels('test')))}\totter\t0\n")
    assert evaluate_experiment(Pipeline(moved, tmp_path)).done_now is True  # judgements elsewhere have changed, and nothing here
    absent = experiment(talks, encoder_folder, transfer=[{"path": talks, "name": "again", "test": "dev"}])
    with pytest.raises(DataError, match=r'^transfer again: there are no qrels for the split "dev"; splits with qrels: test, train$'):
        evaluate_experiment(Pipeline(absent, tmp_path))


@pytest.mark.parametrize(
    ("collection", "message"),
    [
        ({"train": "dev", "test": "dev"}, r"collection: train and test are the same split, \"dev\".* or set folds = 5"),
        ({"train": "train", "test": "dev", "folds": 5}, r'collection: folds cuts one split, but train is "train" and test "dev"'),
    ],
)
def test_splits_and_folds_that_do_not_go_together_are_refused(collection: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment(tmp_path, tmp_path, collection={"path": tmp_path, **collection})


def test_a_rewrite_that_a_turn_lacks_stops_before_anything_is_scored(talks: Path, encoder_folder: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(experiment(talks, encoder_folder, teacher=[{"kind": "lexical", "reads": "rewrite:t5"}]), tmp_path)
    with pytest.raises(DataError, match=r'^query \w+: has no rewrite by "t5"; its rewrites: human'):
        _ = pipeline.scores
