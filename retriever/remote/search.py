"""Search with a student in a collection that an engine keeps: the same questions as to an index on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retriever.encodings import Encoder, document_identity
from retriever.errors import ConfigError
from retriever.filters import Condition, conditions_from
from retriever.images.readers import refuse_images
from retriever.index.snapshot import student_in
from retriever.remote.index import RemoteIndex, open_remote
from retriever.runs import Run
from retriever.scopes import by_conditions
from retriever.search import Hit, as_conditions, asked_query, conditions_of
from retriever.types import Query

ASKED_TOGETHER = 256
"""Queries encoded at a time."""


@dataclasses.dataclass(frozen=True)
class RemoteSearch:
    """A student and a collection whose documents are encoded as it encodes them."""

    index: RemoteIndex
    encoder: Encoder

    def __len__(self) -> int:
        """N, the number of documents."""
        return len(self.index)

    def hits(self, query: str | Query, k: int = 10, where: Mapping[str, Any] | Sequence[Condition] = ()) -> list[Hit]:
        """The best k documents of one query with their texts, best first; as `SearchIndex.hits`."""
        asked = asked_query(query)
        refuse_images(self.encoder, [asked])
        points = self.index.search(self.encoder.encode_queries([asked]), k, conditions_of(asked, where))[0]
        return [Hit(rank, point.score, point.document) for rank, point in enumerate(points, 1)]

    def run(self, queries: Mapping[str, Query], k: int = 1000, name: str | None = None, where: Mapping[str, Any] | Sequence[Condition] = ()) -> Run:
        """The best k documents of many queries, as a run."""
        conditions = as_conditions(where)
        refuse_images(self.encoder, queries.values())
        scores: dict[str, dict[str, float]] = {query_id: {} for query_id in queries}  # in the order of the queries
        listed = list(queries.values())
        for start in range(0, len(listed), ASKED_TOGETHER):
            some = listed[start : start + ASKED_TOGETHER]
            encoded = self.encoder.encode_queries(some)
            for among, places in by_conditions(some):
                found = self.index.search(encoded[np.array(places)], k, [*conditions, *conditions_from(among)])
                for place, points in zip(places, found, strict=True):
                    scores[some[place].query_id] = {point.document.doc_id: point.score for point in points}
        return Run.from_dict(name or self.index.address.collection, scores)


def open_remote_search(address: str, student: Path) -> RemoteSearch:
    """The collection at an address, searched with the student in a folder: of an experiment, an index, or the student's own.

    Raises:
        ConfigError: there is no student in the folder, it encodes documents otherwise, or the address is wrong.
        SearchIndexError: the engine does not answer, or the student's index is damaged.
    """
    remote = open_remote(address)
    encoder = student_in(student, remote.facts.student_kind)
    if remote.facts.encoder not in (document_identity(encoder), encoder.identity):  # an older upload names the whole student
        raise ConfigError(
            f"{address}: was made with the student {remote.facts.encoder}, and {student} encodes documents as {document_identity(encoder)} does. "
            "Search with that student, or with one that was trained from it with student.frozen_documents = true"
        )
    return RemoteSearch(remote, encoder)
