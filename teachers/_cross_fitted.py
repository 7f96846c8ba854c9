"""Several models of one teacher, each taught without a part of the train queries: nobody scores a query that it has learnt by heart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from retriever.files import fingerprint
from retriever.types import Document, Query, ScoredPairs, Teacher, TeacherIdentity

Pairs = Sequence[tuple[Query, Document]]


class CrossFittedTeacher:
    """A train query is scored by the model that was not taught on it, any other by the mean of all models.

    A teacher is surer of the queries it was taught on than of new ones, and says little of them that the judgements do not.
    Scores of models that have not seen the query are those of a new one (cross-fitting: Chernozhukov et al. 2018,
    arXiv:1608.00060; in distillation: Dao et al. 2021, arXiv:2104.09732).
    """

    def __init__(self, name: str, parts: Sequence[Teacher], fold_of: Mapping[str, int]) -> None:
        self.parts = parts
        self.fold_of = fold_of
        first = parts[0].identity
        models = [part.identity.model for part in parts]
        settings = {**first.settings, "cross-fitted": [models, fingerprint(dict(sorted(fold_of.items())))]}
        self.identity = TeacherIdentity(name, first.kind, fingerprint(models), first.unit, settings)
        self.shard_pairs = min(part.shard_pairs for part in parts)

    @property
    def notes(self) -> Sequence[str]:
        """What is to be known before it scores; the models are of one kind and say the same."""
        return tuple(getattr(self.parts[0], "notes", ()))

    def score(self, pairs: Pairs) -> ScoredPairs:
        """The scores of the pairs, in their order; tokens are counted as one model reads them."""
        folds = [self.fold_of.get(query.query_id) for query, _ in pairs]
        found = ScoredPairs.without_tokens(np.zeros(len(pairs), dtype=np.float32))
        for number, part in enumerate(self.parts):
            asked = [place for place, fold in enumerate(folds) if fold in (number, None)]
            if asked:
                own = part.score([pairs[place] for place in asked])
                models = np.array([len(self.parts) if folds[place] is None else 1 for place in asked], dtype=np.float32)
                found.scores[asked] += own.scores / models
                found.n_tokens[asked], found.truncated[asked] = own.n_tokens, own.truncated
        return found
