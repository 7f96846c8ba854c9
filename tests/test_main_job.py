"""The main job from the command line to the report, on the tiny collection with the tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retriever.config import read_experiment
from retriever.pipeline import Pipeline
from retriever.runs import Run

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = """
name = "tiny"
[collection]
path = "{collection}"
[candidates]
sources = ["bm25", "student"]
depth = 10
[[teacher]]
kind = "lexical"
[[teacher]]
kind = "embedding"
model = "student"
[student]
model = "{model}"
[training]
documents_per_query = 4
epochs = 2
batch_size = 8
learning_rate = 1e-3
precision = "fp32"
losses = {{ kl_divergence = 1.0, contrastive = 0.5 }}
"""


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`retriever` with arguments, run in a folder."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-m", "retriever", *arguments], cwd=folder, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shared_beir_folder: Path, encoder_folder: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder with a finished experiment, and what its command printed."""
    folder = tmp_path_factory.mktemp("main-job")
    (folder / "tiny.toml").write_text(EXPERIMENT.format(collection=shared_beir_folder, model=encoder_folder), encoding="utf-8")
    return folder, command("distill", "tiny.toml", "--json", folder=folder)


def test_distill_prints_the_report_and_nothing_else(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, printed = finished
    assert printed.returncode == 0, printed.stderr
    report = json.loads(printed.stdout)
    assert list(report["runs"]) == ["bm25", "student_before", "hybrid_before", "teacher", "student", "hybrid"]
    assert {"mean", "interval", "queries", "latency_ms", "bytes"} <= set(report["runs"]["student"])
    assert report["runs"]["student"]["queries"] == 10
    assert {"run", "baseline", "measure", "difference", "p_value"} <= set(report["comparisons"][0])
    assert (folder / "work/tiny/evaluate/report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_runs_it_leaves_are_trec_runs_with_the_reported_means(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, printed = finished
    pytrec_eval = pytest.importorskip("pytrec_eval")
    qrels = Pipeline(read_experiment(folder / "tiny.toml"), folder / "work").qrels("test")
    run = Run.read_trec(folder / "work/tiny/evaluate/runs/student.trec")
    per_query = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10"}).evaluate(run.to_dict())
    mean = np.mean([per_query.get(query_id, {}).get("ndcg_cut_10", 0.0) for query_id in qrels])
    assert json.loads(printed.stdout)["runs"]["student"]["mean"]["nDCG@10"] == pytest.approx(mean, abs=1e-9)


def test_a_second_run_repeats_no_step(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, printed = finished
    manifests = {path: path.stat().st_mtime_ns for path in (folder / "work/tiny").glob("*/manifest.json")}
    again = command("distill", "tiny.toml", "--json", folder=folder)
    assert again.stdout == printed.stdout
    assert {path: path.stat().st_mtime_ns for path in (folder / "work/tiny").glob("*/manifest.json")} == manifests
    assert {"candidates", "score", "train", "index", "evaluate"} <= {path.parent.name for path in manifests}


def test_the_saved_student_ranks_the_same_in_stock_sentence_transformers(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    from sentence_transformers import SentenceTransformer

    folder, _ = finished
    pipeline = Pipeline(read_experiment(folder / "tiny.toml"), folder / "work")
    stock = SentenceTransformer(str(folder / "work/tiny/train/student"), local_files_only=True)
    queries = pipeline.queries("test")
    similarity = stock.similarity(
        stock.encode_query([query.text for query in queries.values()]),
        stock.encode_document([document.full_text for document in pipeline.collection.documents()]),
    ).numpy()
    rows, scores = pipeline.index.index.search(pipeline.student.encode_queries(list(queries.values())), 5)
    np.testing.assert_allclose(np.take_along_axis(similarity, rows, axis=1), scores, atol=1e-5)


def test_search_prints_what_the_index_alone_finds(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = finished
    (folder / "work/tiny/index").rename(folder / "moved")
    printed = command("search", "moved", "a rodent that builds dams", "-k", "3", "--json", folder=folder)
    (folder / "moved").rename(folder / "work/tiny/index")
    results = json.loads(printed.stdout)["results"]
    assert [result["rank"] for result in results] == [1, 2, 3]
    assert results[0]["score"] >= results[1]["score"] >= results[2]["score"]


def test_a_train_query_whose_text_is_tested_does_not_teach(beir_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    queries = [json.loads(line) for line in (beir_folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    of_split = {split: (beir_folder / "qrels" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1].split("\t")[0] for split in ("train", "test")}
    texts = {query["_id"]: query["text"] for query in queries}
    changed = [{**query, "text": texts[of_split["test"]].upper()} if query["_id"] == of_split["train"] else query for query in queries]
    (beir_folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in changed), encoding="utf-8")
    (tmp_path / "tiny.toml").write_text(EXPERIMENT.format(collection=beir_folder, model=encoder_folder), encoding="utf-8")
    pipeline = Pipeline(read_experiment(tmp_path / "tiny.toml"), tmp_path / "work")
    assert of_split["train"] not in pipeline.queries("train")
    assert of_split["test"] in pipeline.queries("test")
    assert len(pipeline.queries("train")) == 19


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["distill", "absent.toml"], "absent.toml: cannot be read"),
        (["distill", "tiny.toml", "--set", "trainig.epochs=3"], 'did you mean "training"?'),
        (["distill", "tiny.toml", "--set", "training.documents_per_query=1"], "training.documents_per_query"),
        (["distill", "tiny.toml", "--set", "collection.train=trian"], "trian"),
        (["distill", "tiny.toml", "--set", "collection.path=nowhere"], "nowhere"),
        (["distill", "tiny.toml", "--set", "student.model=no/such-model"], "no/such-model"),
        (["distill", "tiny.toml", "--set", 'teacher=[{kind="lexcal"}]'], "lexical"),
        (["search", "nowhere", "a query"], "no index here"),
        (["search", "work/tiny", " "], "the query is empty"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(finished: tuple[Path, subprocess.CompletedProcess[str]], arguments: list[str], said: str) -> None:
    folder, _ = finished
    done = command(*arguments, folder=folder)
    assert done.returncode == 2
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in done.stderr
