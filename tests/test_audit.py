"""The audit of the teachers: its numbers by hand and against others, its verdicts as a table, its page, its command."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import kendalltau

from retriever.audit.agreement import agreement, kendall_taus, overlaps, top_overlap
from retriever.audit.calibration import calibration, expected_calibration_error, probabilities, reliability
from retriever.audit.cost import ensemble_cost, pairs_per_second
from retriever.audit.lists import UNJUDGED, ScoredLists, spread
from retriever.audit.material import Material, compare_all
from retriever.audit.step import directions
from retriever.audit.suspects import false_negatives, mislabelled, ruined_queries, share_above
from retriever.audit.verdict import Candidate, judge
from retriever.collection import Collection
from retriever.config import read_experiment
from retriever.errors import DataError, StoreError
from retriever.eval.audit import Audit, AuditVerdict, BaselineFindings, Cost, Suspect, Suspects, TeacherFindings, Texts, read_audit, write_audit
from retriever.eval.audit_page import render_audit
from retriever.eval.audit_terminal import audit_table
from retriever.eval.curves import score_distribution
from retriever.eval.measures import evaluate
from retriever.eval.significance import Comparison
from retriever.pipeline import Pipeline
from retriever.runs import Run, read_qrels
from retriever.scores.scoring import CandidatePairs
from retriever.types import Document, Query, ScoredPairs
from tests.scoring_material import ALL_PAIRS, QUERIES, LoggingTeacher, run_of, write_tiny_collection
from tests.test_report import tags_of
from tests.tiny_experiment import Said, command

Scores = Mapping[str, Mapping[str, float]]


def lists_of(scores: Mapping[str, Scores], qrels: Mapping[str, Mapping[str, int]], added: Sequence[tuple[str, str]] = ()) -> ScoredLists:
    """Lists of the pairs that the teachers score, all retrieved but the added ones."""
    runs = {name: Run.from_dict(name, of_teacher) for name, of_teacher in scores.items()}
    pairs = next(iter(runs.values()))
    retrieved = {query_id: {doc_id: 0.0 for doc_id, _ in pairs[query_id] if (query_id, doc_id) not in added} for query_id in pairs}
    return ScoredLists.of(pairs, Run.from_dict("candidates", retrieved), qrels, runs)


# Lists


def test_lists_hold_every_teachers_scores_in_one_order_and_know_what_is_judged_and_retrieved() -> None:
    scores = {"a": {"q": {"x": 3.0, "y": 2.0, "z": 1.0}}, "b": {"q": {"x": 10.0, "y": 30.0, "z": 20.0}}}
    lists = lists_of(scores, {"q": {"x": 0, "z": 2}}, added=[("q", "z")])
    assert lists.pairs.doc_ids.tolist() == ["x", "y", "z"]
    assert lists.scores["b"].tolist() == [10, 30, 20]
    assert lists.grades.tolist() == [0, UNJUDGED, 2]
    assert lists.retrieved.tolist() == [True, True, False]
    assert lists.run("b")["q"] == [("y", 30.0), ("x", 10.0)]  # z was not found by any source: it is not re-ranked


def test_a_run_that_lacks_a_pair_is_refused() -> None:
    with pytest.raises(StoreError, match='"b" has no score of query q, document y'):
        lists_of({"a": {"q": {"x": 1.0, "y": 2.0}}, "b": {"q": {"x": 1.0}}}, {})


def test_spread_by_hand() -> None:
    found = spread(np.array([1.0, 3.0, 5.0, 7.0]), np.array([0, 2, 4]))
    assert (found.within, found.between) == (1.0, 2.0)
    assert spread(np.array([]), np.array([0, 0])) == spread(np.array([2.0, 2.0]), np.array([0, 1, 2]))


@given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=5), min_size=1, max_size=5))
def test_the_squares_of_both_spreads_are_the_variance(lists: list[list[float]]) -> None:
    scores = np.array([score for one in lists for score in one])
    found = spread(scores, np.cumsum([0, *(len(one) for one in lists)]))
    assert found.within**2 + found.between**2 == pytest.approx(scores.var(), rel=1e-6, abs=1e-6)


# Agreement


def test_kendalls_tau_by_hand() -> None:
    assert kendall_taus(np.array([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0]]))[0, 1] == pytest.approx(1 / 3)  # two pairs alike, one not
    assert kendall_taus(np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]))[0, 1] == pytest.approx(-1)
    assert kendall_taus(np.array([[3.0, 2.0, 2.0], [3.0, 2.0, 1.0]]))[0, 1] == pytest.approx(2 / np.sqrt(2 * 3))
    assert np.isnan(kendall_taus(np.array([[1.0, 1.0], [1.0, 2.0]]))[0, 1])


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=12))
def test_kendalls_tau_is_scipys(pairs: list[tuple[int, int]]) -> None:
    scores = np.array(pairs, dtype=np.float64).T
    assert kendall_taus(scores)[0, 1] == pytest.approx(kendalltau(*scores, variant="b").statistic, nan_ok=True)


def test_agreement_is_the_mean_over_lists_that_both_order_and_leaves_out_what_was_not_retrieved() -> None:
    falling, rising, level = {"x": 3.0, "y": 2.0, "z": 1.0}, {"x": 1.0, "y": 2.0, "z": 3.0}, {"x": 1.0, "y": 1.0, "z": 1.0}
    swapped = {"x": 3.0, "y": 1.0, "z": 2.0}
    scores = {
        "a": {"q1": falling, "q2": falling, "q3": falling},
        "b": {"q1": falling, "q2": swapped, "q3": level},
        "c": {"q1": level, "q2": level, "q3": level},
    }
    found = agreement(lists_of(scores, {}), ["a", "b", "c"])
    assert found["a"]["b"] == found["b"]["a"] == pytest.approx((1 + 1 / 3) / 2)
    assert found["a"]["c"] is None
    assert set(found["a"]) == {"b", "c"}
    without_z = lists_of({"a": {"q": falling}, "b": {"q": swapped}}, {}, added=[("q", "z")])
    assert agreement(without_z, ["a", "b"])["a"]["b"] == 1  # x before y for both
    assert agreement(lists_of({"a": {"q": falling}, "b": {"q": rising}}, {}), ["a", "b"])["a"]["b"] == pytest.approx(-1)


def test_overlap_of_the_best_by_hand() -> None:
    first = Run.from_dict("a", {"q1": {"w": 4, "x": 3, "y": 2, "z": 1}, "q2": {"x": 1}, "q3": {}})
    second = Run.from_dict("b", {"q1": {"w": 1, "x": 2, "y": 3, "z": 4}, "q2": {"x": 9}, "q3": {}})
    assert top_overlap(first, second, depth=3) == pytest.approx((2 / 3 + 1) / 2)  # {w x y} and {z y x}; q3 has nothing to share
    assert overlaps({"a": first, "b": second}) == {"a": {"b": 1.0}, "b": {"a": 1.0}}


# Calibration


def test_reliability_and_its_error_by_hand() -> None:
    probability, relevant = np.array([0.1, 0.14, 0.8, 0.8, 1.0]), np.array([False, True, True, False, True])
    bins = reliability(probability, relevant, bins=5)
    assert [(one.probability, one.share, one.pairs) for one in bins] == [(pytest.approx(0.12), 0.5, 2), (pytest.approx(2.6 / 3), pytest.approx(2 / 3), 3)]
    assert expected_calibration_error(bins) == pytest.approx((2 * 0.38 + 3 * 0.2) / 5)


def test_probabilities_do_not_overflow() -> None:
    assert probabilities(np.array([-1e6, 0.0, 1e6]), 1.0, 0.0).tolist() == [0, 0.5, 1]


def judged_lists(sign_of_odd_queries: int, queries: int = 100) -> ScoredLists:
    """Ten judged documents a query with scores from -2 to 2; the chance of being relevant is the logistic function of the score, times a sign."""
    generator, scores, qrels = np.random.default_rng(1), {}, {}
    for number in range(queries):
        values = generator.uniform(-2, 2, 10)
        chance = probabilities(values * (sign_of_odd_queries if number % 2 else 1), 1.0, 0.0)
        scores[f"q{number:03}"] = {f"d{place}": float(value) for place, value in enumerate(values)}
        qrels[f"q{number:03}"] = {f"d{place}": int(generator.random() < one) for place, one in enumerate(chance)}
    return lists_of({"a": scores}, qrels)


def test_a_score_that_is_the_log_odds_is_found_to_be_and_has_a_small_error() -> None:
    found = calibration(judged_lists(1), "a")
    assert found is not None
    assert found.pairs == 1000 == sum(one.pairs for one in found.bins)
    assert found.slope == pytest.approx(1, abs=0.2)
    assert found.offset == pytest.approx(0, abs=0.2)
    assert found.error < 0.06


def test_the_error_is_that_on_queries_the_fit_has_not_seen() -> None:
    found = calibration(judged_lists(-1), "a")  # the score means the opposite in the other half
    assert found is not None
    assert found.error > 0.3


def test_without_both_kinds_of_judgements_nothing_is_said_of_calibration() -> None:
    lists = judged_lists(1)
    only_relevant = dataclasses.replace(lists, grades=np.where(lists.grades > 0, lists.grades, UNJUDGED))
    assert calibration(only_relevant, "a") is None


# Suspects


def test_the_share_above_counts_ties_half() -> None:
    assert share_above(np.array([5.0, 3.0, 3.0, 1.0])).tolist() == pytest.approx([0, 0.5, 0.5, 1])
    assert share_above(np.array([5.0])).tolist() == [0]


DOUBTED = {
    "a": {"q": {"positive": 2.0, "low": 1.0, "found": 9.0, "one": 8.0, "other": 0.0, "no": 10.0}},
    "b": {"q": {"positive": 2.0, "low": 1.0, "found": 9.0, "one": 1.5, "other": 0.0, "no": 10.0}},
    "c": {"q": {"positive": 2.0, "low": 1.0, "found": 1.9, "one": 1.5, "other": 0.0, "no": 10.0}},
}
JUDGED = {"q": {"positive": 1, "low": 2, "no": 0}}


def test_false_negatives_are_unjudged_documents_that_most_teachers_rank_above_every_positive() -> None:
    found = false_negatives(lists_of(DOUBTED, JUDGED), ["a", "b", "c"])
    assert (found.pairs, found.queries) == (1, 1)  # "no" is judged; "one" has a single teacher for it; "found" has two of three
    assert [(one.doc_id, one.teachers, one.positive) for one in found.listed] == [("found", ("a", "b"), "positive")]
    scores = np.array(list(DOUBTED["a"]["q"].values()))
    assert found.listed[0].strength == pytest.approx((9 - 2) / scores.std() / 2 + (9 - 2) / np.array(list(DOUBTED["b"]["q"].values())).std() / 2)


@pytest.mark.parametrize(("teachers", "pairs"), [(["a"], 0), (["a", "b"], 1), (["a", "b", "c"], 1), (["a", "c"], 0)])
def test_one_teacher_alone_doubts_nothing(teachers: list[str], pairs: int) -> None:
    assert false_negatives(lists_of(DOUBTED, JUDGED), teachers).pairs == pairs


def test_a_query_without_a_positive_has_no_false_negatives() -> None:
    assert false_negatives(lists_of(DOUBTED, {"q": {"no": 0}}), ["a", "b", "c"]).pairs == 0


def test_mislabelled_are_positives_that_all_teachers_rank_in_the_last_quarter() -> None:
    scores = {
        "a": {"q": {"d1": 5.0, "d2": 4.0, "d3": 3.0, "d4": 2.0, "d5": 1.0}, "short": {"x": 1.0, "y": 0.0}},
        "b": {"q": {"d1": 4.0, "d2": 5.0, "d3": 1.0, "d4": 2.0, "d5": 3.0}, "short": {"x": 1.0, "y": 0.0}},
        "c": {"q": {"d1": 5.0, "d2": 4.0, "d3": 3.0, "d4": 1.0, "d5": 2.0}, "short": {"x": 1.0, "y": 0.0}},
    }
    lists = lists_of(scores, {"q": {"d1": 1, "d4": 1, "d5": 1}, "short": {"y": 1}})
    assert [(one.doc_id, one.strength) for one in mislabelled(lists, ["a", "b", "c"]).listed] == [("d4", pytest.approx((0.75 + 0.75 + 1) / 3))]
    assert [one.doc_id for one in mislabelled(lists, ["a", "c"]).listed] == ["d4", "d5"]
    assert mislabelled(lists, ["a"]) == Suspects(0, 0, ())


def test_all_suspects_are_counted_and_a_few_of_each_query_are_listed() -> None:
    above = {"positive": 0.0, **{f"d{number}": float(number + 1) for number in range(6)}}
    scores = {name: {f"q{number:02}": above for number in range(30)} for name in ("a", "b")}
    found = false_negatives(lists_of(scores, {f"q{number:02}": {"positive": 1} for number in range(30)}), ["a", "b"])
    assert (found.pairs, found.queries, len(found.listed)) == (180, 30, 60)
    assert [one.doc_id for one in found.listed[:4]] == ["d5", "d4", "d3", "d5"]


def test_ruined_queries_are_the_largest_losses_with_what_moved() -> None:
    qrels = {"q1": {"x": 1}, "q2": {"x": 1}, "q3": {"x": 1}, "q4": {"y": 1}}
    good, bad = {"x": 3.0, "y": 2.0, "z": 1.0}, {"x": 1.0, "y": 2.0, "z": 3.0}
    baseline = Run.from_dict("bm25", {"q1": good, "q2": good, "q3": bad, "q4": good})
    teacher = Run.from_dict("t", {"q1": bad, "q2": {"x": 2.0, "y": 3.0, "z": 1.0}, "q3": good, "q4": bad})
    (before, after) = (evaluate(run, qrels, ["RR"]) for run in (baseline, teacher))
    worst, next_worst = ruined_queries((teacher, after), (baseline, before), qrels, "RR")
    assert (worst.query_id, worst.baseline, worst.before, worst.after) == ("q1", "bm25", 1.0, pytest.approx(1 / 3))
    assert (worst.relevant, worst.rank_before, worst.rank_after, worst.first) == ("x", 1, 3, "z")
    assert (next_worst.query_id, next_worst.after, next_worst.first) == ("q2", 0.5, "y")  # q3 gains and q4 stays


# Cost


class SlowTeacher(LoggingTeacher):
    """Takes five milliseconds a pair."""

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
        time.sleep(0.005 * len(pairs))
        return super().score(pairs)


def test_speed_is_measured_on_the_first_pairs_after_a_few_untimed_ones(tmp_path: Path) -> None:
    collection: Collection = write_tiny_collection(tmp_path / "collection")
    teacher = SlowTeacher()
    found = pairs_per_second(teacher, CandidatePairs.of(run_of(ALL_PAIRS), QUERIES, collection), sample_pairs=8)
    assert 20 < found <= 200
    assert len(teacher.asked) == 4 + 8
    assert pairs_per_second(teacher, CandidatePairs.of(run_of({"q1": []}), QUERIES, collection)) == 0


def test_an_ensemble_takes_the_time_of_all_its_members() -> None:
    together = ensemble_cost({"a": Cost(20.0, 0.1, 0.0, 100.0, 50, 1000, 0.5), "b": Cost(5.0, 0.3, 0.2, 30.0, 50, 500, 0.0)})
    assert together == Cost(pytest.approx(4.0), 0.3, 0.2, 130.0, 50, 1500, 0.5)


# The verdict


def against(baseline: str, difference: float, p_value: float, run: str = "") -> Comparison:
    return Comparison(run, baseline, "nDCG@10", difference, (difference - 0.02, difference + 0.02), p_value, p_value, 81, 20, 10)


def single(name: str, mean: float, gain: float, p_value: float) -> Candidate:
    return Candidate(name, mean, against("student_before", gain, p_value))


def ensemble(mean: float, gain: float, p_value: float, over_a: float, over_b: float, p_member: float = 0.5) -> Candidate:
    members = {name: against(name, over, p_member) for name, over in (("a", over_a), ("b", over_b))}
    return Candidate("both", mean, against("student_before", gain, p_value), ("a", "b"), members)


GOOD, BAD = single("a", 0.70, 0.05, 0.001), single("b", 0.60, -0.05, 0.02)


@pytest.mark.parametrize(
    ("candidates", "distil", "said"),
    [
        ([GOOD], ("a",), ["Distil a: +0.050 nDCG@10", "over the starting student on 81 held-out queries", "p = 0.0010"]),
        ([GOOD, BAD], ("a",), ["Distil a"]),
        ([BAD], (), ["Distil none: the teacher b is not shown to be above the starting student", "differs by -0.050"]),
        ([single("a", 0.70, 0.05, 0.2), BAD], (), ["Distil none: no teacher is shown", "The best, a, gains +0.050", "more held-out queries"]),
        ([single("a", 0.65, 0.0, 1.0)], (), ["Distil none", "differs by 0.000"]),
        ([GOOD, BAD, ensemble(0.72, 0.07, 0.001, 0.02, 0.12, 0.01)], ("both",), ["Distil both, the ensemble of a, b", "nearest is a, by +0.020"]),
        ([GOOD, BAD, ensemble(0.72, 0.07, 0.001, 0.02, 0.12)], ("both",), ["above each of its members", "which may be chance"]),
        ([GOOD, BAD, ensemble(0.68, 0.03, 0.01, -0.02, 0.08)], ("a",), ["Distil a", "both is not above each of its members: not above a (-0.020"]),
        ([GOOD, BAD, ensemble(0.70, 0.05, 0.001, 0.0, 0.1)], ("a",), ["Distil a", "both is not above each of its members"]),
        ([BAD, ensemble(0.64, -0.01, 0.9, -0.02, 0.08)], (), ["Distil none", "both is not above each of its members"]),
        ([single("a", 0.70, 0.05, 0.2), ensemble(0.69, 0.04, 0.01, -0.01, 0.1)], ("both",), ["Distil both", "both is not above each of its members"]),
    ],
)
def test_the_verdict_follows_the_numbers(candidates: list[Candidate], distil: tuple[str, ...], said: list[str]) -> None:
    found = judge(candidates)
    assert found.distil == distil
    reason = found.reason.replace("\N{MINUS SIGN}", "-").replace("\N{NO-BREAK SPACE}", " ")
    for words in said:
        assert words in reason
    assert found.members == (("a", "b") if distil == ("both",) else ())


def test_an_ensemble_above_its_members_is_not_said_to_fail() -> None:
    assert "is not above each" not in judge([GOOD, BAD, ensemble(0.72, 0.07, 0.001, 0.02, 0.12)]).reason


def test_the_verdict_orders_the_single_teachers_whatever_is_distilled() -> None:
    yes_or_no, likelihood = single("yes or no", 0.25, -0.3, 0.001), single("likelihood", 0.54, -0.01, 0.8)
    between = [Comparison("yes or no", "likelihood", "nDCG@10", -0.29, (-0.35, -0.2), 0.00001, 0.00002, 81, 5, 60)]
    reason = judge([yes_or_no, likelihood], between).reason.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")
    assert reason.endswith("Of the single teachers likelihood ranks best, nDCG@10 0.540; yes or no -0.290 (p < 0.0001).")
    assert "Of the single teachers" not in judge([GOOD]).reason


# What is written


def teacher_findings(members: tuple[str, ...] = (), calibrated: bool = True) -> TeacherFindings:
    generator = np.random.default_rng(1)
    return TeacherFindings(
        **dataclasses.asdict(Cost(23.1, 0.042, 0.01, 246.0, 3200, 120_000, 0.0)),
        kind="ensemble" if members else "cross_encoder",
        members=members,
        unit="logit",
        mean={"nDCG@10": 0.7, "R@100": 0.9},
        interval={"nDCG@10": (0.6, 0.8), "R@100": (0.85, 0.95)},
        agreement={"b": 0.5} if members else {"both": None},
        overlap={"b": 0.4} if members else {"both": 0.4},
        spread=spread(generator.normal(size=20), np.array([0, 10, 20])),
        distribution=score_distribution("b", "logit", generator.normal(1, 1, 20), generator.normal(0, 1, 90)),
        calibration=calibration(judged_lists(1), "a") if calibrated else None,
        ruined=ruined_queries(*RUINED),
    )


RUINED_QRELS = {"q": {"x": 1}}
RUINED_RUNS = [Run.from_dict("bm25", {"q": {"x": 2.0, "y": 1.0}}), Run.from_dict("b", {"q": {"x": 1.0, "y": 2.0}})]
RUINED = (
    (RUINED_RUNS[1], evaluate(RUINED_RUNS[1], RUINED_QRELS, ["RR"])),
    (RUINED_RUNS[0], evaluate(RUINED_RUNS[0], RUINED_QRELS, ["RR"])),
    RUINED_QRELS,
    "RR",
)


@pytest.fixture
def audit() -> Audit:
    """An audit with everything in it."""
    baseline = BaselineFindings("BM25, no model", {"nDCG@10": 0.65, "R@100": 0.9}, {"nDCG@10": (0.6, 0.7), "R@100": (0.85, 0.95)})
    compared = [
        Comparison(run, other, measure, 0.05, (0.0, 0.1), 0.01, 0.03, 81, 20, 10)
        for run in ("b", "both")
        for other in ("student_before", "bm25")
        for measure in ("nDCG@10", "R@100")
    ]
    deciding = [one for one in compared if one.baseline == "student_before" and one.measure == "nDCG@10"]
    return Audit(
        title="<tiny> & sound",
        summary="81 queries",
        measures=("nDCG@10", "R@100"),
        queries=81,
        teachers={"b": teacher_findings(), "both": teacher_findings(("b", "c"), calibrated=False)},
        baselines={"bm25": baseline, "student_before": baseline},
        deciding=tuple(deciding),
        comparisons=tuple(one for one in compared if one not in deciding),
        false_negatives=Suspects(2, 1, (Suspect("q", "y", ("b", "c"), 1.0, "x"), Suspect("q", "z", ("b",), 0.5, "x"))),
        mislabelled=Suspects(1, 1, (Suspect("q", "x", ("b", "c"), 0.9),)),
        verdict=AuditVerdict(("b",), "Distil b: it is <i>good</i>."),
        texts=Texts({"q": "<script>owls</script>"}, {"x": "<b>x</b>", "y": "why", "z": "last"}),
        seed=1,
        versions={"numpy": "2.4"},
    )


def test_the_audit_is_read_back_as_it_was_and_has_the_agreed_shape(tmp_path: Path, audit: Audit) -> None:
    write_audit(tmp_path, audit)
    assert read_audit(tmp_path) == audit
    found = json.loads((tmp_path / "teachers.json").read_text(encoding="utf-8"))
    assert {"unit", "mean", "pairs_per_second", "truncated", "agreement"} <= found["teachers"]["b"].keys()
    assert found["teachers"]["b"]["agreement"] == {"both": None}
    assert found["verdict"]["distil"] == ["b"]
    assert found["verdict"]["reason"] == audit.verdict.reason


def test_a_damaged_audit_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"teachers\.json: cannot be read"):
        read_audit(tmp_path)
    (tmp_path / "teachers.json").write_text('{"teachers": {}}', encoding="utf-8")
    with pytest.raises(DataError, match="not an audit of this version"):
        read_audit(tmp_path)


def test_the_page_loads_nothing_runs_nothing_and_escapes_what_users_wrote(tmp_path: Path, audit: Audit) -> None:
    page = write_audit(tmp_path, audit).read_text(encoding="utf-8")
    tags = tags_of(page)
    assert not {"script", "link", "img", "iframe", "i"} & {tag for tag, _ in tags}
    assert not [url for _, attributes in tags for name, url in attributes.items() if name in {"src", "href", "xlink:href"} and not str(url).startswith("#")]
    assert "&lt;script&gt;owls" in page
    assert "&lt;b&gt;x" in page
    assert "it is &lt;i&gt;good" in page
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_page_says_why_there_is_no_calibration(tmp_path: Path, audit: Audit) -> None:
    alone = dataclasses.replace(audit, teachers={"b": dataclasses.replace(teacher_findings(calibrated=False), agreement={}, overlap={})})
    page = write_audit(tmp_path, alone).read_text(encoding="utf-8")
    assert "Calibration cannot be told" in page
    assert "Do they agree?" not in page
    assert "Calibration cannot be told" not in write_audit(tmp_path, audit).read_text(encoding="utf-8")


def test_the_terminal_marks_what_beats_the_start(audit: Audit) -> None:
    console = Console(width=120, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(audit_table(audit))
    rows = {line.split()[1]: line for line in captured.get().splitlines() if line.startswith("│")}
    assert rows["b"].split()[3:] == ["0.700*", "│", "0.900*", "│", "23.1", "│", "4.2", "%", "│", "logit", "│"]
    assert "0.650 " in rows["bm25"]
    assert "* better than student_before" in captured.get()


# Directions


def both_ways(name: str, ranks: Mapping[str, int]) -> Run:
    """Each query's relevant document at a rank among three."""
    documents = {query: [f"{query}-{other}" for other in range(3)] for query in ranks}
    for query, rank in ranks.items():
        documents[query].insert(rank - 1, documents[query].pop(0))
    return Run.from_dict(name, {query: {doc_id: -float(place) for place, doc_id in enumerate(listed)} for query, listed in documents.items()})


