"""Views of one teacher's scores: by hand, by property, and as they are fitted."""

import itertools
import json
import math
from dataclasses import asdict
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from retriever.scores.calibration import Judged
from retriever.scores.views import View, fit_view, log_softmax, min_max, minus_ranks, reciprocal_ranks, view_unit, z_scores
from retriever.types import Unit, ViewName

WHOLE = st.lists(st.lists(st.integers(-50, 50), max_size=8), min_size=1, max_size=5)


def flat(lists: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Scores [n] and offsets [Q + 1]."""
    return np.array([score for scores in lists for score in scores], dtype=np.float32), np.cumsum([0, *(len(scores) for scores in lists)])


def seen(view: View | ViewName, lists: list[list[float]]) -> list[list[float]]:
    """The lists through a view."""
    scores, offsets = flat(lists)
    view = view if isinstance(view, View) else View(view, "logit")
    values = view.apply(scores, offsets)
    assert values.dtype == np.float32
    return [values[start:end].tolist() for start, end in itertools.pairwise(offsets)]


def judged(lists: list[list[float]], relevant: list[list[int]]) -> Judged:
    scores, offsets = flat(lists)
    return Judged(scores, offsets, np.array([place in places for scores, places in zip(lists, relevant, strict=True) for place in range(len(scores))]))


def test_min_max_by_hand() -> None:
    assert seen("min_max", [[1, 3, 5], [7], [], [-2, -2]]) == [[0, 0.5, 1], [0], [], [0, 0]]


def test_ranks_by_hand_with_ties_in_the_middle_of_their_places() -> None:
    assert seen("rank", [[0.1, 9, 3], [], [5, 5, 7, 5]]) == [[-3, -1, -2], [], [-3, -3, -1, -3]]


def test_reciprocal_ranks_by_hand() -> None:
    assert seen("reciprocal_rank", [[2, 8]])[0] == pytest.approx([1 / 62, 1 / 61])
    assert seen("reciprocal_rank", [[4, 4]])[0] == pytest.approx([1 / 61.5] * 2)


def test_log_softmax_by_hand() -> None:
    scores, offsets = flat([[math.log(1), math.log(3)], [], [1000, 1000]])
    assert np.exp(log_softmax(scores, offsets)) == pytest.approx([0.25, 0.75, 0.5, 0.5], rel=1e-6)


@settings(deadline=None)
@given(lists=WHOLE)
def test_ranks_are_those_of_scipy(lists: list[list[float]]) -> None:
    expected = [(-rankdata([-score for score in scores])).tolist() if scores else [] for scores in lists]
    assert seen("rank", lists) == expected


@settings(deadline=None)
@given(lists=WHOLE, scale=st.sampled_from([0.25, 1.0, 8.0]), shift=st.integers(-64, 64))
def test_z_scores_and_min_max_do_not_change_with_a_teachers_scale_and_zero(lists: list[list[float]], scale: float, shift: int) -> None:
    moved = [[scale * score + shift for score in scores] for scores in lists]
    for name in ("z_score", "min_max"):
        for found, expected in zip(seen(name, moved), seen(name, lists), strict=True):
            assert found == pytest.approx(expected, abs=1e-5)


@settings(deadline=None)
@given(lists=WHOLE)
def test_ranks_do_not_change_under_a_monotone_map(lists: list[list[float]]) -> None:
    bent = [[math.exp(score / 10) + score**3 for score in scores] for scores in lists]
    assert seen("rank", bent) == seen("rank", lists)
    assert seen("reciprocal_rank", bent) == seen("reciprocal_rank", lists)


@settings(deadline=None)
@given(lists=WHOLE)
def test_a_view_of_a_list_is_the_same_whatever_stands_beside_it(lists: list[list[float]]) -> None:
    for name in ("z_score", "min_max", "rank", "reciprocal_rank"):
        assert seen(name, lists) == [seen(name, [scores])[0] for scores in lists]


@settings(deadline=None)
@given(lists=WHOLE, name=st.sampled_from(["none", "z_score", "min_max", "rank", "reciprocal_rank"]))
def test_no_view_of_lists_changes_their_order(lists: list[list[float]], name: ViewName) -> None:
    for found, scores in zip(seen(name, lists), lists, strict=True):
        assert all((a < b) == (c < d) for (a, c), (b, d) in itertools.combinations(zip(scores, found, strict=True), 2))


# Fitted


EVERY = np.array([2, 4, 4, 4, 5, 5, 7, 9], dtype=np.float32)  # mean 5, deviation 2
NOTHING = judged([[1.0]], [[]])


def test_standardised_has_the_mean_and_deviation_of_all_train_pairs_not_of_the_list() -> None:
    view = fit_view("standardised", "logit", EVERY, NOTHING)
    assert (view.slope, view.intercept, view.unit) == (0.5, -2.5, "standardised")
    assert seen(view, [[5, 7], [3]]) == [[0, 1], [-1]]


def test_a_teacher_that_always_says_the_same_is_standardised_to_zeros() -> None:
    assert seen(fit_view("standardised", "logit", np.full(5, 0.1, dtype=np.float32), NOTHING), [[0.1, 0.1]]) == [[0, 0]]


def test_a_given_temperature_divides_and_keeps_the_unit() -> None:
    view = fit_view("temperature", "cosine", EVERY, NOTHING, 0.5)
    assert (seen(view, [[1, -3]]), view.unit) == ([[2, -6]], "cosine")


def test_none_gives_the_scores_themselves() -> None:
    scores, offsets = flat([[0.1, 0.2]])
    assert fit_view("none", "dot", EVERY, NOTHING) == View("none", "dot")
    assert View("none", "dot").apply(scores, offsets) is scores


def test_calibration_is_affine_and_in_log_odds() -> None:
    view = fit_view("calibration", "bm25", EVERY, judged([[9, 2, 5], [6, 8, 1]], [[0, 2], [1]]))
    assert view.unit == "log_odds"
    (first, second, third), *_ = seen(view, [[0, 1, 2]])
    assert second - first == pytest.approx(third - second, rel=1e-5)
    assert view.slope > 0


def test_every_view_names_a_unit_that_exists() -> None:
    units = {name: view_unit(name, "logit") for name in get_args(ViewName)}
    assert set(units.values()) <= {one for part in get_args(Unit) for one in (get_args(part) or [part])}
    assert units == {
        "none": "logit",
        "z_score": "z_score",
        "standardised": "standardised",
        "min_max": "min_max",
        "rank": "rank",
        "reciprocal_rank": "reciprocal_rank",
        "calibration": "log_odds",
        "temperature": "logit",
    }


@given(slope=st.floats(allow_nan=False, allow_infinity=False), intercept=st.floats(allow_nan=False, allow_infinity=False))
def test_a_view_survives_json_to_the_last_bit(slope: float, intercept: float) -> None:
    view = View("calibration", "log_odds", slope, intercept)
    assert View(**json.loads(json.dumps(asdict(view)))) == view


def test_the_functions_are_those_of_the_views() -> None:
    scores, offsets = flat([[3, 1, 2], [5, 9]])
    for name, function in (("z_score", z_scores), ("min_max", min_max), ("rank", minus_ranks), ("reciprocal_rank", reciprocal_ranks)):
        assert View(name, "logit").apply(scores, offsets).tolist() == function(scores, offsets).tolist()
