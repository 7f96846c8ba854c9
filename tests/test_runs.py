"""Runs: their order, their rules, and what is derived from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever.errors import DataError
from retriever.runs import Run, read_qrels, strings, write_qrels

IDS = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=6)
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
SCORES = st.dictionaries(IDS, st.dictionaries(IDS, FLOAT32 | st.sampled_from([0.0, 1.0]), max_size=6), max_size=4)

THREE = {"q1": {"a": 1.0, "b": 3.0, "c": 2.0}, "q2": {}, "q3": {"b": -1.5}}


def in_order(scores: dict[str, dict[str, float]]) -> dict[str, list[tuple[str, float]]]:
    """The canonical order written down again: two stable sorts, the document id first."""
    by_id = {query_id: sorted(found.items(), key=lambda pair: pair[0].encode(), reverse=True) for query_id, found in scores.items()}
    return {query_id: sorted(found, key=lambda pair: -pair[1]) for query_id, found in by_id.items()}


@settings(deadline=None)
@given(SCORES)
def test_documents_stand_by_score_and_then_by_id_both_descending(scores: dict[str, dict[str, float]]) -> None:
    run = Run.from_dict("r", scores)
    assert {query_id: run[query_id] for query_id in run} == in_order(scores)


def test_ties_are_broken_by_id_descending() -> None:
    run = Run.from_dict("r", {"q": {"d1": 1.0, "d10": 1.0, "d2": 1.0, "D3": 1.0, "é": 1.0, "e": 2.0}})
    assert [doc_id for doc_id, _ in run["q"]] == ["e", "é", "d2", "d10", "d1", "D3"]


def test_a_run_is_read_like_a_mapping() -> None:
    run = Run.from_dict("r", THREE)
    assert (len(run), list(run), run.n_pairs, run.counts.tolist()) == (3, ["q1", "q2", "q3"], 4, [3, 0, 1])
    assert run["q1"] == [("b", 3.0), ("c", 2.0), ("a", 1.0)]
    assert (run["q2"], run["elsewhere"]) == ([], [])
    assert ("q2" in run, "elsewhere" in run, 7 in run) == (True, False, False)
    assert run.doc_ids.tolist() == ["b", "c", "a", "b"]
    assert run.query_numbers.tolist() == [0, 0, 0, 2]
    assert run.to_dict() == THREE
    assert list(run.to_dict()["q1"]) == ["b", "c", "a"]


def test_flat_arrays_make_the_same_run() -> None:
    flat = Run.from_arrays("r", ["q1", "q2", "q3"], [3, 0, 1], ["a", "b", "c", "b"], [1.0, 3.0, 2.0, -1.5])
    assert flat.to_dict() == THREE
    assert flat.fingerprint == Run.from_dict("another name", THREE).fingerprint


def test_an_empty_run_is_a_run() -> None:
    run = Run.from_dict("r", {})
    assert (len(run), run.n_pairs, run.to_dict()) == (0, 0, {})
    assert run.select(["q"]).to_dict() == {"q": {}}
    assert run.top(3).without_own_documents().to_dict() == {}


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_named(score: float) -> None:
    with pytest.raises(DataError) as caught:
        Run.from_dict("r", {"q1": {"a": 1.0}, "q2": {}, "q3": {"a": 1.0, "b": score}})
    assert str(caught.value) == f'run "r": query q3, document b: the score {score} is not a finite number'


def test_a_document_twice_in_a_query_is_named() -> None:
    with pytest.raises(DataError, match=r'^run "r": query q2 has the document a twice$'):
        Run.from_arrays("r", ["q1", "q2"], [1, 3], ["a", "a", "b", "a"], [1.0, 1.0, 2.0, 3.0])


def test_a_query_twice_in_a_run_is_refused() -> None:
    with pytest.raises(DataError, match=r'^run "r": a query stands in it twice$'):
        Run.from_arrays("r", ["q1", "q1"], [1, 1], ["a", "b"], [1.0, 1.0])


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r'^run "r": 2 queries, 3 offsets, 3 documents and 2 scores do not fit$'):
        Run.from_arrays("r", ["q1", "q2"], [1, 2], ["a", "b", "c"], [1.0, 1.0])


def test_a_fingerprint_changes_with_any_query_document_and_score() -> None:
    others = [
        {"q1": {"a": 1.0, "b": 3.0, "c": 2.5}, "q2": {}, "q3": {"b": -1.5}},
        {"q1": {"a": 1.0, "b": 3.0, "d": 2.0}, "q2": {}, "q3": {"b": -1.5}},
        {"q1": {"a": 1.0, "b": 3.0, "c": 2.0}, "q4": {}, "q3": {"b": -1.5}},
        {"q1": {"a": 1.0, "b": 3.0, "c": 2.0}, "q2": {"b": -1.5}, "q3": {}},
        {"q1": {"a": 1.0, "b": 3.0, "c": 2.0}, "q3": {"b": -1.5}},
    ]
    assert len({Run.from_dict("r", scores).fingerprint for scores in (THREE, *others)}) == 6


def test_the_best_of_every_query_are_kept() -> None:
    assert Run.from_dict("r", THREE).top(2).to_dict() == {"q1": {"b": 3.0, "c": 2.0}, "q2": {}, "q3": {"b": -1.5}}


def test_queries_are_selected_in_the_order_asked_for_and_absent_ones_are_empty() -> None:
    selected = Run.from_dict("r", THREE).select(["q3", "new", "q1"])
    assert list(selected.to_dict().items()) == [("q3", {"b": -1.5}), ("new", {}), ("q1", THREE["q1"])]


def test_other_scores_bring_another_order() -> None:
    run = Run.from_dict("r", THREE).with_scores("other", [0.0, 5.0, 7.0, 1.0])  # of b, c, a and q3's b
    assert (run.name, run["q1"], run["q3"]) == ("other", [("a", 7.0), ("c", 5.0), ("b", 0.0)], [("b", 1.0)])


def test_a_query_s_own_document_is_left_out() -> None:
    run = Run.from_dict("r", {"a": {"a": 2.0, "b": 1.0}, "b": {"a": 1.0}, "c": {}})
    assert run.without_own_documents().to_dict() == {"a": {"b": 1.0}, "b": {"a": 1.0}, "c": {}}


@settings(deadline=None)
@given(SCORES, st.integers(0, 4))
def test_what_is_derived_agrees_with_plain_python(scores: dict[str, dict[str, float]], depth: int) -> None:
    run = Run.from_dict("r", scores)
    assert {query_id: run.top(depth)[query_id] for query_id in run} == {query_id: found[:depth] for query_id, found in in_order(scores).items()}
    backwards = list(scores)[::-1]
    assert list(run.select(backwards).to_dict().items()) == [(query_id, dict(in_order(scores)[query_id])) for query_id in backwards]


def test_strings_of_any_length_are_kept() -> None:
    assert strings(["", "é", "x" * 100]).tolist() == ["", "é", "x" * 100]


def test_what_is_no_run_in_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    Run.from_dict("r", THREE).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    for place in (path, tmp_path / "absent.parquet"):
        with pytest.raises(DataError) as caught:
            Run.read_parquet(place)
        assert str(caught.value).startswith(f"{place}: not a run in Parquet (")


def test_scores_that_are_not_finite_are_refused_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "r.trec").write_text("q Q0 d 1 nan tag\n")
    with pytest.raises(DataError, match=r'^run "tag": query q, document d: the score nan is not a finite number$'):
        Run.read_trec(tmp_path / "r.trec")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("q Q0 d2 2 1.0", "a TREC run has 6 fields (query Q0 document rank score tag), this line has 5"),
        ("q Q0 d2 2 1.0 tag more", "a TREC run has 6 fields (query Q0 document rank score tag), this line has 7"),
        ("q Q0 d2 2 one tag", 'the score "one" is not a number'),
        ("q Q0 d1 2 0.5 tag", "query q has the document d1 twice"),
    ],
)
def test_a_malformed_trec_line_is_named_with_its_number(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "r.trec"
    path.write_text(f"q Q0 d1 1 2.0 tag\n\n{line}\n")
    with pytest.raises(DataError) as caught:
        Run.read_trec(path)
    assert str(caught.value) == f"{path}:3: {said}"


def test_a_trec_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin1.trec").write_bytes(b"q Q0 d\xe9 1 2.0 tag\n")
    for path in (tmp_path / "absent.trec", tmp_path, tmp_path / "latin1.trec"):
        with pytest.raises(DataError) as caught:
            Run.read_trec(path)
        assert str(caught.value).startswith(f"{path}: cannot be read (")


def test_qrels_are_read_in_both_forms_and_written_in_one(tmp_path: Path) -> None:
    qrels = {"q1": {"a": 2, "b": 0}, "q2": {"a": -1}}
    (tmp_path / "beir.tsv").write_text("query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\tb\t0\nq2\ta\t-1\n")
    (tmp_path / "plain.tsv").write_text("q1 a 2\nq1 b 0\nq2 a -1\n")
    write_qrels(tmp_path / "trec.qrels", qrels)
    assert (tmp_path / "trec.qrels").read_text() == "q1 0 a 2\nq1 0 b 0\nq2 0 a -1\n"
    assert [read_qrels(tmp_path / name) for name in ("beir.tsv", "plain.tsv", "trec.qrels")] == [qrels] * 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("q1 a", "qrels have 3 fields (query document grade) or 4 (query 0 document grade), this line has 2"),
        ("q1 0 a relevant", 'the grade "relevant" is not a whole number'),
        ("q1 0 a 1.5", 'the grade "1.5" is not a whole number'),
    ],
)
def test_a_malformed_line_of_qrels_is_named_with_its_number(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "qrels"
    path.write_text(f"q1 0 b 1\n{line}\n")
    with pytest.raises(DataError) as caught:
        read_qrels(path)
    assert str(caught.value) == f"{path}:2: {said}"


def test_ten_million_pairs_take_little_more_than_eight_bytes_each() -> None:
    run = Run.from_arrays("r", [f"q{number}" for number in range(1000)], np.full(1000, 100), [f"d{number}" for number in range(100)] * 1000, np.ones(100_000))
    assert run.codes.nbytes + run.scores.nbytes == 8 * run.n_pairs
    assert len(run.vocabulary) == 100
