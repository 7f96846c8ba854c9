"""The whole way in one process: what each step leaves, what is repeated when, and what is mended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import retriever
from retriever import Collection, Document, Query, Run, distill, read_experiment, read_qrels, write_collection
from retriever.bm25 import BM25
from retriever.errors import ConfigError, DataError, StoreError
from retriever.eval.measures import evaluate
from retriever.pipeline import Pipeline
from retriever.settings.evaluation import EvaluationSettings
from retriever.steps.ensemble import keep_pairs
from retriever.steps.systems import fused_depth
from tests.tiny_experiment import RUNS, STEPS, Noted, manifest_times, write_experiment

pytestmark = pytest.mark.usefixtures("blank_figures")  # but for the finished experiment, which is made before


@pytest.fixture
def copied(finished_experiment: Path, tmp_path: Path) -> Path:
    """The finished experiment, to be changed or harmed."""
    return shutil.copytree(finished_experiment, tmp_path / "copy")


def again(folder: Path, *overrides: str) -> tuple[Noted, dict[str, int], dict[str, int]]:
    """Distils once more: what was told, and the manifests' times before and after."""
    before, noted = manifest_times(folder / "work" / "tiny"), Noted()
    distill(folder / "tiny.toml", folder / "work", overrides, noted)
    return noted, before, manifest_times(folder / "work" / "tiny")


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "work" / "tiny" / "score").rglob("*.parquet")}


def test_every_step_leaves_its_folder_and_no_half_done_one(finished_experiment: Path) -> None:
    work = finished_experiment / "work" / "tiny"
    assert set(manifest_times(work)) == set(STEPS)
    assert [path for path in work.rglob("*") if path.name.endswith((".partial", ".tmp", ".old", ".new"))] == []
    assert {path.name for path in (work / "train").iterdir()} == {"manifest.json", "curve.json", "student"}
    assert (work / "train" / "student" / "README.md").read_text(encoding="utf-8").startswith("---")


def test_the_report_has_the_agreed_shape(finished_experiment: Path) -> None:
    report = json.loads((finished_experiment / "work" / "tiny" / "evaluate" / "report.json").read_text(encoding="utf-8"))
    assert list(report["runs"]) == RUNS
    for name, run in report["runs"].items():
        assert set(run["mean"]) == {"nDCG@10", "AP"}
        for measure, mean in run["mean"].items():
            low, high = run["interval"][measure]
            assert 0 <= low <= mean <= high <= 1
        assert run["queries"] == 10
        assert 0 < run["latency_ms"]["p50"] <= run["latency_ms"]["p99"]
        assert run["bytes"] is None if name == "teacher" else run["bytes"] > 0
    asked = {(one["run"], one["baseline"]) for one in report["comparisons"]}
    assert {("student", "student_before"), ("student", "bm25"), ("hybrid", "hybrid_before")} <= asked
    for one in report["comparisons"]:
        difference = report["runs"][one["run"]]["mean"][one["measure"]] - report["runs"][one["baseline"]]["mean"][one["measure"]]
        assert one["difference"] == pytest.approx(difference, abs=1e-9)
        assert 0 <= one["p_value"] <= 1
    assert report["settings"]["training"]["documents_per_query"] == 4
    assert "torch" in report["versions"]


def test_the_reported_means_are_those_of_the_runs_on_disk(finished_experiment: Path, shared_beir_folder: Path) -> None:
    folder = finished_experiment / "work" / "tiny" / "evaluate"
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    qrels = read_qrels(shared_beir_folder / "qrels" / "test.tsv")
    for name in RUNS:
        means = evaluate(Run.read_trec(folder / "runs" / f"{name}.trec"), qrels, ["nDCG@10", "AP"]).means
        assert report["runs"][name]["mean"] == pytest.approx(means, abs=1e-9)


def test_a_fusion_is_as_deep_as_the_measures_count_and_as_the_candidates_at_least(finished_experiment: Path) -> None:
    def depth(candidates: int, kept: int, *measures: str) -> int:
        return fused_depth(candidates, EvaluationSettings(measures=measures, depth=kept))

    assert [depth(20, 1000, *measures) for measures in (("nDCG@10", "R@100"), ("RR@10",), ("RR@10", "AP"))] == [100, 20, 1000]
    assert depth(20, 50, "R@100") == depth(70, 50, "nDCG@10") == 50
    runs = finished_experiment / "work" / "tiny" / "evaluate" / "runs"
    for name in ("student", "hybrid"):  # ten candidates, but AP counts all of the 60 documents
        assert set(Run.read_trec(runs / f"{name}.trec").counts.tolist()) == {60}


