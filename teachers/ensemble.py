"""Several teachers become one target: each seen through its view, then combined, over the same pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.config import Combination
from retriever.errors import ConfigError, StoreError
from retriever.runs import Run
from retriever.scores.views import View, log_softmax
from retriever.teachers._routing import Router, features
from retriever.types import Query, Unit


@dataclasses.dataclass(frozen=True, eq=False)
class AlignedScores:
    """What T teachers say of the same n pairs, in one order.

    Attributes:
        pairs: the pairs; its scores are the first teacher's.
        scores: float32 [T, n], raw.
    """

    pairs: Run
    scores: NDArray[np.float32]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> AlignedScores:
        """The scores of runs in the order of the first.

        Raises:
            StoreError: the runs do not score the same pairs.
        """
        return cls(runs[0], np.stack([_aligned(runs[0], run) for run in runs]))


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """A combination as it was fitted: what it needs to be applied to any scores of the same teachers.

    Attributes:
        combine: how.
        unit: of what it gives.
        views: [T], one a teacher.
        weights: [T], shares that add up to 1.
        temperatures: [T] under softmax_mean, otherwise empty.
        router: under routing, unless the mean turned out as good.
    """

    combine: Combination
    unit: Unit
    views: tuple[View, ...]
    weights: tuple[float, ...]
    temperatures: tuple[float, ...] = ()
    router: Router | None = None

    def apply(self, aligned: AlignedScores, queries: Mapping[str, Query]) -> NDArray[np.float64]:
        """The combined scores [n] of the pairs; the queries' texts are read by a router alone."""
        offsets = aligned.pairs.offsets
        seen = [view.apply(scores, offsets) for view, scores in zip(self.views, aligned.scores, strict=True)]
        if self.combine == "softmax_mean":
            return _softmax_mean(seen, self.weights, self.temperatures, offsets)
        mean = np.zeros(aligned.pairs.n_pairs, dtype=np.float64)
        for weight, scores in zip(self.weights, seen, strict=True):
            mean += weight * scores
        if self.router is None:
            return mean
        routes = self.router.choose(features(aligned.scores, offsets, words_of(aligned.pairs, queries)))[aligned.pairs.query_numbers]
        chosen: NDArray[np.float64] = np.stack([mean, *seen])[routes, np.arange(len(mean))]
        return chosen

    def run(self, name: str, aligned: AlignedScores, queries: Mapping[str, Query]) -> Run:
        """The pairs with the combined scores."""
        return aligned.pairs.with_scores(name, self.apply(aligned, queries))

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives the same ensemble, to the last bit of its numbers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Ensemble:
        """The ensemble that `to_json` wrote."""
        return cls(
            combine=values["combine"],
            unit=values["unit"],
            views=tuple(View(**view) for view in values["views"]),
            weights=tuple(values["weights"]),
            temperatures=tuple(values["temperatures"]),
            router=Router.from_json(values["router"]) if values["router"] else None,
        )


def combined_unit(combine: Combination, names: Sequence[str], units: Sequence[Unit]) -> Unit:
    """The unit that a combination gives of views in these units.

    Raises:
        ConfigError: scores of different units would be added up.
    """
    if combine == "softmax_mean":
        return "log_probability"
    if combine == "reciprocal_rank":
        return "reciprocal_rank"
    if len(set(units)) > 1:
        listed = ", ".join(f'"{name}" in "{unit}"' for name, unit in zip(names, units, strict=True))
        raise ConfigError(
            f'ensemble: {combine} cannot add up scores of different units: {listed}. Use ensemble.normalise = "z_score", '
            'or combine = "reciprocal_rank" or "softmax_mean", which mix any'
        )
    return units[0]


def mean_of_z_scores(name: str, runs: Sequence[Run], weights: Sequence[float]) -> Run:
    """The weighted mean of the runs' per-query z-scores; one run gives its own z-scores, and so its own ranking.

    Args:
        name: of the run that comes back.
        runs: each the same pairs, scored by another teacher.
        weights: one a run, above 0; their scale does not matter.

    Raises:
        StoreError: the runs do not score the same pairs.
    """
    views = tuple(View("z_score", "z_score") for _ in runs)
    return Ensemble("mean", "z_score", views, shares(weights)).run(name, AlignedScores.of(runs), {})


def shares(weights: Sequence[float]) -> tuple[float, ...]:
    """The weights divided by their sum."""
    return tuple(weight / sum(weights) for weight in weights)


def words_of(pairs: Run, queries: Mapping[str, Query]) -> NDArray[np.int64]:
    """[Q], words of each query's text."""
    return np.array([len(queries[query_id].text.split()) for query_id in pairs], dtype=np.int64)


def _softmax_mean(
    seen: Iterable[NDArray[np.float32]], weights: Sequence[float], temperatures: Sequence[float], offsets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The logarithm of the weighted mean of each teacher's softmax over the list (the mean after the softmax of MobileCLIP, arXiv:2311.17049)."""
    total = np.full(offsets[-1], -np.inf)
    for scores, weight, temperature in zip(seen, weights, temperatures, strict=True):
        np.logaddexp(total, np.log(weight) + log_softmax(scores.astype(np.float64) / temperature, offsets), out=total)
    return total


def _aligned(reference: Run, run: Run) -> NDArray[np.float32]:
    """The run's scores in the order of the reference's pairs."""
    if reference.query_ids != run.query_ids or not np.array_equal(reference.offsets, run.offsets):
        raise StoreError(f'ensemble: "{reference.name}" and "{run.name}" do not score the same pairs. Score both on the same candidates')
    by_document, wanted = np.argsort(_keys(run), kind="stable"), np.argsort(_keys(reference), kind="stable")
    if not np.array_equal(run.doc_ids[by_document], reference.doc_ids[wanted]):
        raise StoreError(f'ensemble: "{reference.name}" and "{run.name}" do not score the same documents. Score both on the same candidates')
    aligned = np.empty_like(run.scores)
    aligned[wanted] = run.scores[by_document]
    return aligned


def _keys(run: Run) -> NDArray[np.int64]:
    """[n], numbers that sort pairs by query, then by document id."""
    rank = np.empty(len(run.vocabulary), dtype=np.int64)
    rank[np.argsort(run.vocabulary)] = np.arange(len(run.vocabulary))
    return run.query_numbers * len(run.vocabulary) + rank[run.codes]
