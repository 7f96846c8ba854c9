"""Tests of the tests: against scipy, and by hand where a handful of queries allows it."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever.errors import DataError
from retriever.eval.measures import Evaluation
from retriever.eval.significance import (
    bootstrap_interval,
    cluster_numbers,
    clustered_interval,
    compare,
    generator_for,
    holm,
    randomisation_test,
    sums_by,
    t_test,
)


def numbers(*values: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array(values, dtype=np.float64)


def evaluation(run: str, *values: float, measure: str = "RR") -> Evaluation:
    return Evaluation(run, tuple(f"q{number}" for number in range(len(values))), {measure: numbers(*values)})


def test_three_gains_of_one_size_leave_two_of_eight_sign_patterns() -> None:
    assert randomisation_test(numbers(0.5, 0.5, 0.5), np.random.default_rng(1)) == 2 / 8


def test_the_exact_test_counts_patterns_as_far_from_zero_as_the_one_seen() -> None:
    # |±1 ±2 ±4| takes the values 7, 5, 3, 1 twice each; seen: 1 + 4 - 2 = 3, so six of the eight patterns are as far.
    assert randomisation_test(numbers(1, -2, 4), np.random.default_rng(1)) == 6 / 8


def test_queries_without_a_difference_change_no_p_value() -> None:
    assert randomisation_test(numbers(0, 1, -2, 0, 4, 0), np.random.default_rng(1)) == 6 / 8


def test_equal_runs_have_p_value_one() -> None:
    assert randomisation_test(np.zeros(50), np.random.default_rng(1)) == 1
    assert t_test(np.zeros(50)) == 1


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=9))
def test_the_exact_test_is_scipys(differences: list[int]) -> None:
    found = randomisation_test(numbers(*differences), np.random.default_rng(1))
    expected = scipy.stats.permutation_test((numbers(*differences),), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert found == pytest.approx(expected.pvalue, abs=1e-12)


def test_drawn_sign_patterns_come_close_to_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(5).normal(0.25, 1, 14)
    exact = randomisation_test(differences, np.random.default_rng(1))
    monkeypatch.setattr("retriever.eval.significance.LARGEST_EXACT", 0)
    drawn = randomisation_test(differences, np.random.default_rng(1), samples=50_000)
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 50_000))


def test_a_drawn_p_value_is_never_zero() -> None:
    assert randomisation_test(np.ones(200), np.random.default_rng(1), samples=999) == 1 / 1000


def test_sign_patterns_in_blocks_are_as_many_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retriever.eval.significance.NUMBERS_AT_ONCE", 100)
    assert randomisation_test(np.ones(40), np.random.default_rng(1), samples=999) == 1 / 1000


def test_under_the_null_hypothesis_p_values_are_uniform() -> None:
    generator = np.random.default_rng(3)
    p_values = [randomisation_test(generator.normal(size=30), generator, samples=500) for _ in range(300)]
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 0.01


@pytest.mark.parametrize("n", [2, 5, 300])
def test_the_t_test_is_scipys(n: int) -> None:
    generator = np.random.default_rng(n)
    run, baseline = generator.random(n), generator.random(n)
    assert t_test(run - baseline) == pytest.approx(scipy.stats.ttest_rel(run, baseline).pvalue, rel=1e-9)


def test_one_query_decides_nothing() -> None:
    assert t_test(numbers(0.7)) == 1
    assert randomisation_test(numbers(0.7), np.random.default_rng(1)) == 1


def test_holms_correction_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


def test_the_bootstrap_interval_is_close_to_scipys() -> None:
    values = np.random.default_rng(2).beta(0.5, 0.5, 200)
    low, high = bootstrap_interval(values, np.random.default_rng(1))
    expected = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(4)).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.003)
    normal = 1.96 * values.std() / np.sqrt(200)
    assert (low, high) == pytest.approx((values.mean() - normal, values.mean() + normal), abs=0.003)


def test_the_bootstrap_interval_does_not_depend_on_the_size_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).random(30)
    whole = bootstrap_interval(values, np.random.default_rng(1), samples=500)
    monkeypatch.setattr("retriever.eval.significance.NUMBERS_AT_ONCE", 100)
    assert bootstrap_interval(values, np.random.default_rng(1), samples=500) == whole


def test_equal_values_have_an_interval_without_width() -> None:
    assert bootstrap_interval(numbers(0.25, 0.25, 0.25), np.random.default_rng(1)) == (0.25, 0.25)


def test_a_comparison_says_what_differs() -> None:
    runs = {"student": evaluation("student", 1, 1, 0.5, 0), "bm25": evaluation("bm25", 0.5, 0.5, 0.5, 0.25)}
    (found,) = compare(runs, [("student", "bm25")], ["RR"], seed=1)
    assert (found.run, found.baseline, found.measure, found.queries, found.better, found.worse) == ("student", "bm25", "RR", 4, 2, 1)
    assert found.difference == pytest.approx(0.75 / 4)
    assert found.interval[0] <= found.difference <= found.interval[1]
    assert found.p_value == found.p_value_corrected == 4 / 8  # |±.5 ±.5 ±.25|: only 1.25 and 0.75 are as far as 0.75, twice each


def test_several_comparisons_are_corrected_together() -> None:
    generator = np.random.default_rng(1)
    runs = {name: evaluation(name, *generator.random(40) + gain) for name, gain in [("a", 0.2), ("b", 0.1), ("c", 0)]}
    compared = compare(runs, [("a", "c"), ("b", "c"), ("a", "b")], ["RR"], seed=1)
    assert [comparison.p_value_corrected for comparison in compared] == holm([comparison.p_value for comparison in compared])


def test_another_comparison_leaves_uncorrected_p_values_and_intervals_as_they_were() -> None:
    generator = np.random.default_rng(1)
    runs = {name: evaluation(name, *generator.random(40)) for name in ("a", "b", "c")}
    alone = compare(runs, [("a", "c")], ["RR"], seed=1)[0]
    among = compare(runs, [("b", "c"), ("a", "c")], ["RR"], seed=1)[1]
    assert (alone.p_value, alone.interval) == (among.p_value, among.interval)
    assert generator_for(1, "a").random() != generator_for(2, "a").random()


def test_runs_of_different_queries_are_not_compared() -> None:
    with pytest.raises(DataError, match="different queries"):
        compare({"a": evaluation("a", 1, 0), "b": evaluation("b", 1)}, [("a", "b")], ["RR"], seed=1)


def test_a_run_or_measure_that_is_not_there_is_named() -> None:
    runs = {"a": evaluation("a", 1, 0), "b": evaluation("b", 1, 1)}
    with pytest.raises(DataError, match='no run "c" to compare; the runs are a, b'):
        compare(runs, [("a", "c")], ["RR"], seed=1)
    with pytest.raises(DataError, match="not evaluated with AP, only with RR"):
        compare(runs, [("a", "b")], ["AP"], seed=1)


def clustered(*sizes: int) -> tuple[list[str], dict[str, str]]:
    """Query ids q0, q1, ... and their conversations c0, c1, ... of these sizes."""
    conversations = [f"c{number}" for number, size in enumerate(sizes) for _ in range(size)]
    query_ids = [f"q{number}" for number in range(len(conversations))]
    return query_ids, dict(zip(query_ids, conversations, strict=True))


def all_flips(differences: Sequence[float], conversations: Sequence[str]) -> float:
    """The p-value from every way to change the signs of whole conversations, one loop after the other."""
    names = list(dict.fromkeys(conversations))
    seen = abs(sum(differences))
    sums = []
    for signs in itertools.product([1, -1], repeat=len(names)):
        sign_of = dict(zip(names, signs, strict=True))
        sums.append(abs(sum(sign_of[name] * difference for name, difference in zip(conversations, differences, strict=True))))
    return sum(found >= seen - 1e-9 for found in sums) / len(sums)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.sampled_from("abcde")), min_size=1, max_size=12))
def test_the_clustered_test_counts_every_flip_of_whole_conversations(turns: list[tuple[int, str]]) -> None:
    differences, conversations = [difference / 8 for difference, _ in turns], [conversation for _, conversation in turns]
    query_ids = [f"q{number}" for number in range(len(turns))]
    numbered = cluster_numbers(query_ids, dict(zip(query_ids, conversations, strict=True)))
    found = randomisation_test(sums_by(numbers(*differences), numbered), np.random.default_rng(1))
    assert found == pytest.approx(all_flips(differences, conversations), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=10))
def test_turns_that_always_differ_by_the_same_count_as_one_conversation_each(differences: list[int]) -> None:
    ids, clusters = clustered(*[3] * len(differences))
    repeated = np.repeat(numbers(*differences), 3)
    whole = randomisation_test(sums_by(repeated, cluster_numbers(ids, clusters)), np.random.default_rng(1))
    assert whole == randomisation_test(numbers(*differences), np.random.default_rng(1))


def test_queries_outside_conversations_are_conversations_of_their_own() -> None:
    clusters = {"q0": "a", "q1": "", "q3": "a", "q4": "q2"}
    assert cluster_numbers([f"q{number}" for number in range(6)], clusters).tolist() == [0, 1, 2, 0, 3, 4]


def test_a_conversation_whose_turns_cancel_decides_nothing() -> None:
    assert sums_by(numbers(0.3, -0.1, -0.2, 0.5), np.array([0, 0, 0, 1])).tolist() == [0, 0.5]


def test_one_query_a_conversation_is_as_without_conversations() -> None:
    generator = np.random.default_rng(1)
    runs = {name: evaluation(name, *generator.random(30)) for name in ("a", "b")}
    (single,) = compare(runs, [("a", "b")], ["RR"], seed=1)
    for clusters in ({}, {f"q{number}": f"c{number}" for number in range(30)}):
        (found,) = compare(runs, [("a", "b")], ["RR"], seed=1, clusters=clusters)
        assert (found.p_value, found.clusters, single.clusters) == (single.p_value, 30, None)
        assert found.interval == pytest.approx(single.interval, abs=1e-12)


def test_many_turns_of_few_conversations_prove_less_than_they_seem_to() -> None:
    # Sums of 7.5, 5, 2.5 and -1.25: only all plus or the last one minus is as far, on both sides: 4 of 16 flips.
    _, clusters = clustered(25, 25, 25, 25)
    better = np.repeat([0.3, 0.2, 0.1, -0.05], 25)
    runs = {"a": evaluation("a", *(0.5 + better)), "b": evaluation("b", *np.full(100, 0.5))}
    (single,) = compare(runs, [("a", "b")], ["RR"], seed=1)
    (whole,) = compare(runs, [("a", "b")], ["RR"], seed=1, clusters=clusters)
    assert single.p_value < 0.001
    assert (whole.p_value, whole.clusters, whole.queries, whole.better, whole.worse) == (4 / 16, 4, 100, 75, 25)
    assert whole.difference == single.difference
    assert whole.interval[0] < 0.02
    assert single.interval[0] > 0.1


def test_the_interval_over_conversations_is_that_of_every_way_to_draw_them() -> None:
    # Sums 3, 0, 1 of sizes 3, 2, 1, drawn three times: the mean is over all queries drawn, so that long conversations weigh more.
    sums, sizes = numbers(3, 0, 1), numbers(3, 2, 1)
    every = [sums[list(drawn)].sum() / sizes[list(drawn)].sum() for drawn in itertools.product(range(3), repeat=3)]
    low, high = clustered_interval(numbers(1, 1, 1, 0, 0, 1), np.array([0, 0, 0, 1, 1, 2]), np.random.default_rng(1))
    assert (low, high) == pytest.approx(tuple(np.quantile(every, [0.025, 0.975], method="inverted_cdf")), abs=1e-12)
    middle = clustered_interval(numbers(1, 1, 1, 0, 0, 1), np.array([0, 0, 0, 1, 1, 2]), np.random.default_rng(1), level=0.5)
    assert middle == pytest.approx(tuple(np.quantile(every, [0.25, 0.75], method="inverted_cdf")), abs=1e-12)


def test_equal_conversations_leave_no_doubt_however_much_their_turns_differ() -> None:
    values = np.tile([0.0, 0.5, 1.0], 5)
    ids, clusters = clustered(3, 3, 3, 3, 3)
    assert clustered_interval(values, cluster_numbers(ids, clusters), np.random.default_rng(1)) == (0.5, 0.5)
