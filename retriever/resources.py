"""What an experiment has at hand for its teachers: they take what they need and make nothing twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from retriever.bm25 import BM25
from retriever.collection import Collection
from retriever.encodings import DocumentEncodings, Encoder
from retriever.ragged_encodings import RaggedEncoder
from retriever.settings.collection import CandidateSettings
from retriever.settings.teacher import EmbeddingSettings
from retriever.types import Query


def _nowhere(encoder: RaggedEncoder, what: str) -> DocumentEncodings:
    """For resources of teachers that keep no such vectors."""
    raise ValueError(f"{what}: these resources have no place for the vectors of {encoder.identity}")


@dataclasses.dataclass(frozen=True)
class Resources:
    """The collection and what is made from it.

    Attributes:
        collection: the documents.
        candidates: BM25's parameters.
        bm25: gives the BM25 index, made at the first call.
        encode: gives a teacher's encoder and the encodings of all documents, made at the first call.
        train_queries: the queries that a teacher may try itself on; never the test queries.
        encode_ragged: keeps what else an encoder makes of all documents, such as token vectors; told the encoder and what a bar calls it.
    """

    collection: Collection
    candidates: CandidateSettings
    bm25: Callable[[], BM25]
    encode: Callable[[EmbeddingSettings], tuple[Encoder, DocumentEncodings]]
    encode_ragged: Callable[[RaggedEncoder, str], DocumentEncodings] = _nowhere
    train_queries: Callable[[], Mapping[str, Query]] = dict
