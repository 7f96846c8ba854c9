"""Our files are what trec_eval reads, and its order is ours."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever.runs import Run, read_qrels, write_qrels

IDS = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=6)
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
SCORES = st.dictionaries(IDS, st.dictionaries(IDS, FLOAT32 | st.sampled_from([0.0, 1.0]), min_size=1, max_size=6), max_size=4)


def same(one: Run, other: Run) -> bool:
    """Whether two runs have the same queries, documents, order and bits of scores."""
    return (
        one.query_ids == other.query_ids
        and one.offsets.tolist() == other.offsets.tolist()
        and one.doc_ids.tolist() == other.doc_ids.tolist()
        and one.scores.tobytes() == other.scores.tobytes()
    )


@settings(deadline=None)
@given(SCORES)
def test_a_run_survives_parquet_and_trec_to_the_last_bit(scores: dict[str, dict[str, float]]) -> None:
    run = Run.from_dict("a_run", scores)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        run.write_parquet(path / "r.parquet")
        run.write_trec(path / "r.trec")
        parquet, trec = Run.read_parquet(path / "r.parquet"), Run.read_trec(path / "r.trec")
        assert same(parquet, run)
        assert parquet.name == "a_run"
        assert same(trec, run)
        assert not scores or trec.name == "a_run"


def test_queries_without_documents_survive_parquet_and_cannot_be_said_in_trec(tmp_path: Path) -> None:
    run = Run.from_dict("r", {"q1": {}, "q2": {"d": 1.0}, "q3": {}})
    run.write_parquet(tmp_path / "r.parquet")
    run.write_trec(tmp_path / "r.trec")
    assert same(Run.read_parquet(tmp_path / "r.parquet"), run)
    assert Run.read_trec(tmp_path / "r.trec").to_dict() == {"q2": {"d": 1.0}}


def test_tabs_and_spaces_both_part_fields_and_ranks_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "r.trec").write_text("q\tQ0\td1\t9\t0.5\ttag\nq Q0 d2   1 1.5 tag\n  q Q0 d3 5 1e-3 tag  \r\n")
    run = Run.read_trec(tmp_path / "r.trec")
    assert (run.name, run["q"]) == ("tag", [("d2", 1.5), ("d1", 0.5), ("d3", float(np.float32(1e-3)))])
    assert Run.read_trec(tmp_path / "r.trec", "mine").name == "mine"


@settings(deadline=None)
@given(SCORES)
def test_pytrec_eval_reads_the_same_run_from_our_file(scores: dict[str, dict[str, float]]) -> None:
    run = Run.from_dict("r", scores)
    with tempfile.TemporaryDirectory() as name:
        run.write_trec(Path(name) / "r.trec")
        with (Path(name) / "r.trec").open(encoding="utf-8") as stream:
            read = pytrec_eval.parse_run(stream)
    assert {query_id: {doc_id: np.float32(score) for doc_id, score in found.items()} for query_id, found in read.items()} == run.to_dict()


def test_pytrec_eval_reads_the_same_qrels_from_our_file(tmp_path: Path) -> None:
    qrels = {"q1": {"a": 2, "b": 0}, "q2": {"a": -1}}
    write_qrels(tmp_path / "qrels", qrels)
    with (tmp_path / "qrels").open(encoding="utf-8") as stream:
        assert pytrec_eval.parse_qrel(stream) == qrels
    assert read_qrels(tmp_path / "qrels") == qrels


DOC_IDS = st.sampled_from([f"d{number}" for number in range(12)] + ["D1", "é", "日", "d\U0001f600", "\uff5e"])


@settings(deadline=None)
@given(st.dictionaries(DOC_IDS, st.sampled_from([-1.0, 0.0, 2.5]), min_size=1))
def test_the_order_is_trec_eval_s_on_ties(scores: dict[str, float]) -> None:
    """With one relevant document, its reciprocal rank gives away the place at which trec_eval sees it."""
    ranked = [doc_id for doc_id, _ in Run.from_dict("r", {"q": scores})["q"]]
    for place, doc_id in enumerate(ranked, 1):
        measured = pytrec_eval.RelevanceEvaluator({"q": {doc_id: 1}}, {"recip_rank"}).evaluate({"q": scores})
        assert measured["q"]["recip_rank"] == pytest.approx(1 / place)
