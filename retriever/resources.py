"""What an experiment has at hand for its teachers: they take what they need and make nothing twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from retriever.bm25 import BM25
from retriever.collection import Collection
from retriever.config import CandidateSettings
from retriever.encodings import Encoder, Vectors
from retriever.teacher_settings import EmbeddingSettings


@dataclasses.dataclass(frozen=True)
class Resources:
    """The collection and what is made from it.

    Attributes:
        collection: the documents.
        candidates: BM25's parameters.
        bm25: gives the BM25 index, made at the first call.
        encode: gives a teacher's encoder and the vectors of all documents, made at the first call.
    """

    collection: Collection
    candidates: CandidateSettings
    bm25: Callable[[], BM25]
    encode: Callable[[EmbeddingSettings], tuple[Encoder, Vectors]]
