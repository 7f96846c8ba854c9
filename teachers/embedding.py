"""A bi-encoder as a teacher: the similarity of its encodings. Larger than the student, the student's own start, or another trained student.

It is loaded as a student of its family is. One that was trained before, for replay or disagreement, is `model =
"work/other/train"`: the folder of its train step, or any stock sentence-transformers folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retriever.conversations.reading import ConversationReader, reads_more
from retriever.encodings import DocumentEncodings, Encoder, score_rows
from retriever.errors import ConfigError
from retriever.resources import Resources
from retriever.settings.teacher import EmbeddingSettings
from retriever.teachers._vectors import PooledTokens, TokenVectors
from retriever.types import Document, Query, ScoredPairs, Teacher, TeacherIdentity


class EmbeddingTeacher:
    """The score of a query's and its documents' encodings; the documents' are made once for the whole collection."""

    shard_pairs = 20_000

    def __init__(self, settings: EmbeddingSettings, encoder: Encoder, encodings: DocumentEncodings, resources: Resources) -> None:
        self.encoder = encoder
        self.encodings = encodings
        self.resources = resources
        family = {} if settings.family == "dense" else {"family": settings.family}
        reads = {"reads": "last"} if reads_more(encoder, settings.reads) else {}  # without this, older stores have scores of what the encoder itself reads
        self.identity = TeacherIdentity(settings.label, "embedding", encoder.identity, encoder.unit, family | reads)

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
        """The score of each pair: an inner product, the cosine for a model of unit vectors, or MaxSim."""
        distinct = {(query.text, query.image): query for query, _ in pairs}
        reader = ConversationReader()  # what is read was decided before; the student would read on, as it does, in the turns that "last" keeps
        queries = self.encoder.encode_queries([reader.read(query) for query in distinct.values()])
        place_of = {asked: place for place, asked in enumerate(distinct)}
        places = np.array([place_of[query.text, query.image] for query, _ in pairs], dtype=np.int64)
        rows = self.resources.collection.rows_of([document.doc_id for _, document in pairs])
        return ScoredPairs.without_tokens(score_rows(self.encoder, queries, places, self.encodings, rows))


def load(settings: EmbeddingSettings, resources: Resources) -> Teacher:
    """The bi-encoder of the file with the encodings of the collection's documents.

    Raises:
        ConfigError: there is no such model, or it cannot store the vectors that are asked for.
    """
    if settings.family != "dense" and settings.model in (None, "student"):
        raise ConfigError(f"teacher {settings.label}: family {settings.family} needs a model; the starting checkpoint of the student is none")
    if settings.family in ("sparse", "image_text") and settings.store_vectors == "tokens":
        what = "a sparse" if settings.family == "sparse" else "an image-text"
        raise ConfigError(f'teacher {settings.label}: {what} model has no token vectors to store. Leave store_vectors out, or set "pooled"')
    encoder, encodings = resources.encode(settings)
    if settings.store_vectors == "tokens" and settings.family == "dense":
        model: Any = getattr(encoder, "model", None)
        resources.encode_ragged(TokenVectors(model, encoder.identity, settings.batch_size), f"{settings.label}, tokens")
    if settings.store_vectors == "pooled" and settings.family == "late_interaction":
        resources.encode_ragged(PooledTokens(encoder.identity, encodings, resources.collection), f"{settings.label}, pooled")
    return EmbeddingTeacher(settings, encoder, encodings, resources)
