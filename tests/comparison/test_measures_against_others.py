"""ranx through our rule, trec_eval (as pytrec_eval) and plain loops give the same numbers on random runs with ties and gaps."""

import math

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever.eval.measures import evaluate
from retriever.runs import Run

Scores = dict[str, dict[str, float]]
Grades = dict[str, dict[str, int]]

TREC_NAMES = {
    "nDCG@3": "ndcg_cut_3",
    "nDCG@10": "ndcg_cut_10",
    "RR": "recip_rank",
    "RR@10": "recip_rank_of_ten",  # trec_eval has no cutoff for it: we give it ten documents
    "R@100": "recall_100",
    "AP": "map",
    "P@5": "P_5",
    "Success@5": "success_5",
    "Rprec": "Rprec",
}

QUERY_IDS = st.sampled_from(["q1", "q2", "q10", "Q", "ü"])
DOC_IDS = st.sampled_from([f"d{number}" for number in range(18)] + ["D1", "é", "日", "d\U0001f600", "\uff5e"])  # UTF-8's order is not UTF-16's
SCORES = st.sampled_from([-1.5, 0.0, 0.25, 1.0, 7.0])  # few values: many ties
GRADES = st.integers(-2, 3)


def reference(scores: Scores, qrels: Grades, relevant_from: int = 1) -> dict[str, list[float]]:
    """The rule written down again, one query and one document at a time."""
    values: dict[str, list[float]] = {measure: [] for measure in TREC_NAMES}
    for query_id in sorted(qrels):
        results = scores.get(query_id, {})
        ranked = sorted(sorted(results, reverse=True), key=lambda doc_id: -results[doc_id])  # stable: ties stay by id, descending
        grades = [qrels[query_id].get(doc_id, 0) for doc_id in ranked]
        relevant = sum(grade >= relevant_from for grade in qrels[query_id].values())
        hits = [grade >= relevant_from for grade in grades]
        for cutoff in (3, 10):
            ideal = discounted_gain(sorted(qrels[query_id].values(), reverse=True)[:cutoff])
            values[f"nDCG@{cutoff}"].append(discounted_gain(grades[:cutoff]) / ideal if ideal else 0)
        values["RR"].append(next((1 / rank for rank, hit in enumerate(hits, 1) if hit), 0))
        values["RR@10"].append(next((1 / rank for rank, hit in enumerate(hits[:10], 1) if hit), 0))
        values["R@100"].append(sum(hits[:100]) / relevant if relevant else 0)
        values["AP"].append(sum(sum(hits[:rank]) / rank for rank, hit in enumerate(hits, 1) if hit) / relevant if relevant else 0)
        values["P@5"].append(sum(hits[:5]) / 5)
        values["Success@5"].append(float(any(hits[:5])))
        values["Rprec"].append(sum(hits[:relevant]) / relevant if relevant else 0)
    return values


def discounted_gain(grades: list[int]) -> float:
    return sum(max(grade, 0) / math.log2(rank + 1) for rank, grade in enumerate(grades, 1))


def trec_eval(scores: Scores, qrels: Grades, relevant_from: int = 1) -> dict[str, list[float]]:
    """pytrec_eval's values; it leaves out queries without results or judgements, which count as 0.

    A query whose grades are all negative can end the process in trec_eval's C code, so every query gets one more document, of grade 0 and never found.
    """
    judged = {query_id: {**grades, "never found": 0} for query_id, grades in qrels.items() if grades}
    asked = {query_id: results for query_id, results in scores.items() if results}
    wanted = {"ndcg_cut.3,10", "recip_rank", "recall.100", "map", "P.5", "success.5", "Rprec"}
    every = pytrec_eval.RelevanceEvaluator(judged, wanted, relevance_level=relevant_from).evaluate(asked)
    best_ten = {query_id: dict(sorted(results.items(), key=lambda item: (item[1], item[0].encode()), reverse=True)[:10]) for query_id, results in asked.items()}
    first = pytrec_eval.RelevanceEvaluator(judged, {"recip_rank"}, relevance_level=relevant_from).evaluate(best_ten)
    merged = {query_id: {**values, "recip_rank_of_ten": first[query_id]["recip_rank"]} for query_id, values in every.items()}
    return {measure: [merged.get(query_id, {}).get(name, 0.0) for query_id in sorted(qrels)] for measure, name in TREC_NAMES.items()}


def ours(scores: Scores, qrels: Grades, relevant_from: int = 1) -> dict[str, list[float]]:
    evaluation = evaluate(Run.from_dict("run", scores), qrels, list(TREC_NAMES), relevant_from=relevant_from)
    return {measure: values.tolist() for measure, values in evaluation.values.items()}


def check_all_agree(scores: Scores, qrels: Grades, relevant_from: int = 1) -> None:
    found, plain, trec = (rank(scores, qrels, relevant_from) for rank in (ours, reference, trec_eval))
    for measure in TREC_NAMES:
        np.testing.assert_allclose(found[measure], plain[measure], rtol=0, atol=1e-9, err_msg=f"{measure}: plain loops")
        np.testing.assert_allclose(found[measure], trec[measure], rtol=0, atol=1e-9, err_msg=f"{measure}: trec_eval")


@settings(max_examples=200, deadline=None)
@given(
    scores=st.dictionaries(QUERY_IDS, st.dictionaries(DOC_IDS, SCORES, max_size=20), max_size=5),
    qrels=st.dictionaries(QUERY_IDS, st.dictionaries(DOC_IDS, GRADES, max_size=12), min_size=1, max_size=5),
    relevant_from=st.integers(1, 3),
)
def test_three_implementations_agree_on_small_runs_with_ties_and_gaps(scores: Scores, qrels: Grades, relevant_from: int) -> None:
    check_all_agree(scores, qrels, relevant_from)


@pytest.mark.parametrize("seed", range(5))
def test_three_implementations_agree_on_runs_deeper_than_every_cutoff(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores: Scores = {}
    qrels: Grades = {}
    for query in range(40):
        retrieved = generator.choice(400, size=int(generator.integers(0, 250)), replace=False)
        judged = generator.choice(400, size=int(generator.integers(1, 60)), replace=False)
        scores[f"q{query}"] = {f"d{number}": round(generator.normal(), 1) for number in retrieved}
        qrels[f"q{query}"] = {f"d{number}": int(generator.integers(-1, 4)) for number in judged}
    check_all_agree(scores, qrels)
