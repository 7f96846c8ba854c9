"""What an ensemble is fitted to: planted mixtures, honest values, routes, and what falls back to the mean."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from retriever.runs import Run
from retriever.teachers._fitting import Fitted, JudgedLists, Member, fit_ensemble
from retriever.teachers._routing import features, fit_router
from retriever.teachers._weights import choose_row, clearly_above, out_of_fold, weight_grid
from retriever.teachers.ensemble import AlignedScores
from retriever.types import Query

SIZE = 30


def precision(relevant: np.ndarray, best: int = 5) -> Callable[[np.ndarray], np.ndarray]:
    """The share of relevant documents among each list's best five, of lists of thirty: a measure in two lines."""

    def measure(scores: np.ndarray) -> np.ndarray:
        order = np.argsort(-scores.reshape(-1, SIZE), axis=1, kind="stable")[:, :best]
        return np.take_along_axis(relevant.reshape(-1, SIZE), order, axis=1).mean(axis=1)

    return measure


def judged_lists(scores: np.ndarray, relevant: np.ndarray, words: list[int] | None = None) -> JudgedLists:
    """Lists of thirty documents: scores [T, n] of the teachers, sorted by the first as a run is."""
    queries = scores.shape[1] // SIZE
    order = np.concatenate([start + np.argsort(-scores[0, start : start + SIZE], kind="stable") for start in range(0, len(relevant), SIZE)])
    scores, relevant = scores[:, order].astype(np.float32), relevant[order]
    names = [f"q{number:03}" for number in range(queries)]
    pairs = Run.from_arrays("first", names, [SIZE] * queries, [f"d{place:02}" for _ in names for place in range(SIZE, 0, -1)], scores[0])
    assert pairs.scores.tolist() == scores[0].tolist()
    texts = {name: Query(name, " ".join(["word"] * count)) for name, count in zip(names, words or [3] * queries, strict=True)}
    return JudgedLists(AlignedScores(pairs, scores), list(scores), relevant, texts, np.arange(queries) % 5, precision(relevant))


def members(count: int, **settings: object) -> list[Member]:
    return [Member(f"t{number}", "logit", **{"view": "none", **settings}) for number in range(count)]  # type: ignore[arg-type]


def best_five(values: np.ndarray) -> np.ndarray:
    lists = values.reshape(-1, SIZE)
    return (lists >= np.sort(lists, axis=1)[:, [-5]]).ravel()


@pytest.mark.parametrize("planted", [(0.7, 0.3), (0.2, 0.8), (0.6, 0.3, 0.1)])
def test_a_planted_mixture_is_found(planted: tuple[float, ...]) -> None:
    scores = np.random.default_rng(1).normal(size=(len(planted), 100 * SIZE)).astype(np.float32)
    fitted = fit_ensemble("weighted_mean", members(len(planted)), judged_lists(scores, best_five(np.array(planted) @ scores)))
    assert fitted.ensemble.weights == pytest.approx(planted)
    assert fitted.values.mean() == pytest.approx(1, abs=0.01)
    assert fitted.notes["used"]
    assert fitted.notes["fitted_out_of_fold"] > fitted.notes["equal_weights"]


def test_weights_that_only_fit_noise_are_not_taken() -> None:
    generator = np.random.default_rng(2)
    lists = judged_lists(generator.normal(size=(2, 20 * SIZE)), generator.random(20 * SIZE) < 0.1)
    fitted = fit_ensemble("weighted_mean", members(2), lists)
    assert not fitted.notes["used"]
    assert fitted.ensemble.weights == (0.5, 0.5)


def test_given_weights_are_shares_and_nothing_is_fitted() -> None:
    lists = judged_lists(np.random.default_rng(3).normal(size=(2, 10 * SIZE)), np.zeros(10 * SIZE, dtype=np.bool_))
    fitted = fit_ensemble("weighted_mean", [Member("a", "logit", "none", weight=3.0), Member("b", "logit", "none", weight=1.0)], lists)
    assert (fitted.ensemble.weights, fitted.notes) == ((0.75, 0.25), {})