def material_of(runs: Mapping[str, Run], ways: Mapping[str, list[str]], clusters: Mapping[str, str] | None = None) -> Material:
    qrels = {query: {f"{query}-0": 1} for queries in ways.values() for query in queries}
    evaluations = {name: evaluate(run, qrels, ["RR"]) for name, run in runs.items()}
    none = cast(Any, None)
    return Material(none, qrels, {}, ("t",), {}, None, "start", runs, evaluations, ("RR",), 1, ways, clusters)


def test_each_direction_is_measured_and_tested_alone_beside_both_together() -> None:
    texts, images = [f"t{number}" for number in range(12)], [f"i{number}" for number in range(6)]
    teacher = both_ways("t", {**dict.fromkeys(texts, 1), **dict.fromkeys(images, 2)})
    start = both_ways("start", {**dict.fromkeys(texts, 2), **dict.fromkeys(images, 2)})
    material = material_of({"t": teacher, "start": start}, {"text_to_image": texts, "image_to_text": images})
    found = {name: findings.mean["RR"] for name, findings in directions(material).items()}
    assert found == {"start.text_to_image": 0.5, "t.text_to_image": 1.0, "start.image_to_text": 0.5, "t.image_to_text": 0.5}
    assert directions(material)["t.text_to_image"].description == "text to image, 12 queries"
    assert directions(material)["t.text_to_image"].interval["RR"] == (1.0, 1.0)
    deciding, others = compare_all(material)
    assert [(one.run, one.baseline, one.queries) for one in deciding] == [("t", "start", 18)]
    assert {(one.run, one.baseline): (one.queries, one.difference) for one in others} == {
        ("t.text_to_image", "start.text_to_image"): (12, 0.5),
        ("t.image_to_text", "start.image_to_text"): (6, 0.0),
    }
    one_way = material_of({"t": teacher, "start": start}, {"": [*texts, *images]})
    assert directions(one_way) == {}
    assert compare_all(one_way)[1] == []


