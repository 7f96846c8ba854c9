"""Is a difference more than chance? Paired tests, a correction for several of them, intervals.

The test is the paired randomisation test, which Smucker, Allan and Carterette ("A comparison of statistical significance tests for information
retrieval evaluation", CIKM 2007) recommend for retrieval; the t-test beside it agrees with it closely for a few dozen queries and more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from retriever.errors import DataError
from retriever.eval.measures import Evaluation
from retriever.files import text_hash

Floats = NDArray[np.float64]
NUMBERS_AT_ONCE = 4_000_000
LARGEST_EXACT = 16
"""With up to so many queries that differ, all 2^n sign patterns are counted instead of drawn."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A run against a baseline in one measure, query by query.

    Attributes:
        run: the run's name.
        baseline: the other run's name.
        measure: as text, for example "nDCG@10".
        difference: mean of the run minus mean of the baseline.
        interval: 95 % bootstrap interval of the difference.
        p_value: of the two-sided paired randomisation test, uncorrected.
        p_value_corrected: after Holm's correction over all comparisons that were made together.
        queries: how many there are; `better` and `worse` of them differ, the others are equal.
    """

    run: str
    baseline: str
    measure: str
    difference: float
    interval: tuple[float, float]
    p_value: float
    p_value_corrected: float
    queries: int
    better: int
    worse: int


def generator_for(seed: int, *names: str) -> np.random.Generator:
    """A generator of its own for whatever the names name, so that another run in a report changes no other number."""
    return np.random.default_rng([seed, *(text_hash(name) for name in names)])


def randomisation_test(differences: Floats, generator: np.random.Generator, samples: int = 100_000) -> float:
    """The two-sided p-value of a paired randomisation (sign-flip) test of the mean difference (Smucker et al., CIKM 2007).

    If run and baseline were interchangeable, each query's difference could as well have the other sign. The p-value is the share of sign patterns
    whose mean is at least as far from 0 as the one seen: all patterns where at most 16 queries differ, otherwise `samples` random ones together
    with the one seen, so that it is never 0. Queries without a difference change nothing and are left out.

    Args:
        differences: float64 [Q], run minus baseline per query.
        generator: draws the signs.
        samples: how many patterns are drawn.
    """
    moved = differences[differences != 0]
    if len(moved) == 0:
        return 1.0
    seen = abs(moved.sum()) - 1e-12 * np.abs(moved).sum()  # sums that are equal on paper count as equal
    if len(moved) <= LARGEST_EXACT:
        return float((np.abs(_signs(len(moved)) @ moved) >= seen).mean())
    as_far = sum(int((np.abs(sums) >= seen).sum()) for sums in _random_sums(moved, samples, generator))
    return (as_far + 1) / (samples + 1)


def t_test(differences: Floats) -> float:
    """The two-sided p-value of Student's paired t-test of the mean difference; 1 where a single query or no difference decides nothing.

    Args:
        differences: float64 [Q], run minus baseline per query.
    """
    from scipy.special import stdtr

    n = len(differences)
    if n < 2 or not differences.any():
        return 1.0
    deviation = differences.std(ddof=1)
    if deviation == 0:
        return 0.0
    t = differences.mean() / (deviation / math.sqrt(n))
    return float(2 * stdtr(n - 1, -abs(t)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for being several, in the order given (Holm, "A simple sequentially rejective multiple test procedure", 1979).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none comes out smaller than the one before it, none above 1. Rejecting
    where the result is below 0.05 keeps the chance of any false finding below 0.05, whatever depends on what.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for step, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[place]))
        corrected[place] = largest
    return corrected


def bootstrap_interval(values: Floats, generator: np.random.Generator, level: float = 0.95, samples: int = 10_000) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean over queries (Efron 1979; Sakai, SIGIR 2006, for retrieval).

    Args:
        values: float64 [Q], one per query.
        generator: draws Q queries with replacement, `samples` times.
        level: the share of resampled means inside the interval.
        samples: how many resampled means.
    """
    rows = max(1, NUMBERS_AT_ONCE // len(values))
    sizes = [min(rows, samples - start) for start in range(0, samples, rows)]
    means = np.concatenate([values[generator.integers(0, len(values), (size, len(values)))].mean(axis=1) for size in sizes])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def compare(evaluations: Mapping[str, Evaluation], pairs: Sequence[tuple[str, str]], measures: Sequence[str], seed: int) -> list[Comparison]:
    """Every (run, baseline) pair in every measure, with Holm's correction over all of them together.

    Args:
        evaluations: run name -> its evaluation; all under the same qrels.
        pairs: (run, baseline) names.
        measures: as text, each present in every evaluation of a pair.
        seed: of the sign patterns and bootstrap samples.

    Raises:
        DataError: a pair names an unknown run, or two runs were evaluated on different queries or without the measure.
    """
    compared = [_compare_one(evaluations, run, baseline, measure, seed) for run, baseline in pairs for measure in measures]
    corrected = holm([comparison.p_value for comparison in compared])
    return [dataclasses.replace(comparison, p_value_corrected=p_value) for comparison, p_value in zip(compared, corrected, strict=True)]


def differences_between(run: Evaluation, baseline: Evaluation, measure: str) -> Floats:
    """Run minus baseline, float64 [Q], query by query.

    Raises:
        DataError: the two were evaluated on different queries, or one without the measure.
    """
    if run.query_ids != baseline.query_ids:
        raise DataError(f'runs "{run.run}" and "{baseline.run}" were evaluated on different queries and cannot be compared. Evaluate both with the same qrels')
    for evaluation in (run, baseline):
        if measure not in evaluation.values:
            raise DataError(
                f'run "{evaluation.run}" was not evaluated with {measure}, only with {", ".join(evaluation.values)}. Evaluate it again with this measure'
            )
    return run.values[measure] - baseline.values[measure]


def _compare_one(evaluations: Mapping[str, Evaluation], run: str, baseline: str, measure: str, seed: int) -> Comparison:
    for name in (run, baseline):
        if name not in evaluations:
            raise DataError(f'there is no run "{name}" to compare; the runs are {", ".join(evaluations)}')
    differences = differences_between(evaluations[run], evaluations[baseline], measure)
    generator = generator_for(seed, "comparison", run, baseline, measure)
    p_value = randomisation_test(differences, generator)
    return Comparison(
        run=run,
        baseline=baseline,
        measure=measure,
        difference=float(differences.mean()),
        interval=bootstrap_interval(differences, generator),
        p_value=p_value,
        p_value_corrected=p_value,
        queries=len(differences),
        better=int((differences > 0).sum()),
        worse=int((differences < 0).sum()),
    )


def _signs(n: int) -> Floats:
    """All patterns of n signs, [2^n, n]."""
    bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    return np.where(bits == 1, -1.0, 1.0)


def _random_sums(values: Floats, samples: int, generator: np.random.Generator) -> Iterator[Floats]:
    """Sums of `values` [n] under random signs, `samples` of them in blocks that fit in memory.

    A random byte gives the signs of eight values at once: the 256 sums of each eight are looked up, which is ten times faster than adding.
    """
    groups = -(-len(values) // 8)
    padded = np.zeros(8 * groups)
    padded[: len(values)] = values
    sums_of_eight = padded.reshape(groups, 8) @ _signs(8).T  # [groups, 256]
    rows = max(1, NUMBERS_AT_ONCE // groups)
    for start in range(0, samples, rows):
        size = min(rows, samples - start)
        patterns = np.frombuffer(generator.bytes(size * groups), dtype=np.uint8).reshape(size, groups)
        yield sums_of_eight[np.arange(groups), patterns].sum(axis=1)
