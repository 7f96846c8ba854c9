"""Is a difference more than chance? Paired tests, a correction for several of them, intervals.

The test is the paired randomisation test, which Smucker, Allan and Carterette ("A comparison of statistical significance tests for information
retrieval evaluation", CIKM 2007) recommend for retrieval; the t-test beside it agrees with it closely for a few dozen queries and more.

Turns of one conversation are alike: they share a topic, and a system that misses it misses it several times. Where queries belong to
conversations, the conversation and not the turn is what is flipped and drawn (cluster randomisation; Davison and Hinkley, "Bootstrap methods
and their application", 1997, section 3.8, of whole clusters): otherwise p-values are too small and intervals too narrow.
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
Integers = NDArray[np.int64]
Clusters = Mapping[str, str]
"""Query id -> conversation; a query that is missing, or whose conversation is "", is a cluster of its own."""
NUMBERS_AT_ONCE = 4_000_000
LARGEST_EXACT = 16
"""With up to so many queries, or conversations, that differ, all 2^n sign patterns are counted instead of drawn."""


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
        clusters: how many conversations test and interval took as wholes; None where they took single queries.
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
    clusters: int | None = None


def generator_for(seed: int, *names: str) -> np.random.Generator:
    """A generator of its own for whatever the names name, so that another run in a report changes no other number."""
    return np.random.default_rng([seed, *(text_hash(name) for name in names)])


def randomisation_test(differences: Floats, generator: np.random.Generator, samples: int = 100_000) -> float:
    """The two-sided p-value of a paired randomisation (sign-flip) test of the mean difference (Smucker et al., CIKM 2007).

    If run and baseline were interchangeable, each query's difference could as well have the other sign. Of whole conversations it takes the sums
    over each one's queries (`sums_by`), so that all turns of a conversation change their sign together. The p-value is the share of sign patterns
    whose mean is at least as far from 0 as the one seen: all patterns where at most 16 queries differ, otherwise `samples` random ones together
    with the one seen, so that it is never 0. Queries without a difference change nothing and are left out.

    Args:
        differences: float64 [Q], run minus baseline per query; or [C], summed per conversation.
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
    means = np.concatenate([values[drawn].mean(axis=1) for drawn in _drawn(len(values), samples, generator)])
    return _middle(means, level)


def clustered_interval(values: Floats, numbers: Integers, generator: np.random.Generator, level: float = 0.95, samples: int = 10_000) -> tuple[float, float]:
    """The same over conversations: whole ones are drawn, and the mean is over all queries of those that were drawn, a ratio of sums.

    Args:
        values: float64 [Q], one per query.
        numbers: int64 [Q], the conversation of each query, as `cluster_numbers` gives them.
        generator: draws C conversations with replacement, `samples` times.
        level: the share of resampled means inside the interval.
        samples: how many resampled means.
    """
    sums, sizes = sums_by(values, numbers), np.bincount(numbers)
    means = [sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1) for drawn in _drawn(len(sums), samples, generator)]
    return _middle(np.concatenate(means), level)


def mean_interval(query_ids: Sequence[str], values: Floats, clusters: Clusters | None, generator: np.random.Generator) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean, by conversations where they are given and by queries where they are None."""
    if clusters is None:
        return bootstrap_interval(values, generator)
    return clustered_interval(values, cluster_numbers(query_ids, clusters), generator)


def cluster_numbers(query_ids: Sequence[str], clusters: Clusters) -> Integers:
    """Int64 [Q], the conversation of each query as a number from 0 to C - 1, in the order in which they first come."""
    numbers: dict[tuple[str, str], int] = {}
    keys = [("conversation", clusters[query_id]) if clusters.get(query_id) else ("query", query_id) for query_id in query_ids]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def sums_by(values: Floats, numbers: Integers) -> Floats:
    """Float64 [C], the sum over each conversation's queries; exactly 0 where they cancel on paper.

    Args:
        values: float64 [Q].
        numbers: int64 [Q], from 0 to C - 1.
    """
    sums = np.bincount(numbers, values).astype(np.float64, copy=False)
    sums[np.abs(sums) <= 1e-12 * np.bincount(numbers, np.abs(values))] = 0.0
    return sums


def compare(
    evaluations: Mapping[str, Evaluation], pairs: Sequence[tuple[str, str]], measures: Sequence[str], seed: int, clusters: Clusters | None = None
) -> list[Comparison]:
    """Every (run, baseline) pair in every measure, with Holm's correction over all of them together.

    Args:
        evaluations: run name -> its evaluation; all under the same qrels.
        pairs: (run, baseline) names.
        measures: as text, each present in every evaluation of a pair.
        seed: of the sign patterns and bootstrap samples.
        clusters: the queries' conversations, which tests and intervals then take as wholes; None takes single queries.

    Raises:
        DataError: a pair names an unknown run, or two runs were evaluated on different queries or without the measure.
    """
    compared = [_compare_one(evaluations, run, baseline, measure, seed, clusters) for run, baseline in pairs for measure in measures]
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


def _compare_one(evaluations: Mapping[str, Evaluation], run: str, baseline: str, measure: str, seed: int, clusters: Clusters | None) -> Comparison:
    for name in (run, baseline):
        if name not in evaluations:
            raise DataError(f'there is no run "{name}" to compare; the runs are {", ".join(evaluations)}')
    differences, query_ids = differences_between(evaluations[run], evaluations[baseline], measure), evaluations[run].query_ids
    tested = differences if clusters is None else sums_by(differences, cluster_numbers(query_ids, clusters))
    generator = generator_for(seed, "comparison", run, baseline, measure)
    p_value = randomisation_test(tested, generator)
    return Comparison(
        run=run,
        baseline=baseline,
        measure=measure,
        difference=float(differences.mean()),
        interval=mean_interval(query_ids, differences, clusters, generator),
        p_value=p_value,
        p_value_corrected=p_value,
        queries=len(differences),
        better=int((differences > 0).sum()),
        worse=int((differences < 0).sum()),
        clusters=None if clusters is None else len(tested),
    )


def _drawn(n: int, samples: int, generator: np.random.Generator) -> Iterator[Integers]:
    """`samples` rows of n numbers below n, in blocks that fit in memory."""
    rows = max(1, NUMBERS_AT_ONCE // n)
    for start in range(0, samples, rows):
        yield generator.integers(0, n, (min(rows, samples - start), n))


def _middle(means: Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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