def test_the_honest_value_is_that_of_fits_to_the_other_folds() -> None:
    scores = np.random.default_rng(4).normal(size=(2, 50 * SIZE)).astype(np.float32)
    lists = judged_lists(scores, best_five(0.8 * scores[0] + 0.2 * scores[1]) & (np.random.default_rng(5).random(50 * SIZE) < 0.7))
    settings = members(2, view="calibration")
    found = fit_ensemble("mean", settings, lists)
    slow = np.zeros(50)
    for fold in range(5):
        keep = np.flatnonzero(lists.folds != fold)
        others = (keep[:, None] * SIZE + np.arange(SIZE)).ravel()
        part = JudgedLists(
            AlignedScores(lists.aligned.pairs.select([lists.aligned.pairs.query_ids[q] for q in keep]), lists.aligned.scores[:, others]),
            lists.every,
            lists.relevant[others],
            lists.queries,
            np.zeros(len(keep), dtype=np.int64),
            precision(lists.relevant[others]),
        )
        without = fit_ensemble("mean", settings, part).ensemble
        slow[lists.folds == fold] = lists.measure(without.apply(lists.aligned, lists.queries))[lists.folds == fold]
    assert found.values.tolist() == slow.tolist()


def test_a_combination_that_reads_no_qrels_is_measured_as_it_is() -> None:
    lists = judged_lists(np.random.default_rng(6).normal(size=(2, 10 * SIZE)), np.random.default_rng(7).random(10 * SIZE) < 0.2)
    for combine in ("mean", "reciprocal_rank"):
        fitted = fit_ensemble(combine, members(2, view="z_score"), lists)
        assert fitted.values.tolist() == lists.measure(fitted.ensemble.apply(lists.aligned, lists.queries)).tolist()


def test_temperatures_that_are_not_given_are_fitted() -> None:
    generator = np.random.default_rng(8)
    logits = generator.normal(0, 2, (400, SIZE))
    relevant = (np.arange(SIZE) == (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)[:, None]).ravel()
    lists = judged_lists(np.stack([logits.ravel(), 5 * logits.ravel()]), relevant)
    fitted = fit_ensemble("softmax_mean", members(2), lists).ensemble
    assert fitted.unit == "log_probability"
    assert fitted.temperatures == pytest.approx((1, 5), rel=0.1)
    given = [Member("a", "logit", "none", temperature=3.0), Member("b", "logit", "none")]
    assert fit_ensemble("softmax_mean", given, lists).ensemble.temperatures == (3.0, fitted.temperatures[1])


# Weights


def test_the_grid_holds_every_mixture_of_tenths_for_two_and_three_teachers() -> None:
    two = {tuple(point) for point in weight_grid(2).round(6).tolist()}
    assert two == {(tenth / 10, round(1 - tenth / 10, 6)) for tenth in range(11)}
    three = {tuple(point) for point in weight_grid(3).round(6).tolist()}
    assert len(three) == 67  # 66 of tenths and the equal one
    assert (0.6, 0.3, 0.1) in three


@pytest.mark.parametrize("teachers", [1, 2, 3, 4, 5, 8, 12, 200])
def test_a_grid_is_small_adds_up_to_1_and_begins_with_equal_weights(teachers: int) -> None:
    grid = weight_grid(teachers)
    assert len(grid) <= max(151, teachers + 1)
    assert grid.sum(axis=1) == pytest.approx(1)
    assert grid[0] == pytest.approx(1 / teachers)
    distances = ((grid - grid[0]) ** 2).sum(axis=1)
    assert (np.diff(distances) >= -1e-12).all()


def test_of_rows_as_good_the_first_is_taken() -> None:
    table = np.array([[0.1, 0.5], [0.3, 0.3], [0.2, 0.4]])
    assert choose_row(table, np.array([True, True])) == 0
    assert choose_row(table, np.array([True, False])) == 1


def test_values_out_of_fold_by_hand() -> None:
    table = np.array([[1.0, 0.0, 0.5, 9.0], [0.0, 1.0, 0.7, 9.0]])
    folds, use = np.array([0, 1, 2, 0]), np.array([True, True, True, False])
    # without query 0 row 1 is best (1.7 to 0.5), without 1 row 0 (1.5 to 0.7), without 2 both are as good: row 0
    assert out_of_fold(table, folds, use).tolist() == [0.0, 0.0, 0.5]


@pytest.mark.parametrize(("gains", "above"), [([1, 0, 1, 0], True), ([1, -1, 1, 0], False), ([0, 0], False), ([0.1, 0.1], True), ([5], False)])
def test_clearly_above_is_more_than_a_standard_error(gains: list[float], above: bool) -> None:
    # 1 0 1 0: mean 0.5, standard error 0.577 / 2; 1 -1 1 0: mean 0.25, standard error 0.957 / 2
    assert clearly_above(np.array(gains) + 7.0, np.full(len(gains), 7.0)) == above


