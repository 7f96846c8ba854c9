"""Fits an ensemble to judged queries, and says honestly what it is worth on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.config import Combination
from retriever.scores.calibration import Judged, fit_temperature
from retriever.scores.views import READS_QRELS, Scores, View, fit_view
from retriever.teachers._routing import Router, features, fit_router
from retriever.teachers._weights import choose_row, clearly_above, out_of_fold, weight_grid
from retriever.teachers.ensemble import AlignedScores, Ensemble, combined_unit, shares, words_of
from retriever.types import Query, Unit, ViewName

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Member:
    """A teacher as the ensemble takes it.

    Attributes:
        name: what reports call it.
        unit: of its raw scores.
        view: how it is normalised.
        temperature: of the view "temperature" and of softmax_mean; fitted when left out.
        weight: fitted under weighted_mean when left out, 1 otherwise.
    """

    name: str
    unit: Unit
    view: ViewName
    temperature: float | None = None
    weight: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class JudgedLists:
    """What an ensemble of T teachers is fitted on: held-out train queries, that no teacher was taught with.

    Attributes:
        aligned: the teachers' scores of their n pairs.
        every: [T] arrays, each teacher's scores of all train pairs; no qrels go with them.
        relevant: bool [n].
        queries: query id -> query.
        folds: int64 [Q]; what is fitted on some folds is measured on the others.
        measure: scores [n] -> what they are worth for each query, [Q].
    """

    aligned: AlignedScores
    every: Sequence[Scores]
    relevant: NDArray[np.bool_]
    queries: Mapping[str, Query]
    folds: NDArray[np.int64]
    measure: Callable[[Floats], Floats]

    def judged(self, scores: Scores, use: NDArray[np.bool_]) -> Judged:
        """One teacher's scores [n] of the queries in `use` [Q]."""
        pairs = use[self.aligned.pairs.query_numbers]
        offsets = np.concatenate([[0], np.cumsum(self.aligned.pairs.counts[use])]).astype(np.int64)
        return Judged(scores[pairs], offsets, self.relevant[pairs])


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """An ensemble fitted to all judged queries.

    Attributes:
        ensemble: ready to be applied.
        scores: [n], what it says of the judged lists; where something was fitted on qrels, by a fit to the other folds.
        values: [Q], the measure of these scores for each judged query.
        notes: what was fitted and what that is worth, as plain values.
    """

    ensemble: Ensemble
    scores: Floats
    values: Floats
    notes: dict[str, Any]


def fit_ensemble(combine: Combination, members: Sequence[Member], lists: JudgedLists) -> Fitted:
    """The ensemble of these teachers.

    Raises:
        ConfigError: scores of different units would be added up.
        DataError: a view cannot be fitted for want of judged documents.
    """
    tables: dict[tuple[View, ...], Floats] = {}
    everyone = np.ones(len(lists.folds), dtype=np.bool_)
    ensemble, notes = _fit(combine, members, lists, everyone, tables)
    scores = ensemble.apply(lists.aligned, lists.queries)
    folds = np.unique(lists.folds)
    if _reads_qrels(combine, members) and len(folds) > 1:
        numbers = lists.aligned.pairs.query_numbers
        for fold in folds:
            other, _ = _fit(combine, members, lists, lists.folds != fold, tables)
            own = (lists.folds == fold)[numbers]
            scores[own] = other.apply(lists.aligned, lists.queries)[own]
    return Fitted(ensemble, scores, lists.measure(scores), notes)


def fit_member(member: Member, every: Scores, judged: Judged) -> View:
    """The view of one teacher."""
    return fit_view(member.view, member.unit, every, judged, member.temperature)


def _reads_qrels(combine: Combination, members: Sequence[Member]) -> bool:
    if combine == "reciprocal_rank":
        return False
    fitted = any(member.view in READS_QRELS for member in members)
    return fitted or combine == "routing" or _fits_weights(combine, members) or _fits_temperatures(combine, members)


def _fits_weights(combine: Combination, members: Sequence[Member]) -> bool:
    return combine == "weighted_mean" and any(member.weight is None for member in members)


