"""Search in stages: retrievers fused, re-rankers over ever fewer documents, each scored exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retriever.bm25 import build_bm25
from retriever.collection import Collection, open_collection
from retriever.config import read_experiment
from retriever.errors import ConfigError
from retriever.index.changes import add, delete
from retriever.pipeline import Pipeline
from retriever.runs import Run
from retriever.search import open_index
from retriever.settings.collection import CollectionSettings
from retriever.stages import ByFunction, Indexed, Lexical, Part, Stage, StagedSearch, Standing, fused, search, standings, union
from retriever.steps.stages import fit_weights, stages_of
from retriever.types import Document, Query
from tests.tiny_experiment import command, write_experiment

QUERIES = {"q1": Query("q1", "a rodent that builds dams"), "q2": Query("q2", "a tool that cuts wood")}


class Fixed:
    """A retriever with the scores of a table."""

    def __init__(self, name: str, scores: dict[str, dict[str, float]]) -> None:
        self.name, self.bytes, self.scores = name, 10, scores

    def search(self, queries: dict[str, Query], k: int) -> Run:
        return Run.from_dict(self.name, {query_id: self.scores[query_id] for query_id in queries}).top(k)

    def score(self, queries: dict[str, Query], run: Run) -> Any:
        return np.array([self.scores[query_id].get(doc_id, np.nan) for query_id in run for doc_id, _ in run[query_id]], dtype=np.float32)


ONE = Fixed("one", {"q1": {"a": 9.0, "b": 5.0, "c": 1.0}, "q2": {"a": 1.0, "b": 2.0, "c": 3.0}})
OTHER = Fixed("other", {"q1": {"a": 0.0, "b": 2.0, "c": 4.0}, "q2": {"a": 8.0, "b": 8.0, "c": 2.0}})


def test_a_fused_stage_scores_the_union_by_all_of_its_retrievers() -> None:
    stage = Stage((ONE, OTHER), 1, "z_score")
    run = stage.retrieve(QUERIES)
    pairs = union([ONE.search(QUERIES, 1), OTHER.search(QUERIES, 1)])
    assert pairs.to_dict() == {"q1": {"a": 0.0, "c": 0.0}, "q2": {"b": 0.0, "c": 0.0}}
    # of two documents the z-scores are 1 and -1; one and the other disagree on which is best, so that all come to 0
    assert run.n_pairs == 2
    assert run.scores.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_weights_decide_between_rankers_that_disagree() -> None:
    pairs = ONE.search(QUERIES, 3)
    for weights, first in (((0.9, 0.1), "a"), ((0.1, 0.9), "c")):
        run = Stage((ONE, OTHER), 3, "weighted", weights).rerank(QUERIES, pairs)
        assert run["q1"][0][0] == first
    scores = np.array([[3.0, 1.0], [1.0, 3.0]], dtype=np.float32)
    assert fused("weighted", scores, np.array([0, 2]), (0.75, 0.25)).tolist() == pytest.approx([0.5, -0.5])
    assert fused("reciprocal_rank", scores, np.array([0, 2])).tolist() == pytest.approx([(1 / 61 + 1 / 62) / 2] * 2)


def test_a_later_stage_reorders_and_cuts_what_the_one_before_kept() -> None:
    run = search([Stage((ONE,), 2), Stage((OTHER,), 1)], QUERIES)
    assert run.to_dict() == {"q1": {"b": 2.0}, "q2": {"b": 8.0}}


def test_documents_that_a_ranker_does_not_have_are_left_out() -> None:
    half = Fixed("half", {"q1": {"a": 1.0}, "q2": {}})
    run = Stage((half,), 5).rerank(QUERIES, ONE.search(QUERIES, 3))
    assert run.to_dict() == {"q1": {"a": 1.0}, "q2": {}}


def test_a_document_is_followed_through_the_stages_to_where_it_falls_out() -> None:
    half = Fixed("half", {"q1": {"a": 1.0}, "q2": {}})
    stages = [Stage((ONE, OTHER), 2, "reciprocal_rank"), Stage((half,), 1)]
    a, b, c, absent = (standings(stages, QUERIES["q1"], doc_id) for doc_id in "abcd")
    first, second = (stage.name for stage in stages)
    # ranks 1 and 3 are worth more than 2 and 2; of equal ones, c stands before a
    worth = pytest.approx((1 / 61 + 1 / 63) / 2)
    assert a == (Standing(first, 3, 2, worth, True, (Part("one", 9.0), Part("other", 0.0))), Standing(second, 1, 1, 1.0, True, (Part("half", 1.0),)))
    assert b == (Standing(first, 3, 3, pytest.approx(1 / 62), False, (Part("one", 5.0), Part("other", 2.0))), Standing(second, 1, None, None, False, ()))
    assert c == (Standing(first, 3, 1, worth, True, (Part("one", 1.0), Part("other", 4.0))), Standing(second, 1, None, None, False, (Part("half", None),)))
    assert absent == (Standing(first, 3, None, None, False, ()), Standing(second, 1, None, None, False, ()))


def test_a_stage_that_scores_whole_lists_is_asked_for_the_whole_list() -> None:
    stages = [Stage((ONE,), 3), Stage((ByFunction("places", lambda queries, run: np.arange(run.n_pairs, dtype=np.float32)),), 1)]
    assert standings(stages, QUERIES["q1"], "c") == (
        Standing("one, best 3", 3, 3, 1.0, True, (Part("one", 1.0),)),
        Standing("places, best 1", 3, 1, 2.0, True, (Part("places", 2.0),)),
    )
    assert [one.rank for one in standings([Stage((ONE,), 2)], QUERIES["q1"], "c")] == [None]  # it was not found


def test_weights_are_fitted_where_they_are_clearly_worth_it() -> None:
    rng = np.random.default_rng(1)
    queries = {f"q{number}": Query(f"q{number}", "x") for number in range(60)}
    documents = [f"d{number}" for number in range(10)]
    qrels = {query_id: {documents[rng.integers(10)]: 1} for query_id in queries}
    good = {query_id: {doc_id: qrels[query_id].get(doc_id, 0) + rng.normal(0, 0.3) for doc_id in documents} for query_id in queries}
    noise = {query_id: {doc_id: rng.normal() for doc_id in documents} for query_id in queries}
    stage = Stage((Fixed("good", good), Fixed("noise", noise)), 10, "weighted")
    found = fit_weights(stage, queries, Run.from_dict("all", good), qrels, "nDCG@10")
    assert found["used"]
    assert found["weights"][0] >= 0.8
    assert found["fitted_out_of_fold"] > found["equal_weights"]
    same = fit_weights(Stage((Fixed("good", good), Fixed("good2", good)), 10, "weighted"), queries, Run.from_dict("all", good), qrels, "nDCG@10")
    assert (same["used"], same["weights"]) == (False, [0.5, 0.5])


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, shared_beir_folder: Path) -> Collection:
    return open_collection(CollectionSettings(path=shared_beir_folder), tmp_path_factory.mktemp("stages") / "c")


def test_rankers_score_the_pairs_as_they_rank_them(finished_experiment: Path, collection: Collection) -> None:
    index = Indexed(open_index(finished_experiment / "work" / "tiny"), collection, "student")
    lexical = Lexical(build_bm25(document.full_text for document in collection.documents()), collection)
    for ranker in (index, lexical):
        run = ranker.search(QUERIES, 7)
        assert ranker.score(QUERIES, run).tolist() == pytest.approx(run.scores.tolist(), abs=1e-5)
        assert ranker.bytes
        absent = Run.from_dict("absent", {"q1": {"nowhere": 1.0}})
        assert np.isnan(ranker.score(QUERIES, absent)).all()


def test_an_index_that_was_changed_scores_what_it_has_now(finished_experiment: Path, tmp_path: Path, collection: Collection) -> None:
    folder = shutil.copytree(finished_experiment / "work" / "tiny" / "index", tmp_path / "index")
    index = Indexed(open_index(folder), collection, "student")
    before = index.search(QUERIES, 60)
    (gone, _), (changed, score) = before["q1"][:2]
    delete(folder, [gone])
    add(folder, [("d", Document(changed, "nothing of that kind"))])
    run = index.search(QUERIES, 60)
    assert index.score(QUERIES, run).tolist() == pytest.approx(run.scores.tolist(), abs=1e-5)
    assert np.isnan(index.score(QUERIES, before)).sum() == 2
    assert dict(run["q1"])[changed] != score


def test_what_was_added_to_an_index_alone_is_not_found_in_stages(finished_experiment: Path, tmp_path: Path, collection: Collection) -> None:
    folder = shutil.copytree(finished_experiment / "work" / "tiny" / "index", tmp_path / "index")
    add(folder, [("d", Document("new", "a rodent that builds dams"))])
    index = open_index(folder)
    assert index.hits(QUERIES["q1"], 1)[0].document.doc_id == "new"
    hits = StagedSearch((Stage((Indexed(index, collection, "student"),), 5),), collection).hits(QUERIES["q1"], 3)
    assert [hit.document.doc_id for hit in hits] == [hit.document.doc_id for hit in index.hits(QUERIES["q1"], 4)[1:]]


STAGES = """
[[stage]]
by = ["bm25", "student"]
keep = 20