# Routes


def test_features_by_hand() -> None:
    scores = np.array([[4, 2, 0, 7], [1, 2, 3, 7]], dtype=np.float32)
    length, spread, lead, agreement, other_spread, _, other_agreement = features(scores, np.array([0, 3, 4]), np.array([1, 0]))[0]
    assert length == pytest.approx(math.log(2))
    assert (spread, other_spread) == pytest.approx((math.sqrt(8 / 3), math.sqrt(2 / 3)))
    assert lead == pytest.approx(2 / math.sqrt(8 / 3))
    assert (agreement, other_agreement) == pytest.approx((-1, -1))
    assert features(scores, np.array([0, 3, 4]), np.array([1, 0]))[1].tolist() == [0] * 7  # a list of one


def by_length() -> JudgedLists:
    """Sixty queries: the first teacher is right for the long ones, the second for the short ones, and neither knows the other half."""
    generator = np.random.default_rng(9)
    scores = generator.normal(size=(2, 60 * SIZE))
    words = [20 if number % 2 else 2 for number in range(60)]
    right = np.where(np.repeat(words, SIZE) > 10, scores[0], scores[1])
    return judged_lists(scores, best_five(right), words)


def test_a_planted_route_is_found_and_beats_the_mean() -> None:
    fitted = fit_ensemble("routing", members(2, view="z_score"), by_length())
    assert fitted.notes["used"]
    assert fitted.values.mean() > 0.95 > fitted.notes["mean"]
    assert fitted.ensemble.router is not None


def test_routing_that_is_no_better_falls_back_to_the_mean() -> None:
    generator = np.random.default_rng(10)
    truth = generator.normal(size=40 * SIZE)
    lists = judged_lists(truth + generator.normal(size=(2, 40 * SIZE)), best_five(truth))
    fitted = fit_ensemble("routing", members(2, view="z_score"), lists)
    assert not fitted.notes["used"]
    assert fitted.ensemble.router is None
    mean = fit_ensemble("mean", members(2, view="z_score"), lists)
    assert fitted.ensemble.apply(lists.aligned, lists.queries).tolist() == mean.ensemble.apply(lists.aligned, lists.queries).tolist()


def test_a_router_without_anything_to_tell_by_expects_the_mean_gain_shrunk() -> None:
    router = fit_router(np.ones((30, 2)), np.tile([0.4, -0.2], (30, 1)))
    assert router.gains == pytest.approx((0.4 * 30 / 40, -0.2 * 30 / 40))
    assert router.choose(np.ones((3, 2))).tolist() == [1, 1, 1]


def test_a_routers_effects_are_those_of_a_ridge_regression() -> None:
    generator = np.random.default_rng(11)
    seen, gains = generator.normal(size=(25, 3)), generator.normal(size=(25, 2))
    standard = (seen - seen.mean(axis=0)) / seen.std(axis=0)
    padded, wanted = np.vstack([standard, math.sqrt(10) * np.eye(3)]), np.vstack([gains - gains.mean(axis=0), np.zeros((3, 2))])
    expected = np.linalg.lstsq(padded, wanted, rcond=None)[0].T
    assert np.array(fit_router(seen, gains).effects) == pytest.approx(expected)


@pytest.mark.parametrize("combine", ["mean", "weighted_mean", "softmax_mean", "reciprocal_rank", "routing"])
def test_a_fit_is_repeated_to_the_last_bit(combine: str) -> None:
    def fit() -> Fitted:
        return fit_ensemble(combine, members(2, view="calibration"), by_length())  # type: ignore[arg-type]

    first, second = fit(), fit()
    assert first.ensemble == second.ensemble
    assert first.values.tolist() == second.values.tolist()


def test_one_judged_query_is_enough_where_nothing_must_be_tested() -> None:
    scores = np.random.default_rng(12).normal(size=(2, SIZE))
    lists = judged_lists(scores, best_five(scores[0]))
    for combine, view in itertools.product(["mean", "weighted_mean", "softmax_mean", "routing"], ["z_score", "calibration"]):
        fitted = fit_ensemble(combine, members(2, view=view), lists)  # type: ignore[arg-type]
        assert fitted.ensemble.weights == (0.5, 0.5)
        assert fitted.ensemble.router is None