def _fits_temperatures(combine: Combination, members: Sequence[Member]) -> bool:
    return combine == "softmax_mean" and any(member.temperature is None for member in members)


def _fit(
    combine: Combination, members: Sequence[Member], lists: JudgedLists, use: NDArray[np.bool_], tables: dict[tuple[View, ...], Floats]
) -> tuple[Ensemble, dict[str, Any]]:
    """The ensemble fitted to the queries in `use` [Q], and what there is to say of it; `tables` keeps what was measured with the same views."""
    scores, offsets = lists.aligned.scores, lists.aligned.pairs.offsets
    if combine == "reciprocal_rank":
        members = [dataclasses.replace(member, view="reciprocal_rank") for member in members]
    views = tuple(fit_member(member, every, lists.judged(own, use)) for member, every, own in zip(members, lists.every, scores, strict=True))
    unit = combined_unit(combine, [member.name for member in members], [view.unit for view in views])
    ensemble = Ensemble(combine, unit, views, shares([member.weight or 1.0 for member in members]))
    seen = [view.apply(own, offsets) for view, own in zip(views, scores, strict=True)]
    if combine == "softmax_mean":
        temperatures = tuple(member.temperature or fit_temperature(lists.judged(own, use)) for member, own in zip(members, seen, strict=True))
        return dataclasses.replace(ensemble, temperatures=temperatures), {}
    if _fits_weights(combine, members):
        if views not in tables:
            tables[views] = np.stack([lists.measure(point @ np.stack(seen)) for point in weight_grid(len(views))])
        weights, notes = _fit_weights(tables[views], weight_grid(len(views)), lists.folds, use)
        return dataclasses.replace(ensemble, weights=weights), notes
    if combine == "routing":
        if views not in tables:
            mean = ensemble.apply(lists.aligned, lists.queries)
            tables[views] = np.stack([lists.measure(mean), *(lists.measure(own.astype(np.float64)) for own in seen)])
        sights = features(scores, offsets, words_of(lists.aligned.pairs, lists.queries))
        router, notes = _fit_routes(tables[views], sights, lists.folds, use)
        return dataclasses.replace(ensemble, router=router), notes
    return ensemble, {}


def _fit_weights(table: Floats, grid: Floats, folds: NDArray[np.int64], use: NDArray[np.bool_]) -> tuple[tuple[float, ...], dict[str, Any]]:
    """The weights of `grid` [G, T] whose row of `table` [G, Q] is best, where choosing so is clearly above equal weights on queries it was not chosen on."""
    chosen, equal = out_of_fold(table, folds, use), table[0, use]
    better = clearly_above(chosen, equal)
    weights = grid[choose_row(table, use) if better else 0]
    return tuple(weights.tolist()), {
        "weights": weights.tolist(),
        "fitted_out_of_fold": float(chosen.mean()),
        "equal_weights": float(equal.mean()),
        "used": better,
    }


def _fit_routes(table: Floats, sights: Floats, folds: NDArray[np.int64], use: NDArray[np.bool_]) -> tuple[Router | None, dict[str, Any]]:
    """A router, where routing is clearly above the mean on queries it was not fitted on.

    Args:
        table: [1 + T, Q], the measure of the mean and of each teacher.
        sights: features [Q, F].
        folds: [Q].
        use: [Q].
    """
    gains = (table[1:] - table[0]).T  # [Q, T]
    routes = np.zeros(len(folds), dtype=np.int64)
    for fold in np.unique(folds[use]):
        rest, own = use & (folds != fold), use & (folds == fold)
        if rest.any():
            routes[own] = fit_router(sights[rest], gains[rest]).choose(sights[own])
    routed, mean = table[routes, np.arange(len(folds))][use], table[0, use]
    better = clearly_above(routed, mean)
    return fit_router(sights[use], gains[use]) if better else None, {
        "routed_out_of_fold": float(routed.mean()),
        "mean": float(mean.mean()),
        "used": better,
    }
