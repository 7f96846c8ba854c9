"""Results told apart: by turn, by topic, by whatever else is known of the queries; and the means of whole conversations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.errors import DataError
from retriever.eval.measures import Evaluation
from retriever.eval.significance import Clusters, cluster_numbers, differences_between, generator_for, mean_interval

TURN_DEPTH = "turn depth"
"""The facet that the report draws as lines over the course of a conversation."""


@dataclasses.dataclass(frozen=True)
class Facet:
    """One way to tell queries apart.

    Attributes:
        name: for example "turn depth".
        labels: the groups, in the order in which they are shown.
        groups: query id -> the groups that it counts in; a query without one is not shown.
        note: a sentence on how the groups were made.
    """

    name: str
    labels: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class GroupDifference:
    """A run against a baseline in one measure on one group of queries.

    Attributes:
        run: the run's name.
        baseline: the other run's name.
        measure: as text.
        difference: mean of the run minus mean of the baseline.
        interval: 95 % bootstrap interval of the difference, corrected for nothing; None for a single query or conversation, which shows no spread.
    """

    run: str
    baseline: str
    measure: str
    difference: float
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class FacetGroup:
    """The results of one group of queries.

    Attributes:
        label: the group's.
        queries: how many there are.
        clusters: how many conversations they come from; None where intervals take single queries.
        means: run -> measure -> mean.
        differences: of the pairs that were asked for.
    """

    label: str
    queries: int
    clusters: int | None
    means: Mapping[str, Mapping[str, float]]
    differences: Sequence[GroupDifference]


@dataclasses.dataclass(frozen=True)
class FacetTable:
    """The results of one facet.

    Attributes:
        name: the facet's.
        measures: in the order of importance.
        groups: with at least one query each, in the facet's order.
        unlabelled: how many queries are in no group.
        note: how the groups were made.
    """

    name: str
    measures: Sequence[str]
    groups: Sequence[FacetGroup]
    unlabelled: int
    note: str = ""


def facet_table(
    evaluations: Mapping[str, Evaluation],
    facet: Facet,
    measures: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    seed: int,
    clusters: Clusters | None = None,
) -> FacetTable:
    """The means of every run and the differences of the pairs, group by group.

    Args:
        evaluations: run name -> its evaluation; all under the same qrels.
        facet: the groups.
        measures: as text, each present in every evaluation.
        pairs: (run, baseline) names.
        seed: of the bootstrap samples.
        clusters: the queries' conversations, which the intervals then take as wholes; None takes single queries.

    Raises:
        DataError: two runs were evaluated on different queries, or a run or measure is missing.
    """
    query_ids = _common_queries(evaluations)
    groups = []
    for label in facet.labels:
        members = np.array([label in facet.groups.get(query_id, ()) for query_id in query_ids], dtype=np.bool_)
        if members.any():
            groups.append(_group(evaluations, facet.name, label, members, (measures, pairs, seed, clusters)))
    unlabelled = sum(not facet.groups.get(query_id) for query_id in query_ids)
    return FacetTable(facet.name, list(measures), groups, unlabelled, facet.note)


def per_conversation(evaluation: Evaluation, clusters: Clusters, measure: str) -> dict[str, float]:
    """Conversation -> mean of a measure over its queries, in the order of the queries; those outside conversations are left out."""
    values: dict[str, list[float]] = {}
    for query_id, value in zip(evaluation.query_ids, evaluation.values[measure].tolist(), strict=True):
        if conversation := clusters.get(query_id):
            values.setdefault(conversation, []).append(value)
    return {conversation: sum(found) / len(found) for conversation, found in values.items()}


def facet_table_from_json(table: Mapping[str, Any]) -> FacetTable:
    """What `dataclasses.asdict` made of a table, after a way through JSON."""
    groups = [FacetGroup(**{**group, "differences": [_difference_from_json(one) for one in group["differences"]]}) for group in table["groups"]]
    return FacetTable(**{**table, "groups": groups})


def _difference_from_json(found: Mapping[str, Any]) -> GroupDifference:
    return GroupDifference(**{**found, "interval": found["interval"] and tuple(found["interval"])})


def _common_queries(evaluations: Mapping[str, Evaluation]) -> tuple[str, ...]:
    sets = {evaluation.query_ids: name for name, evaluation in evaluations.items()}
    if len(sets) > 1:
        one, other, *_ = sets.values()
        raise DataError(f'runs "{one}" and "{other}" were evaluated on different queries and cannot be told apart together. Evaluate both with the same qrels')
    return next(iter(sets), ())


def _group(
    evaluations: Mapping[str, Evaluation],
    facet: str,
    label: str,
    members: NDArray[np.bool_],
    wanted: tuple[Sequence[str], Sequence[tuple[str, str]], int, Clusters | None],
) -> FacetGroup:
    """The results of the queries where `members` [Q] is true."""
    measures, pairs, seed, clusters = wanted
    query_ids = [query_id for query_id, there in zip(_common_queries(evaluations), members.tolist(), strict=True) if there]
    conversations = None if clusters is None else int(cluster_numbers(query_ids, clusters).max()) + 1
    drawn = len(query_ids) if conversations is None else conversations

    def difference(run: str, baseline: str, measure: str) -> GroupDifference:
        found = differences_between(_named(evaluations, run), _named(evaluations, baseline), measure)[members]
        generator = generator_for(seed, "facet", facet, label, run, baseline, measure)
        interval = mean_interval(query_ids, found, clusters, generator) if drawn > 1 else None
        return GroupDifference(run, baseline, measure, float(found.mean()), interval)

    return FacetGroup(
        label=label,
        queries=len(query_ids),
        clusters=conversations,
        means={name: {measure: float(evaluation.values[measure][members].mean()) for measure in measures} for name, evaluation in evaluations.items()},
        differences=[difference(run, baseline, measure) for run, baseline in pairs for measure in measures],
    )


def _named(evaluations: Mapping[str, Evaluation], name: str) -> Evaluation:
    if name not in evaluations:
        raise DataError(f'there is no run "{name}" to compare; the runs are {", ".join(evaluations)}')
    return evaluations[name]
