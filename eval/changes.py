"""The queries that gained and lost most from the baseline to the subject."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from retriever.eval.report import ReportData
from retriever.eval.significance import differences_between

QUERIES_LISTED = 5


@dataclasses.dataclass(frozen=True)
class Change:
    """A query whose value of the first measure changed."""

    query_id: str
    before: float
    after: float


@dataclasses.dataclass(frozen=True)
class Changes:
    """What changed in one direction.

    Attributes:
        subject: the run's name.
        baseline: the other run's name.
        differences: float64 [Q], subject minus baseline.
        improved: the most improved, best first.
        hurt: the most hurt, worst first.
    """

    subject: str
    baseline: str
    differences: NDArray[np.float64]
    improved: Sequence[Change]
    hurt: Sequence[Change]


def changes_of(data: ReportData) -> Iterator[Changes]:
    """What changed in each direction in which there are both runs; equal differences stand in the order of the ids."""
    for subject, baseline in data.held_against:
        after, before = data.run(subject), data.run(baseline)
        if after and before:
            yield _changes(data, subject, baseline)


def _changes(data: ReportData, subject: str, baseline: str) -> Changes:
    values = {run.name: run.evaluation for run in data.runs}
    measure, query_ids = data.measures[0], values[subject].query_ids
    differences = differences_between(values[subject], values[baseline], measure)
    before, after = values[baseline].values[measure], values[subject].values[measure]
    order = sorted(range(len(differences)), key=lambda number: (-differences[number], query_ids[number]))

    def listed(numbers: Sequence[int]) -> list[Change]:
        return [Change(query_ids[number], float(before[number]), float(after[number])) for number in numbers]

    return Changes(
        subject,
        baseline,
        differences,
        listed([number for number in order[:QUERIES_LISTED] if differences[number] > 0]),
        listed([number for number in order[::-1][:QUERIES_LISTED] if differences[number] < 0]),
    )
