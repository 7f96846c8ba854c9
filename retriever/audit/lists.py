"""The lists of the held-out queries with the scores of every teacher side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from retriever.errors import StoreError
from retriever.eval.audit import Spread
from retriever.runs import Run
from retriever.steps.ensemble import pairs_in
from retriever.types import Qrels

Floats = NDArray[np.float64]
UNJUDGED = -1


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredLists:
    """Q lists of n pairs in all, in one order, and what each teacher says of them.

    Attributes:
        pairs: the lists; their own scores do not matter.
        grades: int64 [n], negative grades as 0, `UNJUDGED` where there is none.
        retrieved: bool [n], False for a judged positive that no source of candidates found.
        scores: name -> float64 [n].
    """

    pairs: Run
    grades: NDArray[np.int64]
    retrieved: NDArray[np.bool_]
    scores: Mapping[str, Floats]

    @classmethod
    def of(cls, pairs: Run, candidates: Run, qrels: Qrels, runs: Mapping[str, Run]) -> ScoredLists:
        """Lists of the pairs, all of which every run must score.

        Raises:
            StoreError: a run lacks a pair.
        """
        named = [(query_id, doc_id) for query_id in pairs for doc_id, _ in pairs[query_id]]
        grades = [max(grade, 0) if (grade := qrels.get(query_id, {}).get(doc_id)) is not None else UNJUDGED for query_id, doc_id in named]
        scores = {name: _aligned(pairs, run) for name, run in runs.items()}
        return cls(pairs, np.array(grades, dtype=np.int64), pairs_in(pairs, candidates), scores)

    def run(self, name: str) -> Run:
        """The retrieved candidates in the order of that teacher: added positives would make any re-ranker look better than it is."""
        return self.pairs.keep(self.retrieved).with_scores(name, self.scores[name][self.retrieved])

    @property
    def relevant(self) -> NDArray[np.bool_]:
        """[n], whether a pair is judged relevant."""
        return np.asarray(self.grades > 0)

    @property
    def judged(self) -> NDArray[np.bool_]:
        """[n], whether a pair is judged at all."""
        return np.asarray(self.grades != UNJUDGED)

    def lists(self) -> Iterator[tuple[str, slice]]:
        """Query id and the place of its pairs, for each list that has any."""
        for number, query_id in enumerate(self.pairs.query_ids):
            place = self.pairs.pairs_of(number)
            if place.start < place.stop:
                yield query_id, place


def spread(scores: Floats, offsets: NDArray[np.int64]) -> Spread:
    """Standard deviations within and between lists; their squares add up to the variance of all scores (the law of total variance).

    Args:
        scores: [n], flat.
        offsets: int64 [Q + 1], the lists' borders.
    """
    if not len(scores):
        return Spread(0.0, 0.0)
    counts = np.diff(offsets)
    lists = np.repeat(np.arange(len(counts)), counts)
    means = np.bincount(lists, scores, minlength=len(counts)) / np.maximum(counts, 1)
    within, between = np.sqrt(((scores - means[lists]) ** 2).mean()), np.sqrt(((means[lists] - scores.mean()) ** 2).mean())
    return Spread(float(within), float(between) if between > 1e-6 * within else 0.0)  # less is float32's rounding


def _aligned(pairs: Run, run: Run) -> Floats:
    """The run's scores in the order of the pairs, [n]."""
    values: list[float] = []
    for query_id in pairs:
        of_document = dict(run[query_id])
        try:
            values += [of_document[doc_id] for doc_id, _ in pairs[query_id]]
        except KeyError as error:
            raise StoreError(
                f'audit: "{run.name}" has no score of query {query_id}, document {error.args[0]}. Run "retriever score" with the same file'
            ) from error
    return np.array(values, dtype=np.float64)
