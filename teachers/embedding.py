"""A bi-encoder as a teacher: the similarity of its vectors. Larger than the student, or the student's own start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retriever.encodings import Encoder, Vectors
from retriever.resources import Resources
from retriever.teacher_settings import EmbeddingSettings
from retriever.types import Document, Query, ScoredPairs, TeacherIdentity


class EmbeddingTeacher:
    """Inner products of a query's and its documents' vectors; the documents' are made once for the whole collection."""

    shard_pairs = 100_000

    def __init__(self, name: str, encoder: Encoder, vectors: Vectors, resources: Resources) -> None:
        self.encoder = encoder
        self.vectors = vectors
        self.resources = resources
        self.identity = TeacherIdentity(name, "embedding", encoder.identity, "dot")

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
        """The inner product of each pair's vectors (the cosine, for a model of unit vectors)."""
        distinct = {query.text: query for query, _ in pairs}
        queries = self.encoder.encode_queries(list(distinct.values()))
        place_of = {text: place for place, text in enumerate(distinct)}
        places = np.array([place_of[query.text] for query, _ in pairs])
        documents = self.vectors.rows(self.resources.collection.rows_of([document.doc_id for _, document in pairs]))
        scores = np.einsum("nd,nd->n", queries[places], documents, dtype=np.float32)
        return ScoredPairs(scores, np.zeros(len(pairs), dtype=np.int32), np.zeros(len(pairs), dtype=np.bool_))


def load(settings: EmbeddingSettings, resources: Resources) -> EmbeddingTeacher:
    """The bi-encoder of the file with the vectors of the collection's documents."""
    encoder, vectors = resources.encode(settings)
    return EmbeddingTeacher(settings.label, encoder, vectors, resources)
