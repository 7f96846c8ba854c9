"""Measures against numbers that can be derived by hand."""

import math

import numpy as np
import pytest

from retriever.errors import ConfigError, DataError
from retriever.eval.measures import FAMILIES, Measure, evaluate, parse_measure
from retriever.runs import Run

RUN = Run.from_dict("system", {"q1": {"a": 9, "b": 8, "c": 7, "d": 6}, "q2": {"x": 1}, "not judged": {"a": 1}})
QRELS = {"q1": {"a": 0, "b": 2, "d": 1, "missed": 3}, "q2": {"x": 0}, "q0": {"y": 1}}


def value(measure: str, **options: int) -> float:
    """The measure of q1, whose four results have the grades 0, 2, unjudged, 1 while a document of grade 3 is missed."""
    return float(evaluate(RUN, QRELS, [measure], **options).values[measure][1])


@pytest.mark.parametrize("text", ["nDCG@10", "nDCG@3", "RR", "RR@10", "R@100", "AP", "AP@5", "P@3", "Success@1", "Rprec", "nDCG"])
def test_a_measure_prints_as_it_is_written(text: str) -> None:
    assert str(parse_measure(text)) == text


def test_equal_measures_are_equal_values() -> None:
    assert {parse_measure("nDCG@10"), Measure("nDCG", 10)} == {Measure("nDCG", 10)}


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("ndcg@10", "Did you mean nDCG@10?"),
        ("MRR@10", "Did you mean RR@10?"),
        ("Recall@100", "Did you mean R@100?"),
        ("map", "Did you mean AP?"),
        ("ndcg_cut_10", "Did you mean nDCG@10?"),
        ("Succes@1", "Did you mean Success@1?"),
        ("P", "needs a cutoff"),
        ("Rprec@5", "no cutoff. Write Rprec"),
        ("nDCG@0", 'the cutoff "0"'),
        ("nDCG@ten", 'the cutoff "ten"'),
        ("nDCG@", 'the cutoff ""'),
        ("", "Did you mean"),
    ],
)
def test_a_wrong_measure_is_refused_with_the_nearest_one(text: str, hint: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_measure(text)
    assert hint in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_gain_of_ndcg_is_the_grade() -> None:
    ideal = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    assert value("nDCG@10") == pytest.approx((2 / math.log2(3) + 1 / math.log2(5)) / ideal, abs=1e-12)
    assert value("nDCG@3") == pytest.approx((2 / math.log2(3)) / ideal, abs=1e-12)  # three judged documents: the ideal is the same
    assert value("nDCG@2") == pytest.approx((2 / math.log2(3)) / (3 / math.log2(2) + 2 / math.log2(3)), abs=1e-12)
    assert value("DCG@10") == pytest.approx(2 / math.log2(3) + 1 / math.log2(5), abs=1e-12)


def test_the_burges_gain_is_two_to_the_grade_minus_one() -> None:
    assert value("DCG_burges@10") == pytest.approx(3 / math.log2(3) + 1 / math.log2(5), abs=1e-12)
    assert value("nDCG_burges@10") == pytest.approx((3 / math.log2(3) + 1 / math.log2(5)) / (7 + 3 / math.log2(3) + 1 / 2), abs=1e-12)


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("RR", 1 / 2),
        ("RR@10", 1 / 2),
        ("RR@1", 0),
        ("R@2", 1 / 3),
        ("R@100", 2 / 3),
        ("AP", (1 / 2 + 2 / 4) / 3),
        ("AP@3", (1 / 2) / 3),
        ("P@2", 1 / 2),
        ("P@10", 2 / 10),
        ("F1@4", 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)),
        ("Success@1", 0),
        ("Success@2", 1),
        ("Hits", 2),
        ("Rprec", 1 / 3),
    ],
)
def test_binary_measures_by_hand(measure: str, expected: float) -> None:
    assert value(measure) == pytest.approx(expected, abs=1e-12)


def test_relevant_from_moves_the_binary_measures_and_leaves_ndcg() -> None:
    assert value("R@100", relevant_from=2) == pytest.approx(1 / 2, abs=1e-12)
    assert value("AP", relevant_from=2) == pytest.approx((1 / 2) / 2, abs=1e-12)
    assert value("nDCG@10", relevant_from=2) == value("nDCG@10")


def test_relevance_cannot_begin_at_the_grade_of_irrelevance() -> None:
    with pytest.raises(ConfigError, match="lowest value is 1"):
        evaluate(RUN, QRELS, ["AP"], relevant_from=0)


def test_every_query_of_the_qrels_counts_and_no_other() -> None:
    evaluation = evaluate(RUN, QRELS, ["RR@10"])
    assert evaluation.query_ids == ("q0", "q1", "q2")  # q0 has no results, q2 no relevant document
    assert evaluation.values["RR@10"].tolist() == [0, 0.5, 0]
    assert evaluation.means == {"RR@10": pytest.approx(0.5 / 3)}
    assert len(evaluation) == 3


def test_queries_without_judgements_or_results_count_as_zero_for_every_measure() -> None:
    nothing = Run.from_dict("nothing", {})
    measures = [name if family.cutoff == "refused" else f"{name}@10" for name, family in FAMILIES.items()]
    evaluation = evaluate(nothing, {"q1": {}, "q2": {"a": 1}}, measures)
    assert {measure: values.tolist() for measure, values in evaluation.values.items()} == {measure: [0, 0] for measure in measures}


def test_of_tied_documents_the_last_id_stands_first() -> None:
    tied = Run.from_dict("tied", {"q": {"d1": 1, "d2": 1, "d10": 1}})  # as text: d2, d10, d1
    values = [evaluate(tied, {"q": {doc_id: 1}}, ["RR"]).means["RR"] for doc_id in ("d2", "d10", "d1")]
    assert values == [pytest.approx(1), pytest.approx(1 / 2), pytest.approx(1 / 3)]


def test_a_querys_own_document_can_be_left_out() -> None:
    run = Run.from_dict("arguments", {"q": {"q": 2, "d": 1}})
    qrels = {"q": {"d": 1}}
    assert evaluate(run, qrels, ["RR"]).means == {"RR": 0.5}
    assert evaluate(run, qrels, ["RR"], without_own_documents=True).means == {"RR": 1}


def test_more_queries_than_one_block_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    run = Run.from_dict("random", {f"q{q}": {f"d{d}": float(generator.integers(5)) for d in range(q % 7)} for q in range(25)})
    qrels = {f"q{q}": {f"d{d}": int(generator.integers(3)) for d in range(q % 5)} for q in range(25)}
    whole = evaluate(run, qrels, ["nDCG@3", "AP"])
    monkeypatch.setattr("retriever.eval.measures.QUERIES_AT_ONCE", 4)
    in_blocks = evaluate(run, qrels, ["nDCG@3", "AP"])
    assert {measure: values.tolist() for measure, values in in_blocks.values.items()} == {measure: values.tolist() for measure, values in whole.values.items()}


def test_empty_qrels_are_refused() -> None:
    with pytest.raises(DataError, match="hold no query"):
        evaluate(RUN, {}, ["AP"])
