"""Scores that lie in a file: another program's, a published set's, or a human's. They are looked up, nothing is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, get_args

import numpy as np
from numpy.typing import NDArray

from retriever.errors import ConfigError, StoreError
from retriever.resources import Resources
from retriever.runs import Run, read_run, unit_of
from retriever.settings.teacher import RunSettings
from retriever.types import Document, Query, ScoredPairs, TeacherIdentity, Unit


class RunTeacher:
    """The score of a pair is what the file says of its query id and document id.

    The file's queries, documents and scores decide the identity: the same scores as TREC or as Parquet are the same teacher.
    """

    shard_pairs = 100_000

    def __init__(self, settings: RunSettings, run: Run, unit: Unit) -> None:
        self.settings = settings
        self.run = run
        self.lowest = float(run.scores.min(initial=np.inf)) if run.n_pairs else 0.0
        self.identity = TeacherIdentity(settings.label, "run", run.fingerprint, unit, {"missing": settings.missing})

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
        """The score of each pair; with `missing = "lowest"`, of a pair that is not in the file the lowest of its query's list.

        What lies below a shallow list is unknown: it can be no better than the last that the list has, and is taken to be as good, so that
        all of it is alike. A query without a list has the lowest score of the file everywhere: of it the file says nothing.

        Raises:
            StoreError: pairs are not in the file, and `missing = "error"`.
        """
        scores = np.full(len(pairs), np.nan, dtype=np.float32)
        found_of: dict[str, dict[str, float]] = {}
        for place, (query, document) in enumerate(pairs):
            if query.query_id not in found_of:
                found_of = {query.query_id: dict(self.run[query.query_id])}  # pairs come query by query
            found = found_of[query.query_id]
            scores[place] = found[document.doc_id] if document.doc_id in found else self._missing(found)
        self._refuse_missing(pairs, scores)
        return ScoredPairs.without_tokens(scores)

    def _missing(self, found: dict[str, float]) -> float:
        """The score of a pair that is not in the file, given those of its query that are."""
        return min(found.values(), default=self.lowest) if self.settings.missing == "lowest" else np.nan

    def _refuse_missing(self, pairs: Sequence[tuple[Query, Document]], scores: NDArray[np.float32]) -> None:
        missing = np.flatnonzero(np.isnan(scores)).tolist()
        if not missing:
            return
        query, document = pairs[missing[0]]
        where = f'teacher "{self.identity.name}": {len(missing):,} of {len(pairs):,} pairs are not in {self.settings.path}'
        named = f"the first is query {query.query_id}, document {document.doc_id}"
        queries = len({pairs[place][0].query_id for place in missing if pairs[place][0].query_id not in self.run})
        if queries:
            raise StoreError(
                f"{where} ({named}; {queries:,} queries are not there at all). Score them too, or take the candidates from the file: candidates.sources"
            )
        raise StoreError(
            f'{where} ({named}). Score them too, set missing = "lowest" for this teacher, or take the candidates from the file: candidates.sources'
        )


def load(settings: RunSettings, resources: Resources) -> RunTeacher:
    """The run of the file as a teacher.

    Raises:
        ConfigError: nobody says what the scores mean, or file and settings disagree.
        DataError: the file is no run.
    """
    del resources
    run, stored = read_run(settings.path), unit_of(settings.path)
    if settings.unit and stored and settings.unit != stored:
        raise ConfigError(f'teacher {settings.label}: unit = "{settings.unit}", but {settings.path} says "{stored}". Leave one of them out')
    unit = settings.unit or stored
    if unit not in get_args(Unit):
        raise ConfigError(f"teacher {settings.label}: {settings.path} does not say what its scores mean. Set unit to one of {', '.join(get_args(Unit))}")
    return RunTeacher(settings, run, cast(Unit, unit))
