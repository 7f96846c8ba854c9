"""Platt's fit and the temperature of a list: planted parameters, scipy's optimum, and what cannot be fitted."""

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax

from retriever.errors import DataError
from retriever.runs import Run
from retriever.scores.calibration import SHARPEST, Judged, fit_platt, fit_temperature, relevant_pairs


def lists_of(scores: np.ndarray, relevant: np.ndarray, size: int) -> Judged:
    return Judged(scores.astype(np.float32), np.arange(0, len(scores) + 1, size), relevant)


@pytest.mark.parametrize(("slope", "intercept"), [(1.5, -2.0), (0.02, -1.0), (-0.7, 0.3)])
def test_planted_log_odds_are_recovered(slope: float, intercept: float) -> None:
    generator = np.random.default_rng(1)
    scores = generator.normal(0, 1.5 / abs(slope), 200_000).astype(np.float32)
    relevant = generator.random(len(scores)) < 1 / (1 + np.exp(-(slope * scores.astype(np.float64) + intercept)))
    assert fit_platt(lists_of(scores, relevant, 100)) == pytest.approx((slope, intercept), rel=0.03)


def test_the_fit_is_the_optimum_that_scipy_finds() -> None:
    scores, relevant = np.array([3, 1, 2, 5, 4, 0, 7, -2], dtype=np.float32), np.array([1, 0, 0, 1, 0, 0, 1, 0], dtype=np.bool_)
    targets = np.where(relevant, 4 / 5, 1 / 7)  # 3 relevant, 5 others

    def loss(weights: np.ndarray) -> float:
        log_odds = weights[0] * scores + weights[1]
        return float((np.logaddexp(0, log_odds) - targets * log_odds).sum())

    expected = minimize(loss, [0, 0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 5000}).x
    assert fit_platt(lists_of(scores, relevant, 4)) == pytest.approx(tuple(expected), rel=1e-5)


def test_scores_that_do_not_overlap_leave_the_slope_finite() -> None:
    slope, intercept = fit_platt(lists_of(np.array([1, 2, 8, 9]), np.array([False, False, True, True]), 4))
    # targets 3/4 and 1/4: the log-odds are about log 3 above and -log 3 below, the middle is 5
    assert slope > 0
    assert slope * 5 + intercept == pytest.approx(0, abs=1e-9)
    assert slope * 8 + intercept == pytest.approx(np.log(3), rel=0.3)


def test_equal_scores_have_the_log_odds_of_their_share() -> None:
    slope, intercept = fit_platt(lists_of(np.full(4, 7.0), np.array([True, False, False, False]), 4))
    targets = [2 / 3, 1 / 5, 1 / 5, 1 / 5]
    share = sum(targets) / 4
    assert slope * 7 + intercept == pytest.approx(np.log(share / (1 - share)), rel=1e-6)


@pytest.mark.parametrize("relevant", [[True, True], [False, False]])
def test_one_kind_of_documents_alone_is_refused(relevant: list[bool]) -> None:
    with pytest.raises(DataError, match=r'both are needed. Use normalise = "z_score", which needs no qrels'):
        fit_platt(lists_of(np.array([1.0, 2.0]), np.array(relevant), 2))


# Temperature


def planted(temperature: float, queries: int = 20_000) -> Judged:
    """Lists of five whose one relevant document was drawn from their softmax at this temperature."""
    generator = np.random.default_rng(2)
    scores = generator.normal(0, 3, (queries, 5))
    chosen = (scores / temperature + generator.gumbel(size=scores.shape)).argmax(axis=1)
    return lists_of(scores.ravel(), (np.arange(5) == chosen[:, None]).ravel(), 5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_a_planted_temperature_is_recovered(temperature: float) -> None:
    assert fit_temperature(planted(temperature)) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_is_the_optimum_that_scipy_finds() -> None:
    generator = np.random.default_rng(3)
    scores = generator.normal(0, 2, 40).astype(np.float32)
    relevant = scores + generator.normal(0, 2, 40) > 1
    lists = lists_of(scores, relevant, 8)

    def loss(log_sharpness: float) -> float:
        return -sum(float(log_softmax(np.exp(log_sharpness) * scores[q : q + 8].astype(np.float64))[relevant[q : q + 8]].sum()) for q in range(0, 40, 8))

    expected = np.exp(-minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9}).x)
    assert fit_temperature(lists) == pytest.approx(expected, rel=1e-4)


def test_the_scale_of_a_teacher_scales_its_temperature() -> None:
    lists = planted(2.0, 500)
    scaled = Judged(lists.scores * 8, lists.offsets, lists.relevant)
    assert fit_temperature(scaled) == pytest.approx(8 * fit_temperature(lists), rel=1e-5)


def test_a_perfect_teacher_and_a_wrong_one_get_the_ends_of_the_range() -> None:
    scores = np.array([3.0, 1.0, 3.0, 1.0])  # deviation 1
    assert fit_temperature(lists_of(scores, np.array([True, False, True, False]), 2)) == pytest.approx(1 / SHARPEST, rel=1e-6)
    assert fit_temperature(lists_of(scores, np.array([False, True, False, True]), 2)) == pytest.approx(SHARPEST, rel=1e-6)


def test_without_a_relevant_document_there_is_no_temperature() -> None:
    with pytest.raises(DataError, match=r"Give teacher\.temperature"):
        fit_temperature(lists_of(np.array([1.0, 2.0]), np.array([False, False]), 2))


def test_relevant_pairs_are_those_with_a_grade_above_0() -> None:
    run = Run.from_dict("r", {"q1": {"a": 3, "b": 2, "c": 1}, "q2": {"a": 1}})
    assert relevant_pairs(run, {"q1": {"a": 2, "b": 0, "x": 1}}).tolist() == [True, False, False, False]