[[stage]]
by = ["teacher"]
keep = 5
"""


def test_the_report_shows_what_each_stage_costs_and_gains(finished_experiment: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished_experiment, tmp_path / "copy")
    file = copy / "tiny.toml"
    file.write_text(file.read_text() + STAGES)
    said = command("distill", file, "--work", copy / "work", "--json")
    assert said.status == 0, said.err
    report = json.loads((copy / "work" / "tiny" / "evaluate" / "report.json").read_text())
    runs = report["runs"]
    assert {"stage_1", "stage_2"} <= runs.keys()
    assert runs["stage_2"]["description"] == "bm25 + student, best 20; then teacher, best 5"
    asked = {(one["run"], one["baseline"]) for one in report["comparisons"]}
    assert {("stage_2", "stage_1"), ("stage_2", "student")} <= asked
    written = Run.read_trec(copy / "work" / "tiny" / "evaluate" / "runs" / "stage_2.trec")
    assert written.counts.max() == 5
    pipeline = Pipeline(read_experiment(file), copy / "work")
    hits = json.loads(command("search", file, "a rodent that builds dams", "--work", copy / "work", "--json").out)["results"]
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5]
    assert "stages take no --filter" in command("search", file, "x", "--work", copy / "work", "--filter", "a=b").error
    stages = stages_of(pipeline)
    run = search(stages, pipeline.queries("test"))
    assert {query_id: [doc_id for doc_id, _ in run[query_id]] for query_id in run} == {
        query_id: [doc_id for doc_id, _ in written[query_id]] for query_id in written
    }
    assert sum(stages[0].weights or ()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ('[[stage]]\nby = ["teacher"]\nkeep = 5', 'stage.0.by: "teacher" retrieves nothing, it scores what is found. Put it into a later stage'),
        ('[[stage]]\nby = ["bm25"]\nkeep = 5\n[[stage]]\nby = ["student"]\nkeep = 6', "stage.1.keep: 6 are more than the 5 that the stage before hands on"),
        ('[[stage]]\nby = ["bm25", "bm25"]\nkeep = 5', "stage.0.by: one stands twice in bm25, bm25. Take it out"),
        ("[[stage]]\nby = []\nkeep = 5", "stage.0.by: must hold one at least"),
    ],
)
def test_stages_that_cannot_follow_each_other_are_refused(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path, stages: str, said: str) -> None:
    file = write_experiment(tmp_path, shared_beir_folder, encoder_folder)
    file.write_text(file.read_text() + stages)
    with pytest.raises(ConfigError) as caught:
        read_experiment(file)
    assert said in str(caught.value)


def test_a_folder_that_is_no_experiment_is_refused(finished_experiment: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text((finished_experiment / "tiny.toml").read_text() + '\n[[stage]]\nby = ["absent"]\nkeep = 5\n')
    pipeline = Pipeline(read_experiment(file), finished_experiment / "work")
    with pytest.raises(ConfigError, match=r"stage\.0\.by: \".*absent\" is neither bm25, student or teacher nor the folder of a finished experiment"):
        stages_of(pipeline)


def test_students_of_two_folders_of_one_name_are_told_apart(finished_experiment: Path, tmp_path: Path) -> None:
    other = shutil.copytree(finished_experiment / "work" / "tiny", tmp_path / "tiny")
    own = finished_experiment / "work" / "tiny"
    file = tmp_path / "tiny.toml"
    file.write_text(
        (finished_experiment / "tiny.toml").read_text() + f'\n[[stage]]\nby = ["{own}", "{other}", "student"]\nkeep = 5\nfusion = "reciprocal_rank"\n'
    )
    (stage,) = stages_of(Pipeline(read_experiment(file), finished_experiment / "work"))
    assert [ranker.name for ranker in stage.rankers] == [str(own), str(other), "student"]
    file.write_text((finished_experiment / "tiny.toml").read_text() + f'\n[[stage]]\nby = ["{other}"]\nkeep = 5\n')
    (stage,) = stages_of(Pipeline(read_experiment(file), finished_experiment / "work"))
    assert [ranker.name for ranker in stage.rankers] == ["tiny"]


def test_a_ranker_may_be_any_function() -> None:
    ranker = ByFunction("length", lambda queries, run: np.arange(run.n_pairs, dtype=np.float32))
    run = Stage((ranker,), 2).rerank(QUERIES, ONE.search(QUERIES, 3))
    assert [doc_id for doc_id, _ in run["q1"]] == ["c", "b"]