def test_nothing_is_repeated_when_nothing_changed(finished_experiment: Path) -> None:
    noted, before, after = again(finished_experiment)
    assert after == before
    assert noted.done == set()


def test_other_epochs_repeat_training_index_and_report_alone(copied: Path) -> None:
    scores = shards(copied)
    noted, before, after = again(copied, "training.epochs=4")
    assert {step for step in STEPS if after[step] != before[step]} == {"train", "index", "evaluate"} == noted.done
    assert "train: again; changed: epochs 2 -> 4" in noted.said
    assert shards(copied) == scores


def test_another_student_scores_no_pair_again(copied: Path) -> None:
    scores = shards(copied)
    noted, _, _ = again(copied, "student.max_length=12", 'candidates.sources=["bm25"]')
    assert {"start", "index_before", "train", "index", "evaluate"} <= noted.done
    assert {name: content for name, content in shards(copied).items() if name in scores} == scores
    lexical = next(
        path for path in (copied / "work" / "tiny" / "score" / "scores").iterdir() if json.loads((path / "teacher.json").read_text())["kind"] == "lexical"
    )
    assert json.loads((lexical / "teacher.json").read_text())["statistics"]["pairs"] == sum(1 for _ in stored_pairs(lexical))
    assert len(set(stored_pairs(lexical))) == sum(1 for _ in stored_pairs(lexical))


def stored_pairs(teacher: Path) -> list[tuple[int, int]]:
    import pyarrow.parquet as pq

    tables = [pq.read_table(path, columns=["query_variant", "doc_variant"]) for path in sorted(teacher.glob("*.parquet"))]
    return [(row["query_variant"], row["doc_variant"]) for table in tables for row in table.to_pylist()]


def test_other_measures_repeat_what_depends_on_them(copied: Path) -> None:
    noted, _, _ = again(copied, "evaluation.latency_queries=2")
    assert noted.done == {"evaluate"}
    assert (copied / "work" / "tiny" / "train" / "student" / "README.md").exists()


def test_a_report_of_another_training_is_written_even_when_the_student_comes_out_the_same(copied: Path) -> None:
    """With a learning rate of almost nothing the untrained checkpoint stays the best, whatever the epochs."""
    again(copied, "training.learning_rate=1e-30", "training.epochs=1")
    noted, _, _ = again(copied, "training.learning_rate=1e-30", "training.epochs=2")
    assert noted.done == {"train", "evaluate"}
    report = json.loads((copied / "work" / "tiny" / "evaluate" / "report.json").read_text(encoding="utf-8"))
    assert report["settings"]["training"]["epochs"] == 2
    assert (copied / "work" / "tiny" / "train" / "student" / "README.md").exists()


def test_the_ablation_adds_a_run_that_had_no_teacher(copied: Path) -> None:
    noted, _, _ = again(copied, "evaluation.ablation=true", "training.epochs=1")
    assert {"train_contrastive", "index_contrastive"} <= noted.done
    report = json.loads((copied / "work" / "tiny" / "evaluate" / "report.json").read_text(encoding="utf-8"))
    assert list(report["runs"]) == [*RUNS[:4], "contrastive", *RUNS[4:]]
    assert ("student", "contrastive") in {(one["run"], one["baseline"]) for one in report["comparisons"]}


def test_the_run_that_had_no_teacher_is_not_made_again_for_another_one(copied: Path) -> None:
    """Neither its negatives nor which of them are left out are a teacher's choice."""
    settings = ("evaluation.ablation=true", "training.epochs=1", "training.false_negatives=relative")
    again(copied, *settings, "ensemble.select=all")
    noted, _, _ = again(copied, *settings, "ensemble.select=lexical")
    assert "train" in noted.done
    assert "train_contrastive" not in noted.done
    told = json.loads((copied / "work" / "tiny" / "train_contrastive" / "manifest.json").read_text(encoding="utf-8"))
    assert told["result"]["target"] == "candidates"
    assert "reason" not in told["result"]


