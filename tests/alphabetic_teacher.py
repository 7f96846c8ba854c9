"""A teacher that orders whole lists, as `kind = "tests.alphabetic_teacher"` in an experiment file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retriever.resources import Resources
from retriever.settings.teacher import PrivateSettings
from retriever.types import Document, OrderedList, Query, TeacherIdentity


class AlphabeticTeacher:
    """Orders documents by their text; remembers the lists it was asked for."""

    def __init__(self, shard_pairs: int = 100, status: str = "ok") -> None:
        self.identity = TeacherIdentity("alphabetic", "alphabetic", "", "rank")
        self.shard_pairs = shard_pairs
        self.status = status
        self.asked: list[tuple[str, list[str]]] = []

    def order(self, lists: Sequence[tuple[Query, Sequence[Document]]]) -> list[OrderedList]:
        self.asked += [(query.text, [document.full_text for document in documents]) for query, documents in lists]
        return [self._order([document.full_text for document in documents]) for _, documents in lists]

    def _order(self, texts: list[str]) -> OrderedList:
        ranks = np.array([1 + sorted(texts).index(text) for text in texts], dtype=np.int32)
        return OrderedList(ranks, 2, np.full(len(texts), 7, dtype=np.int32), np.array([len(text) > 25 for text in texts]), self.status)


def load(settings: PrivateSettings, resources: Resources) -> AlphabeticTeacher:
    """The teacher of an experiment file."""
    del settings, resources
    return AlphabeticTeacher()
