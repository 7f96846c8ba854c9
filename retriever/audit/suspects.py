"""Judgements that the teachers contradict, and queries that a teacher ruins: what a person should look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retriever.audit.lists import ScoredLists
from retriever.eval.audit import Ruined, Suspect, Suspects
from retriever.eval.measures import Evaluation
from retriever.eval.significance import differences_between
from retriever.runs import Run
from retriever.types import Qrels

Floats = NDArray[np.float64]
LISTED_QUERIES = 20
LISTED_PER_QUERY = 3
BOTTOM = 0.75
"""A document is at the bottom where so large a part of the list's others stands above it."""
SHORTEST = 4
"""Lists with fewer documents have no bottom."""


def false_negatives(lists: ScoredLists, teachers: Sequence[str]) -> Suspects:
    """Unjudged documents that several teachers rank above every judged positive: more than half of the teachers, and two at least.

    Strongest are those with the most such teachers, then those that lie furthest above the best positive, in standard deviations of the list.
    """
    needed = max(2, len(teachers) // 2 + 1)
    found = []
    for query_id, place in lists.lists():
        relevant, unjudged = lists.relevant[place], ~lists.judged[place]
        if not relevant.any():
            continue
        scores = np.stack([_standardised(lists.scores[name][place]) for name in teachers])  # [T, K]
        above = scores - scores[:, relevant].max(axis=1, keepdims=True)
        best = int(np.argmax(np.where(relevant, scores.mean(axis=0), -np.inf)))
        doc_ids = lists.pairs.doc_ids[place].tolist()
        for document in np.flatnonzero(unjudged & ((above > 0).sum(axis=0) >= needed)).tolist():
            agreeing = above[:, document] > 0
            names = tuple(name for name, agrees in zip(teachers, agreeing, strict=True) if agrees)
            found.append(Suspect(query_id, doc_ids[document], names, float(above[agreeing, document].mean()), doc_ids[best]))
    return _suspects(found)


def mislabelled(lists: ScoredLists, teachers: Sequence[str]) -> Suspects:
    """Documents judged relevant that all teachers, two at least, rank in the last quarter of the list; the lowest are the strongest."""
    found = []
    for query_id, place in lists.lists():
        if len(teachers) < 2 or place.stop - place.start < SHORTEST:
            continue
        shares = np.stack([share_above(lists.scores[name][place]) for name in teachers])  # [T, K]
        doc_ids = lists.pairs.doc_ids[place].tolist()
        low = np.flatnonzero(lists.relevant[place] & (shares >= BOTTOM).all(axis=0))
        found += [Suspect(query_id, doc_ids[document], tuple(teachers), float(shares[:, document].mean())) for document in low.tolist()]
    return _suspects(found)


def share_above(scores: Floats) -> Floats:
    """[K], which part of the other documents stands above each; one with the same score counts half."""
    ordered = np.sort(scores)
    above = len(scores) - np.searchsorted(ordered, scores, side="right")
    equal = len(scores) - above - np.searchsorted(ordered, scores, side="left") - 1
    return np.asarray((above + equal / 2) / max(len(scores) - 1, 1))


def ruined_queries(teacher: tuple[Run, Evaluation], baseline: tuple[Run, Evaluation], qrels: Qrels, measure: str, at_most: int = 5) -> tuple[Ruined, ...]:
    """The queries on which a teacher loses most against a baseline, worst first.

    Args:
        teacher: its run and evaluation.
        baseline: likewise, on the same candidates.
        qrels: of the queries.
        measure: as text.
        at_most: how many.
    """
    (run, after), (before_run, before) = teacher, baseline
    losses = differences_between(after, before, measure)
    worst = sorted(np.flatnonzero(losses < 0).tolist(), key=lambda number: (losses[number], after.query_ids[number]))[:at_most]
    ruined = []
    for number in worst:
        query_id = after.query_ids[number]
        ranks, ranks_before = _ranks(run, query_id), _ranks(before_run, query_id)
        relevant = next(doc_id for doc_id in ranks_before if qrels[query_id].get(doc_id, 0) > 0)  # without one the baseline would be at 0
        values = float(before.values[measure][number]), float(after.values[measure][number])
        ruined.append(Ruined(query_id, baseline[1].run, *values, relevant, ranks_before[relevant], ranks[relevant], next(iter(ranks))))
    return tuple(ruined)


def _ranks(run: Run, query_id: str) -> dict[str, int]:
    return {doc_id: rank for rank, (doc_id, _) in enumerate(run[query_id], 1)}


def _standardised(scores: Floats) -> Floats:
    deviation = scores.std()
    return np.asarray((scores - scores.mean()) / (deviation if deviation > 0 else 1.0))


def _suspects(found: Sequence[Suspect]) -> Suspects:
    """All of them counted, the strongest listed: some of each query, query after query."""
    by_query: dict[str, list[Suspect]] = {}
    for one in sorted(found, key=lambda one: (-len(one.teachers), -one.strength, one.query_id, one.doc_id)):
        by_query.setdefault(one.query_id, []).append(one)
    listed = [one for of_query in list(by_query.values())[:LISTED_QUERIES] for one in of_query[:LISTED_PER_QUERY]]
    return Suspects(len(found), len(by_query), tuple(listed))
