"""Results of the same systems on other collections than the one that the student was trained for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from retriever.eval.measures import Evaluation
from retriever.eval.significance import Clusters, Comparison, cluster_numbers, compare, generator_for, mean_interval


@dataclasses.dataclass(frozen=True)
class Transfer:
    """The runs on one other collection.

    Attributes:
        collection: its name.
        split: whose queries were asked.
        queries: how many there are.
        clusters: how many conversations tests and intervals took as wholes; None where they took single queries.
        means: run -> measure -> mean.
        intervals: run -> measure -> 95 % bootstrap interval of the mean.
        comparisons: p-values are corrected for those of this collection together.
    """

    collection: str
    split: str
    queries: int
    clusters: int | None
    means: Mapping[str, Mapping[str, float]]
    intervals: Mapping[str, Mapping[str, tuple[float, float]]]
    comparisons: Sequence[Comparison]

    @property
    def name(self) -> str:
        """Collection and split as a column's heading."""
        return f"{self.collection} {self.split}".strip()


def transfer_of(
    collection: str,
    split: str,
    evaluations: Mapping[str, Evaluation],
    pairs: Sequence[tuple[str, str]],
    measures: Sequence[str],
    seed: int,
    clusters: Clusters | None = None,
) -> Transfer:
    """What runs are worth on another collection.

    Args:
        collection: its name.
        split: whose queries were asked.
        evaluations: run name -> its evaluation, at least one; all of one direction under the same qrels.
        pairs: (run, baseline) names.
        measures: as text, each present in every evaluation.
        seed: of sign patterns and bootstrap samples.
        clusters: the queries' conversations, which tests and intervals then take as wholes; None takes single queries.

    Raises:
        DataError: as `compare` does.
    """

    def interval(name: str, evaluation: Evaluation, measure: str) -> tuple[float, float]:
        generator = generator_for(seed, "interval", collection, split, name, measure)
        return mean_interval(evaluation.query_ids, evaluation.values[measure], clusters, generator)

    query_ids = list(dict.fromkeys(query_id for evaluation in evaluations.values() for query_id in evaluation.query_ids))
    return Transfer(
        collection=collection,
        split=split,
        queries=len(query_ids),
        clusters=None if clusters is None else int(cluster_numbers(query_ids, clusters).max()) + 1,
        means={name: {measure: evaluation.means[measure] for measure in measures} for name, evaluation in evaluations.items()},
        intervals={name: {measure: interval(name, evaluation, measure) for measure in measures} for name, evaluation in evaluations.items()},
        comparisons=compare(evaluations, pairs, measures, seed, clusters),
    )


def transfer_from_json(transfer: Mapping[str, Any]) -> Transfer:
    """What `dataclasses.asdict` made of it, after a way through JSON."""
    intervals = {name: {measure: tuple(ends) for measure, ends in found.items()} for name, found in transfer["intervals"].items()}
    comparisons = [Comparison(**{**one, "interval": tuple(one["interval"])}) for one in transfer["comparisons"]]
    return Transfer(**{**transfer, "intervals": intervals, "comparisons": comparisons})
