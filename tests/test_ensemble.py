"""Several teachers as one: z-scores by hand and by property, alignment, weights, every combination, refusals."""

import itertools
import json
import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever.config import Combination
from retriever.errors import ConfigError, StoreError
from retriever.runs import Run
from retriever.scores.views import View, log_softmax, z_scores
from retriever.teachers._routing import Router
from retriever.teachers.ensemble import AlignedScores, Ensemble, combined_unit, mean_of_z_scores
from retriever.types import Query, ViewName

LISTS = st.lists(st.lists(st.floats(-1000, 1000, width=32), max_size=8), min_size=1, max_size=6)


def flat(lists: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Scores [n] and offsets [Q + 1]."""
    return np.array([score for scores in lists for score in scores], dtype=np.float32), np.cumsum([0, *(len(scores) for scores in lists)])


def z(lists: list[list[float]]) -> list[list[float]]:
    scores, offsets = flat(lists)
    values = z_scores(scores, offsets)
    return [values[start:end].tolist() for start, end in itertools.pairwise(offsets)]


def slow_z(scores: list[float]) -> list[float]:
    mean = math.fsum(scores) / len(scores)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    return [(score - mean) / deviation if len(set(scores)) > 1 else 0.0 for score in scores]


def test_z_scores_by_hand() -> None:
    # mean 4, standard deviation 2; then mean -1, standard deviation 3
    assert z([[2, 4, 4, 4, 5, 5, 7, 9], [2, -4]]) == [[-1.5, -0.5, -0.5, -0.5, 0, 0, 1, 2], [1, -1]]


@settings(deadline=None)
@given(lists=LISTS)
def test_z_scores_are_those_of_plain_loops(lists: list[list[float]]) -> None:
    for found, scores in zip(z(lists), lists, strict=True):
        exact = [float(np.float32(score)) for score in scores]
        expected = slow_z(exact) if exact else []
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4) or np.ptp(exact) <= 1e-8 * abs(np.mean(exact))


@settings(deadline=None)
@given(lists=LISTS)
def test_each_list_has_mean_0_and_deviation_1_or_is_all_zeros(lists: list[list[float]]) -> None:
    for values in map(np.array, z(lists)):
        if len(values) and values.any():
            assert values.mean() == pytest.approx(0, abs=1e-5)
            assert values.std() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("scores", [[5], [3, 3, 3], [0, 0], [0.1] * 7, [1e30] * 3, [-1e-30] * 3])
def test_a_constant_list_gives_zeros(scores: list[float]) -> None:
    assert z([[1, 2], scores])[1] == [0] * len(scores)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6])
def test_the_scale_of_a_teacher_does_not_matter(scale: float) -> None:
    scores = [3.0, -1, 7, 2]
    assert z([[scale * score for score in scores]])[0] == pytest.approx(z([scores])[0], rel=1e-5)


def test_lists_do_not_touch_each_other() -> None:
    assert z([[1, 2, 3], [], [1000, 2000]]) == [*z([[1, 2, 3]]), [], *z([[1000, 2000]])]
    assert z([[]]) == [[]]


# The mean


FIRST = Run.from_dict("first", {"q1": {"a": 9, "b": 5, "c": 1}, "q2": {"a": 1, "d": 3}})
SECOND = Run.from_dict("second", {"q1": {"c": 0.3, "a": 0.2, "b": 0.1}, "q2": {"d": -4, "a": -2}})


def test_one_teacher_alone_keeps_its_ranking() -> None:
    generator = np.random.default_rng(1)
    run = Run.from_dict("alone", {f"q{q}": {f"d{d}": float(score) for d, score in enumerate(generator.normal(8, 5, size=30))} for q in range(20)})
    alone = mean_of_z_scores("ensemble", [run], [0.3])
    assert alone.name == "ensemble"
    assert {query_id: list(documents) for query_id, documents in alone.to_dict().items()} == {
        query_id: list(documents) for query_id, documents in run.to_dict().items()
    }
    assert alone.scores.tolist() == z_scores(run.scores, run.offsets).tolist()


def test_pairs_in_another_order_are_aligned() -> None:
    high = math.sqrt(3 / 2)  # three scores one step apart: z is 1.2247, 0, -1.2247
    found = mean_of_z_scores("both", [FIRST, SECOND], [1, 1]).to_dict()
    assert found["q1"] == pytest.approx({"a": (high + 0) / 2, "b": (0 - high) / 2, "c": (-high + high) / 2}, abs=1e-6)
    assert found["q2"] == pytest.approx({"a": 0, "d": 0}, abs=1e-6)


def test_runs_of_other_vocabularies_are_aligned_by_id() -> None:
    padded = Run.from_dict("second", {"q0": {"0": 1, "bb": 2, "zz": 3}, "q1": SECOND.to_dict()["q1"], "q2": SECOND.to_dict()["q2"]}).select(["q1", "q2"])
    assert len(padded.vocabulary) > len(SECOND.vocabulary)
    assert mean_of_z_scores("both", [FIRST, padded], [1, 1]).to_dict() == mean_of_z_scores("both", [FIRST, SECOND], [1, 1]).to_dict()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_order_of_the_teachers_does_not_matter(seed: int) -> None:
    generator = np.random.default_rng(seed)
    lists = [{f"q{q}": {f"d{d}": float(generator.normal()) for d in generator.permutation(6)} for q in range(3)} for _ in range(3)]
    runs = [Run.from_dict(f"run{number}", scores) for number, scores in enumerate(lists)]
    forward = mean_of_z_scores("one", runs, [1, 2, 3]).to_dict()
    backward = mean_of_z_scores("other", runs[::-1], [3, 2, 1]).to_dict()
    for query_id, documents in forward.items():
        assert backward[query_id] == pytest.approx(documents, abs=1e-5)


def test_weights_are_shares() -> None:
    first, second = (mean_of_z_scores("alone", [run], [1]).to_dict() for run in (FIRST, SECOND))
    found = mean_of_z_scores("both", [FIRST, SECOND], [3, 1]).to_dict()
    for query_id, documents in found.items():
        assert documents == pytest.approx({d: 0.75 * first[query_id][d] + 0.25 * second[query_id][d] for d in documents}, abs=1e-6)
    assert found == mean_of_z_scores("both", [FIRST, SECOND], [30, 10]).to_dict()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"q1": {"a": 1, "b": 2, "c": 3}}, '"first" and "other" do not score the same pairs'),
        ({"q1": {"a": 1, "b": 2}, "q2": {"a": 1, "d": 2}}, "do not score the same pairs"),
        ({"q1": {"a": 1, "b": 2, "d": 3}, "q2": {"a": 1, "d": 2}}, "do not score the same documents"),
        ({"q1": {"a": 1, "b": 2, "c": 3}, "q3": {"a": 1, "d": 2}}, "do not score the same pairs"),
    ],
)
def test_runs_of_different_pairs_are_refused(other: dict[str, dict[str, float]], message: str) -> None:
    with pytest.raises(StoreError, match=message) as refusal:
        mean_of_z_scores("both", [FIRST, Run.from_dict("other", other)], [1, 1])
    assert str(refusal.value).endswith("Score both on the same candidates")


# Other combinations


QUERIES = {name: Query(name, f"what is {name}") for name in ("q1", "q2")}
ROUTER = Router(means=(1.0,) * 4, deviations=(2.0,) * 4, gains=(0.5,), effects=((0.1, -0.2, 0.3, 0.25),))


def ensemble(combine: Combination, *views: ViewName, weights: tuple[float, ...] | None = None, temperatures: tuple[float, ...] = ()) -> Ensemble:
    shares = weights or (1 / len(views),) * len(views)
    return Ensemble(combine, "z_score", tuple(View(view, "logit") for view in views), shares, temperatures)


def combined(one: Ensemble, *runs: Run) -> dict[str, dict[str, float]]:
    return one.run("ensemble", AlignedScores.of(runs), QUERIES).to_dict()


def test_aligned_scores_stand_in_the_order_of_the_first_run() -> None:
    aligned = AlignedScores.of([FIRST, SECOND])
    assert aligned.pairs.doc_ids.tolist() == ["a", "b", "c", "d", "a"]
    assert aligned.scores.tolist() == [[9, 5, 1, 3, 1], np.float32([0.2, 0.1, 0.3, -4, -2]).tolist()]


def test_a_mean_of_raw_scores_by_hand() -> None:
    assert combined(ensemble("mean", "none", "none"), FIRST, SECOND)["q2"] == {"d": -0.5, "a": -0.5}
    assert combined(ensemble("weighted_mean", "none", "none", weights=(0.75, 0.25)), FIRST, SECOND)["q2"] == {"d": 1.25, "a": 0.25}


def test_reciprocal_ranks_are_averaged_by_hand() -> None:
    found = combined(ensemble("reciprocal_rank", "reciprocal_rank", "reciprocal_rank"), FIRST, SECOND)
    # ranks in q1: a 1 and 2, b 2 and 3, c 3 and 1
    assert found["q1"] == pytest.approx({"a": (1 / 61 + 1 / 62) / 2, "c": (1 / 63 + 1 / 61) / 2, "b": (1 / 62 + 1 / 63) / 2}, rel=1e-6)
    assert list(found["q1"]) == ["a", "c", "b"]


def test_the_mean_after_the_softmax_by_hand() -> None:
    first = Run.from_dict("first", {"q1": {"a": 2 * math.log(3), "b": 0}})  # at temperature 2: shares 3/4 and 1/4
    second = Run.from_dict("second", {"q1": {"a": 0, "b": 5}, "q2": {}}).select(["q1"])
    even = Run.from_dict("even", {"q1": {"a": 4, "b": 4}})  # 1/2 and 1/2
    found = combined(ensemble("softmax_mean", "none", "none", temperatures=(2.0, 1.0)), first, even)["q1"]
    assert {d: math.exp(score) for d, score in found.items()} == pytest.approx({"a": 5 / 8, "b": 3 / 8}, rel=1e-6)
    sharp = combined(ensemble("softmax_mean", "none", "none", temperatures=(2.0, 1e-3)), first, second)["q1"]  # the second is sure of b
    assert {d: math.exp(score) for d, score in sharp.items()} == pytest.approx({"a": 3 / 8, "b": 5 / 8}, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), temperature=st.floats(0.1, 10))
def test_the_softmax_mean_of_one_teacher_is_its_log_softmax(seed: int, temperature: float) -> None:
    run = Run.from_dict("r", {"q1": {f"d{d}": float(score) for d, score in enumerate(np.random.default_rng(seed).normal(0, 3, 9))}})
    found = ensemble("softmax_mean", "none", temperatures=(temperature,)).apply(AlignedScores.of([run]), QUERIES)
    assert found == pytest.approx(log_softmax(run.scores.astype(np.float64) / temperature, run.offsets), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), combine=st.sampled_from(get_args(Combination)), view=st.sampled_from(["none", "z_score", "min_max", "rank"]))
def test_one_teacher_keeps_its_ranking_in_every_combination(seed: int, combine: Combination, view: ViewName) -> None:
    generator = np.random.default_rng(seed)
    run = Run.from_dict("r", {f"q{q}": {f"d{d}": int(score) for d, score in enumerate(generator.integers(-20, 20, size=12))} for q in (1, 2)})
    found = combined(ensemble(combine, view, temperatures=(1.5,)), run)
    assert {query_id: list(documents) for query_id, documents in found.items()} == {query_id: list(documents) for query_id, documents in run.to_dict().items()}


def test_routed_queries_take_one_teachers_scores_and_the_others_the_mean() -> None:
    # The router sees q1's first teacher agree with the second less than in q2: effects look at the agreement of teacher 0 (column 3) alone.
    gone = tuple(0.0 for _ in range(7))
    router = Router(means=gone, deviations=tuple(1.0 for _ in range(7)), gains=(0.0, -1.0), effects=((0, 0, 0, 1.0, 0, 0, 0), gone))
    routed = Ensemble("routing", "z_score", (View("z_score", "z_score"),) * 2, (0.5, 0.5), router=router)
    agreeing = Run.from_dict("agreeing", {"q1": {"c": 1.0, "a": 0.0, "b": 2.0}, "q2": {"d": 7, "a": 5}})  # q1: against FIRST, q2: with it
    found, alone = combined(routed, FIRST, agreeing), mean_of_z_scores("m", [FIRST], [1]).to_dict()
    assert found["q2"] == alone["q2"]
    assert found["q1"] == pytest.approx(mean_of_z_scores("m", [FIRST, agreeing], [1, 1]).to_dict()["q1"], abs=1e-6)


@pytest.mark.parametrize("combine", get_args(Combination))
def test_an_ensemble_survives_json_to_the_last_bit(combine: Combination) -> None:
    one = Ensemble(combine, "z_score", (View("calibration", "log_odds", 1 / 3, -0.1),), (1.0,), (0.7,), ROUTER if combine == "routing" else None)
    assert Ensemble.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_different_units_are_not_added_up_and_the_way_out_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        combined_unit("mean", ["bm25", "large"], ["bm25", "logit"])
    assert str(caught.value) == (
        'ensemble: mean cannot add up scores of different units: "bm25" in "bm25", "large" in "logit". '
        'Use ensemble.normalise = "z_score", or combine = "reciprocal_rank" or "softmax_mean", which mix any'
    )
    assert combined_unit("mean", ["a", "b"], ["log_odds", "log_odds"]) == "log_odds"
    assert combined_unit("softmax_mean", ["a", "b"], ["bm25", "logit"]) == "log_probability"
    assert combined_unit("reciprocal_rank", ["a", "b"], ["bm25", "rank"]) == "reciprocal_rank"
