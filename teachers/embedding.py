"""A bi-encoder as a teacher: the similarity of its vectors. Larger than the student, the student's own start, or another trained student.

A student that was trained before, for replay or disagreement, is `model = "work/other/train"`: the folder of its train step,
or any stock sentence-transformers folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import Encoder, Vectors
from retriever.errors import ConfigError
from retriever.ragged_encodings import Ragged, RaggedVectors
from retriever.resources import Resources
from retriever.teacher_settings import EmbeddingSettings
from retriever.types import Document, Query, ScoredPairs, Teacher, TeacherIdentity, Unit

Pairs = Sequence[tuple[Query, Document]]


class EmbeddingTeacher:
    """Inner products of a query's and its documents' vectors; the documents' are made once for the whole collection."""

    shard_pairs = 100_000

    def __init__(self, name: str, encoder: Encoder, vectors: Vectors, resources: Resources) -> None:
        self.encoder = encoder
        self.vectors = vectors
        self.resources = resources
        unit: Unit = getattr(encoder, "unit", "dot")  # an encoder of unit vectors says that they make cosines
        self.identity = TeacherIdentity(name, "embedding", encoder.identity, unit)

    def score(self, pairs: Pairs) -> ScoredPairs:
        """The inner product of each pair's vectors: the cosine, for a model of unit vectors."""
        distinct = {query.text: query for query, _ in pairs}
        queries = self.encoder.encode_queries(list(distinct.values()))
        place_of = {text: place for place, text in enumerate(distinct)}
        places = np.array([place_of[query.text] for query, _ in pairs])
        documents = self.vectors.rows(self.resources.collection.rows_of([document.doc_id for _, document in pairs]))
        return ScoredPairs.without_tokens(np.einsum("nd,nd->n", queries[places], documents, dtype=np.float32))


class PairEncoder(Protocol):
    """An encoder of many vectors or entries a document, with its own similarity."""

    @property
    def identity(self) -> str:
        """Changes with anything that changes the vectors."""
        ...

    @property
    def unit(self) -> Unit:
        """What the similarity is."""
        ...

    def encode_queries(self, queries: Sequence[Query]) -> list[NDArray[np.float32]]:
        """What the similarity needs of each query."""
        ...

    def similarity(self, query: NDArray[np.float32], documents: Ragged) -> NDArray[np.float32]:
        """[n], of a query with each document."""
        ...


class RaggedTeacher:
    """The similarity of sparse vectors or of token vectors; the documents' are made once for the whole collection."""

    shard_pairs = 20_000

    def __init__(self, name: str, family: str, encoder: PairEncoder, vectors: RaggedVectors, resources: Resources) -> None:
        self.encoder = encoder
        self.vectors = vectors
        self.resources = resources
        self.identity = TeacherIdentity(name, "embedding", encoder.identity, encoder.unit, {"family": family})

    def score(self, pairs: Pairs) -> ScoredPairs:
        """The similarity of each pair, the documents of a query at a time."""
        distinct = {query.text: query for query, _ in pairs}
        encoded = dict(zip(distinct, self.encoder.encode_queries(list(distinct.values())), strict=True))
        rows = self.resources.collection.rows_of([document.doc_id for _, document in pairs])
        scores = np.empty(len(pairs), dtype=np.float32)
        for text, part in _by_query(pairs):
            scores[part] = self.encoder.similarity(encoded[text], self.vectors.rows(rows[part]))
        return ScoredPairs.without_tokens(scores)


def load(settings: EmbeddingSettings, resources: Resources) -> Teacher:
    """The bi-encoder of the file with the vectors of the collection's documents.

    Raises:
        ConfigError: there is no such model, or it cannot store the vectors that are asked for.
    """
    if settings.family == "dense":
        return _load_dense(settings, resources)
    if settings.model in (None, "student"):
        raise ConfigError(f"teacher {settings.label}: family {settings.family} needs a model; the starting checkpoint of a dense student is none")
    return _load_sparse(settings, resources) if settings.family == "sparse" else _load_late_interaction(settings, resources)


def _load_dense(settings: EmbeddingSettings, resources: Resources) -> Teacher:
    encoder, vectors = resources.encode(settings)
    if settings.store_vectors == "tokens":
        from retriever.teachers._late_interaction import TokenVectors

        model: Any = getattr(encoder, "model", None)
        resources.encode_ragged(TokenVectors(model, encoder.identity, settings.batch_size), f"{settings.label}, tokens")
    return EmbeddingTeacher(settings.label, encoder, vectors, resources)


def _load_sparse(settings: EmbeddingSettings, resources: Resources) -> Teacher:
    from retriever.teachers._sparse import load_sparse

    if settings.store_vectors == "tokens":
        raise ConfigError(f'teacher {settings.label}: a sparse model has no token vectors to store. Leave store_vectors out, or set "pooled"')
    encoder = load_sparse(settings)
    return RaggedTeacher(settings.label, "sparse", encoder, resources.encode_ragged(encoder, settings.label), resources)


def _load_late_interaction(settings: EmbeddingSettings, resources: Resources) -> Teacher:
    from retriever.teachers._late_interaction import PooledTokens, load_late_interaction

    encoder = load_late_interaction(settings)
    tokens = resources.encode_ragged(encoder, settings.label)
    if settings.store_vectors == "pooled":
        resources.encode_ragged(PooledTokens(encoder, tokens, resources.collection), f"{settings.label}, pooled")
    return RaggedTeacher(settings.label, "late_interaction", encoder, tokens, resources)


def _by_query(pairs: Pairs) -> Iterator[tuple[str, slice]]:
    """The texts of the queries with the pairs of each; pairs come query by query."""
    start = 0
    for end in range(1, len(pairs) + 1):
        if end == len(pairs) or pairs[end][0].text != pairs[start][0].text:
            yield pairs[start][0].text, slice(start, end)
            start = end