def test_other_judgements_of_train_queries_repeat_the_training(tmp_path: Path, beir_folder: Path, encoder_folder: Path) -> None:
    path = write_experiment(tmp_path, beir_folder, encoder_folder)
    trained = Pipeline(read_experiment(path), tmp_path / "work").trained
    qrels = beir_folder / "qrels" / "train.tsv"
    with qrels.open("a", encoding="utf-8") as stream:
        stream.write("train1\totter\t0\n")  # judged, and so no false negative any more
    again = Pipeline(read_experiment(path), tmp_path / "work").trained
    assert again.done_now
    assert again.key != trained.key


def test_a_teacher_is_taught_once_on_the_train_queries_that_are_not_held_out(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    taught = 'kind = "cross_encoder"\nmodel = "student"\ntrain = { epochs = 1, batch_size = 12 }'.replace("student", str(encoder_folder))
    path = write_experiment(tmp_path, shared_beir_folder, encoder_folder, {'kind = "embedding"\nmodel = "student"': taught})
    noted = Noted()
    pipeline = Pipeline(read_experiment(path), tmp_path / "work", noted)
    assert list(pipeline.teachers) == ["lexical", "cross_encoder-tiny-encoder"]
    assert noted.done == {"candidates", "teach-cross_encoder-tiny-encoder"}
    folder = tmp_path / "work" / "tiny" / "teach-cross_encoder-tiny-encoder"
    assert {entry.name for entry in folder.iterdir()} == {"manifest.json", "model"}
    positives = sum(grade > 0 for query_id in pipeline.held_out[0] for grade in pipeline.qrels("train")[query_id].values())
    assert noted.bars["teaching cross_encoder-tiny-encoder"] == (-(-positives // 2),) * 2  # lists of 6 texts, 12 texts a batch
    identity = pipeline.teachers["cross_encoder-tiny-encoder"].identity
    again = Pipeline(read_experiment(path), tmp_path / "work", noted := Noted())
    assert again.teachers["cross_encoder-tiny-encoder"].identity == identity
    assert noted.done == set()


def test_a_bi_encoder_is_taught_before_it_teaches(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    taught = 'kind = "embedding"\nmodel = "student"\ntrain = { epochs = 2, batch_size = 8, learning_rate = 2e-2, max_length = 64 }'
    path = write_experiment(tmp_path, shared_beir_folder, encoder_folder, {'kind = "embedding"\nmodel = "student"': taught})
    noted = Noted()
    pipeline = Pipeline(read_experiment(path), tmp_path / "work", noted)
    teacher = pipeline.teachers["embedding-student"]
    assert noted.done == {"candidates", "teach-embedding-student"}
    assert {entry.name for entry in (tmp_path / "work" / "tiny" / "teach-embedding-student").iterdir()} == {"manifest.json", "model", "curve.json"}
    assert teacher.identity.model != pipeline.start.identity  # other weights than those that it started from
    quality = pipeline.target.held_out
    pipeline = Pipeline(read_experiment(path, ['teacher.1={kind="embedding", model="student"}']), tmp_path / "untaught")
    assert quality["embedding-student"] > pipeline.target.held_out["embedding-student"]
    again = Pipeline(read_experiment(path), tmp_path / "work", noted := Noted())
    assert again.teachers["embedding-student"].identity == teacher.identity
    assert noted.done == set()


def test_a_bi_encoder_may_be_taught_in_its_upper_layers_alone(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    taught = 'kind = "embedding"\nmodel = "student"\ntrain = { epochs = 1, batch_size = 8, learning_rate = 2e-2, max_length = 64, frozen_layers = 1 }'
    path = write_experiment(tmp_path, shared_beir_folder, encoder_folder, {'kind = "embedding"\nmodel = "student"': taught})
    pipeline = Pipeline(read_experiment(path), tmp_path / "work", Noted())
    assert pipeline.teachers["embedding-student"].identity.model != pipeline.start.identity
    start, after = (
        SentenceTransformer(str(folder), device="cpu")[0].auto_model for folder in (encoder_folder, pipeline.folder / "teach-embedding-student" / "model")
    )
    layers = [[torch.equal(one, other) for one, other in zip(*pair, strict=True)] for pair in zip(*map(weights_of_layers, (start, after)), strict=True)]
    assert all(layers[0])  # embeddings and the lower layer: not a bit changed
    assert not any(layers[1])


def weights_of_layers(model: Any) -> list[list[torch.Tensor]]:
    """Of a BERT of two layers: all below the second, and the second's matrices."""
    upper = [weight for weight in model.encoder.layer[1].parameters() if weight.ndim > 1]
    return [[*model.embeddings.parameters(), *model.encoder.layer[0].parameters()], upper]


def test_what_a_teacher_wants_known_is_told_once_and_only_where_it_scores(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    path = write_experiment(tmp_path, shared_beir_folder, encoder_folder)
    for told in (1, 0):
        pipeline = Pipeline(read_experiment(path), tmp_path / "work", noted := Noted())
        vars(pipeline.teachers["lexical"])["notes"] = ["rounding costs a little"]
        _ = pipeline.scores
        assert noted.said.count("rounding costs a little") == told


# Damage


def test_a_truncated_shard_is_named_and_redone_with_the_same_bytes(copied: Path) -> None:
    scores = shards(copied)
    path = sorted((copied / "work" / "tiny" / "score").rglob("*.parquet"))[0]
    path.write_bytes(path.read_bytes()[:100])
    noted, _, _ = again(copied)
    assert [line for line in noted.said if str(path) in line and "renamed to *.damaged" in line]
    assert shards(copied) == scores
    assert path.with_name(f"{path.name}.damaged").exists() or list(path.parent.glob("*.damaged"))
    assert noted.done == set()


def test_a_removed_shard_is_redone(copied: Path) -> None:
    scores = shards(copied)
    next(iter((copied / "work" / "tiny" / "score").rglob("*.parquet"))).unlink()
    again(copied)
    assert shards(copied) == scores


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("candidates/train.parquet", "candidates"),
        ("index/segments/000001/index.faiss", "index"),
        ("index/index.json", "index"),
        ("train/student/model.safetensors", "train"),
    ],
)
def test_a_damaged_file_of_a_finished_step_is_made_again(copied: Path, name: str, step: str) -> None:
    path = copied / "work" / "tiny" / name
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:50])  # a new file: a hard link would harm others
    noted, _, _ = again(copied)
    assert [line for line in noted.said if line.startswith(f"{step}: again; damaged: ")]
    assert step in noted.done
    made = copied / "work" / "tiny" / name.replace("000001", "000002")  # an index that is built again is a new version
    assert made.stat().st_size == len(whole)


def test_a_prepared_collection_that_is_damaged_is_prepared_again(copied: Path) -> None:
    path = copied / "work" / "tiny" / "collection" / "documents.arrow"
    path.unlink()
    path.write_bytes(b"")
    noted, _, _ = again(copied)
    assert noted.done == set()
    assert len(Collection(path.parent)) == 60


def test_scores_of_another_collection_are_refused_and_kept(copied: Path, beir_folder: Path) -> None:
    scores, candidates = shards(copied), (copied / "work" / "tiny" / "candidates" / "train.parquet").read_bytes()
    corpus = beir_folder / "corpus.jsonl"
    corpus.write_text(corpus.read_text(encoding="utf-8").replace("river", "brook"), encoding="utf-8")
    with pytest.raises(StoreError, match="the scores belong to the collection"):
        distill(copied / "tiny.toml", copied / "work", [f"collection.path={beir_folder}"])
    assert shards(copied) == scores
    assert (copied / "work" / "tiny" / "candidates" / "train.parquet").read_bytes() == candidates


# What the pipeline gives to its steps


@pytest.fixture(scope="module")
def pipeline(finished_experiment: Path) -> Pipeline:
    return Pipeline(read_experiment(finished_experiment / "tiny.toml"), finished_experiment / "work")


def test_the_bm25_index_is_made_once_and_anew_where_it_is_damaged(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened() -> BM25:
        return Pipeline(read_experiment(copied / "tiny.toml"), copied / "work").bm25

    with monkeypatch.context() as patch:
        patch.setattr("retriever.steps.bm25.build_bm25", lambda *given, **named: pytest.fail("it is there already"))
        first = opened().scores("owl")
    (copied / "work" / "tiny" / "bm25" / "data.csc.index.npy").write_bytes(b"")
    assert opened().scores("owl").tolist() == first.tolist()
    assert opened().scores("owl").tolist() == first.tolist()


def test_positives_are_added_for_train_queries_only(pipeline: Pipeline) -> None:
    train, test = pipeline.qrels("train"), pipeline.qrels("test")
    for query_id, grades in train.items():
        assert {doc_id for doc_id, grade in grades.items() if grade > 0} <= dict(pipeline.pairs("train")[query_id]).keys()
    assert pipeline.pairs("test") is pipeline.candidates["test"]
    assert any(doc_id not in dict(pipeline.pairs("test")[query_id]) for query_id, grades in test.items() for doc_id in grades)
    assert max(pipeline.candidates["train"].counts) <= 20  # two sources of ten


def test_held_out_queries_are_train_queries_and_never_teach(pipeline: Pipeline) -> None:
    train, held = pipeline.held_out
    assert sorted([*train, *held]) == sorted(pipeline.queries("train"))
    assert len(held) == 6  # 0.3 of 20
    assert not {*train, *held} & set(pipeline.queries("test"))


def test_the_target_is_what_ranks_held_out_queries_best(pipeline: Pipeline) -> None:
    name, quality = pipeline.target.name, pipeline.target.held_out
    assert set(quality) == {"lexical", "embedding-student", "ensemble"}
    assert quality[name] == max(quality.values())
    assert pipeline.target.run("test").to_dict() == pipeline.target.runs("test")[name].to_dict()


@pytest.mark.parametrize(("select", "expected"), [("all", "ensemble"), ("lexical", "lexical"), ("embedding-student", "embedding-student")])
def test_another_target_can_be_asked_for(finished_experiment: Path, select: str, expected: str) -> None:
    experiment = read_experiment(finished_experiment / "tiny.toml", [f"ensemble.select={select}"])
    assert Pipeline(experiment, finished_experiment / "work").target.name == expected


def test_pairs_are_kept_where_the_other_run_has_them() -> None:
    run = Run.from_dict("r", {"q1": {"a": 3.0, "b": 2.0, "c": 1.0}, "q2": {"a": 1.0}})
    assert keep_pairs(run, Run.from_dict("w", {"q1": {"c": 9.0, "a": 1.0}})).to_dict() == {"q1": {"a": 3.0, "c": 1.0}, "q2": {}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({'kind = "lexical"': 'kind = "mine.lexical"'}, 'teacher mine.lexical: no module named "mine.lexical" can be imported'),
        ({'"nDCG@10"': '"nDGC@10"'}, 'evaluation.measures: "nDGC@10" is not a measure. Did you mean nDCG@10?'),
        ({'"AP"': '"nDCG@10"'}, "evaluation.measures: one stands twice in nDCG@10, nDCG@10. Take it out"),
    ],
)
def test_names_that_lead_nowhere_are_refused_before_anything_is_written(
    tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path, changes: Mapping[str, str], said: str
) -> None:
    experiment = read_experiment(write_experiment(tmp_path, shared_beir_folder, encoder_folder, changes))
    with pytest.raises(ConfigError) as caught:
        Pipeline(experiment, tmp_path / "work")
    assert str(caught.value).startswith(said)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_queries_is_refused(tmp_path: Path, beir_folder: Path, encoder_folder: Path, split: str) -> None:
    (beir_folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n")
    experiment = read_experiment(write_experiment(tmp_path, beir_folder, encoder_folder))
    with pytest.raises(DataError, match=f'^animals_and_tools: no {split} queries: the qrels of the split "{split}" hold none'):
        Pipeline(experiment, tmp_path / "work").candidates  # noqa: B018


# From Python


def python_values(folder: Path) -> tuple[list[Document], dict[str, Query], dict[str, dict[str, dict[str, int]]]]:
    records = {name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()] for name in ("corpus", "queries")}
    documents = [Document(record["_id"], record["text"], record["title"]) for record in records["corpus"]]
    queries = {record["_id"]: Query(record["_id"], record["text"]) for record in records["queries"]}
    return documents, queries, {split: read_qrels(folder / "qrels" / f"{split}.tsv") for split in ("train", "test")}


def test_a_notebook_goes_from_python_values_to_hits(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    documents, queries, qrels = python_values(shared_beir_folder)
    collection = write_collection(tmp_path / "animals", documents, queries, qrels)
    done = distill(
        {
            "name": "notebook",
            "collection": {"path": collection.folder},
            "teacher": [{"kind": "lexical"}],
            "candidates": {"depth": 10},
            "student": {"model": str(encoder_folder)},
            "training": {"documents_per_query": 4, "epochs": 1, "precision": "fp32"},
            "evaluation": {"latency_queries": 2},
        },
        work=tmp_path / "work",
    )
    assert [run.name for run in done.report.runs] == RUNS
    assert [hit.rank for hit in done.index.hits("a rodent that builds dams", k=3)] == [1, 2, 3]
    assert done.report_path.is_file()
    assert (done.student / "modules.json").is_file()
    assert repr(done).startswith(f"Distilled({tmp_path / 'work' / 'notebook'}; nDCG@10: bm25 0.")
    assert capfd.readouterr() == ("", "")  # no bar of any library
    assert not (tmp_path / "work" / "notebook" / "collection").exists()  # it is opened where it lies


def test_the_public_names_are_what_they_say() -> None:
    for name in retriever.__all__:
        assert getattr(retriever, name).__name__ == name
    assert {"Collection", "Run", "distill"} <= set(dir(retriever))
    with pytest.raises(AttributeError, match="has no attribute 'distil'"):
        retriever.distil  # noqa: B018


def test_two_trainings_of_the_same_experiment_give_the_same_student(finished_experiment: Path, copied: Path) -> None:
    from safetensors.numpy import load_file

    shutil.rmtree(copied / "work" / "tiny" / "train")
    again(copied)
    ours, theirs = (load_file(folder / "work" / "tiny" / "train" / "student" / "model.safetensors") for folder in (finished_experiment, copied))
    assert ours.keys() == theirs.keys()
    for name, weights in ours.items():
        np.testing.assert_array_equal(weights, theirs[name])


def test_progress_is_told_in_order(copied: Path) -> None:
    shutil.rmtree(copied / "work")
    noted: Any = Noted()
    distill(copied / "tiny.toml", copied / "work", reporter=noted)
    steps = [line.partition(":")[0] for line in noted.said if ": done, " in line]
    assert steps == ["candidates", "score", "ensemble", "train", "start", "index_before", "index", "evaluate"]


def test_the_saved_student_ranks_the_same_in_stock_sentence_transformers(finished_experiment: Path) -> None:
    from sentence_transformers import SentenceTransformer

    pipeline = Pipeline(read_experiment(finished_experiment / "tiny.toml"), finished_experiment / "work")
    stock = SentenceTransformer(str(finished_experiment / "work/tiny/train/student"), local_files_only=True)
    queries, documents = pipeline.queries("test"), list(pipeline.collection.documents())
    asked = stock.encode_query([query.text for query in queries.values()])
    similarity = stock.similarity(asked, stock.encode_document([document.full_text for document in documents])).numpy()
    rows, scores = pipeline.index.snapshot.search(pipeline.student.encode_queries(list(queries.values())), len(documents))
    np.testing.assert_allclose(np.take_along_axis(similarity, rows, axis=1), scores, atol=1e-5)


def test_a_train_query_whose_text_is_tested_does_not_teach(beir_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    train, test = (next(iter(read_qrels(beir_folder / "qrels" / f"{split}.tsv"))) for split in ("train", "test"))
    lines = [json.loads(line) for line in (beir_folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = {line["_id"]: line["text"] for line in lines}
    changed = [{**line, "text": texts[test].upper()} if line["_id"] == train else line for line in lines]
    (beir_folder / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed), encoding="utf-8")
    pipeline = Pipeline(read_experiment(write_experiment(tmp_path, beir_folder, encoder_folder)), tmp_path / "work")
    assert train not in pipeline.queries("train")
    assert len(pipeline.queries("train")) == 19
    assert len(pipeline.queries("test")) == 10
