"""BM25 as a teacher: words that must match, which small encoders miss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retriever.resources import Resources
from retriever.settings.teacher import LexicalSettings
from retriever.types import Document, Query, ScoredPairs, TeacherIdentity


class LexicalTeacher:
    """BM25 scores of pairs, statistics taken from the whole collection."""

    shard_pairs = 100_000

    def __init__(self, name: str, resources: Resources) -> None:
        self.resources = resources
        candidates = resources.candidates
        # Document frequencies come from the collection, so its content decides the scores as much as k1 and b do.
        settings = {"k1": candidates.k1, "b": candidates.b, "language": candidates.language, "collection": resources.collection.fingerprint}
        self.identity = TeacherIdentity(name, "lexical", "bm25", "bm25", settings)

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
        """BM25 of each pair, 0 where query and document share no word."""
        rows = self.resources.collection.rows_of([document.doc_id for _, document in pairs])
        scores = np.empty(len(pairs), dtype=np.float32)
        last_text, of_query = None, None
        for place, (query, _) in enumerate(pairs):
            if of_query is None or query.text != last_text:  # pairs come query by query
                last_text, of_query = query.text, self.resources.bm25().scores(query.text)
            scores[place] = of_query[rows[place]]
        return ScoredPairs.without_tokens(scores)


def load(settings: LexicalSettings, resources: Resources) -> LexicalTeacher:
    """The BM25 teacher with the parameters of the section [candidates]."""
    return LexicalTeacher(settings.label, resources)