def test_captions_of_one_image_are_one_observation() -> None:
    captions = [f"t{number}" for number in range(20)]
    runs = {"t": both_ways("t", dict.fromkeys(captions, 1)), "start": both_ways("start", dict.fromkeys(captions, 2))}
    alone, together = (
        compare_all(material_of(runs, {"": captions}, clusters))[0][0].p_value
        for clusters in (None, {query: f"image{number // 5}" for number, query in enumerate(captions)})
    )
    assert alone < 0.001
    assert together >= 2 / 2**4  # four images: of sixteen sign patterns two are as extreme


def test_the_table_has_a_row_for_each_direction_and_marks_the_best_of_each(audit: Audit) -> None:
    rows = {name: BaselineFindings("text to image, 9 queries", {"nDCG@10": mean, "R@100": mean}, {"nDCG@10": (0.1, 0.2), "R@100": (0.1, 0.2)})
            for name, mean in (("student_before.text_to_image", 0.1), ("b.text_to_image", 0.2))}  # fmt: skip
    beats = Comparison("b.text_to_image", "student_before.text_to_image", "nDCG@10", 0.1, (0.05, 0.15), 0.001, 0.004, 9, 9, 0)
    even = dataclasses.replace(beats, measure="R@100", p_value=0.5, p_value_corrected=0.5)
    told = dataclasses.replace(audit, directions=rows, comparisons=(*audit.comparisons, beats, even))
    assert [told.best(name, "nDCG@10") for name in ("bm25", "b", "student_before.text_to_image", "b.text_to_image")] == [False, True, False, True]
    console = Console(width=140, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(audit_table(told))
    lines = {line.split()[1]: line.split() for line in captured.get().splitlines() if line.startswith("│")}
    assert lines["b.text_to_image"][3:6] == ["0.200*", "│", "0.200"]
    assert "text to image, 9 queries" in render_audit(told)


# The command


@pytest.fixture(scope="module")
def audited(finished_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """A copy of the finished experiment whose teachers were audited, and what the command said."""
    folder = shutil.copytree(finished_experiment, tmp_path_factory.mktemp("audited") / "copy")
    return folder, command("teachers", folder / "tiny.toml", "--work", folder / "work", "--json")


def test_the_command_prints_the_numbers_of_the_stored_scores(audited: tuple[Path, Said], shared_beir_folder: Path) -> None:
    folder, said = audited
    assert said.status == 0, said.err
    found = json.loads(said.out)
    assert list(found["teachers"]) == ["lexical", "embedding-student", "ensemble"]
    pipeline = Pipeline(read_experiment(folder / "tiny.toml"), folder / "work")
    _, held = pipeline.held_out
    qrels = read_qrels(shared_beir_folder / "qrels" / "train.tsv")
    for name, run in pipeline.target.runs("train").items():
        retrieved = {query_id: {doc_id for doc_id, _ in pipeline.candidates["train"][query_id]} for query_id in held}
        ranked = {query_id: {doc_id: score for doc_id, score in run[query_id] if doc_id in retrieved[query_id]} for query_id in held}
        means = evaluate(Run.from_dict(name, ranked), {query_id: qrels[query_id] for query_id in held}, ["nDCG@10", "AP"]).means
        assert found["teachers"][name]["mean"] == pytest.approx(means)
    assert found["queries"] == len(held) == 6
    assert found["teachers"]["lexical"]["agreement"].keys() == {"embedding-student", "ensemble"}
    assert found["teachers"]["ensemble"]["members"] == ["lexical", "embedding-student"]
    assert all(one["pairs_per_second"] > 0 for one in found["teachers"].values())


def test_a_teacher_that_is_the_baseline_gives_the_baselines_numbers(audited: tuple[Path, Said]) -> None:
    found = json.loads(audited[1].out)
    assert found["teachers"]["lexical"]["mean"] == pytest.approx(found["baselines"]["bm25"]["mean"])
    assert found["teachers"]["embedding-student"]["mean"] == pytest.approx(found["baselines"]["student_before"]["mean"])
    assert found["teachers"]["lexical"]["unit"] == "bm25"


def test_the_audit_is_not_repeated_and_never_reads_test_judgements(audited: tuple[Path, Said], shared_beir_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(audited[0], tmp_path / "copy")
    collection = shutil.copytree(shared_beir_folder, tmp_path / "collection")
    judged = collection / "qrels" / "test.tsv"
    judged.write_text(judged.read_text(encoding="utf-8").replace("\t2\n", "\t1\n"), encoding="utf-8")
    experiment = folder / "tiny.toml"
    experiment.write_text(experiment.read_text(encoding="utf-8").replace(str(shared_beir_folder), str(collection)), encoding="utf-8")
    manifest = folder / "work" / "tiny" / "teachers" / "manifest.json"
    before = manifest.stat().st_mtime_ns
    said = command("teachers", experiment, "--work", folder / "work")
    assert "teachers: unchanged" in said.err
    assert manifest.stat().st_mtime_ns == before
    assert "student_before" in said.out
    assert "teachers.html" in said.out


def test_the_audit_scores_the_held_out_lists_alone_and_stands_when_the_others_are_scored(finished_experiment: Path, tmp_path: Path) -> None:
    shutil.copy(finished_experiment / "tiny.toml", tmp_path / "tiny.toml")
    pipeline = Pipeline(read_experiment(tmp_path / "tiny.toml"), tmp_path / "work")
    said = command("teachers", tmp_path / "tiny.toml", "--work", tmp_path / "work", "--json")
    _, held = pipeline.held_out
    pairs = pipeline.pairs("train")
    queries = pipeline.queries("train")
    assert 0 < len(held) < len(pairs)
    for identity in pipeline.identities.values():
        assert pipeline.store.missing(identity, pairs, queries).n_pairs == pairs.n_pairs - pairs.select(held).n_pairs
    assert command("score", tmp_path / "tiny.toml", "--work", tmp_path / "work").status == 0
    manifest = tmp_path / "work" / "tiny" / "teachers" / "manifest.json"
    made = manifest.read_bytes()
    assert command("teachers", tmp_path / "tiny.toml", "--work", tmp_path / "work", "--json").out == said.out
    assert manifest.read_bytes() == made


def test_a_damaged_audit_is_made_again(audited: tuple[Path, Said], tmp_path: Path) -> None:
    folder = shutil.copytree(audited[0], tmp_path / "copy")
    (folder / "work" / "tiny" / "teachers" / "teachers.json").write_text("{", encoding="utf-8")
    said = command("teachers", folder / "tiny.toml", "--work", folder / "work", "--json")
    assert "teachers: again; damaged" in said.err
    assert json.loads(said.out)["verdict"] == json.loads(audited[1].out)["verdict"]


def test_teachers_may_be_called_as_the_baselines_are(finished_experiment: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished_experiment, tmp_path / "copy")
    said = command("teachers", folder / "tiny.toml", "--work", folder / "work", "--json", "--set", "teacher.0.name=bm25")
    found = json.loads(said.out)
    assert set(found["baselines"]) == {"bm25 (baseline)", "student_before"}
    assert found["teachers"]["bm25"]["mean"] == pytest.approx(found["baselines"]["bm25 (baseline)"]["mean"])


def test_a_cross_encoder_is_audited_with_its_tokens_and_joins_the_ensemble(finished_experiment: Path, tmp_path: Path, cross_encoder_folder: Path) -> None:
    folder = shutil.copytree(finished_experiment, tmp_path / "copy")
    experiment = folder / "tiny.toml"
    teacher = f'[[teacher]]\nkind = "cross_encoder"\nname = "reader"\nmodel = "{cross_encoder_folder}"\nmax_length = 28\n\n[student]\n'
    experiment.write_text(experiment.read_text(encoding="utf-8").replace("[student]\n", teacher), encoding="utf-8")
    said = command("teachers", experiment, "--work", folder / "work", "--json")
    found = json.loads(said.out)["teachers"]
    reader = found["reader"]
    assert (reader["kind"], reader["unit"]) == ("cross_encoder", "logit")
    assert 0 < reader["tokens"] <= 28
    assert 0 < reader["truncated"] < 1
    assert found["ensemble"]["members"] == ["lexical", "embedding-student", "reader"]
    assert found["ensemble"]["pairs_per_second"] < min(found[name]["pairs_per_second"] for name in ("lexical", "embedding-student", "reader"))
    assert set(reader["agreement"]) == {"lexical", "embedding-student", "ensemble"}


def test_a_fitted_ensemble_is_measured_by_fits_that_did_not_see_the_query(finished_experiment: Path, tmp_path: Path) -> None:
    """The step `ensemble` measures it so, and the audit reports the same number."""
    folder = shutil.copytree(finished_experiment, tmp_path / "copy")
    said = command("teachers", folder / "tiny.toml", "--work", folder / "work", "--json", "--set", "ensemble.normalise=calibration")
    measured = Pipeline(read_experiment(folder / "tiny.toml", ["ensemble.normalise=calibration"]), folder / "work").target.held_out
    found = json.loads(said.out)["teachers"]
    assert found["ensemble"]["unit"] == "log_odds"
    assert {name: one["mean"]["nDCG@10"] for name, one in found.items()} == pytest.approx(measured)
