"""Vectors that are kept beside those that a teacher scores with: pooled token vectors, and token vectors before they are pooled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from retriever.collection import Collection
from retriever.encodings import DocumentEncodings
from retriever.files import fingerprint
from retriever.ragged import Ragged
from retriever.types import Document


class PooledTokens:
    """The mean of each document's token vectors, normalised: one vector, for students that learn from vectors."""

    columns = ("vectors",)

    def __init__(self, encoder: str, tokens: DocumentEncodings, collection: Collection) -> None:
        self.identity = fingerprint(["pooled", encoder])
        self.tokens = tokens
        self.collection = collection

    def encode_documents(self, documents: Sequence[Document]) -> Ragged:
        """float16 [1, D] for each document, from its token vectors on the disk; zeros for one without tokens."""
        found = self.tokens.rows(self.collection.rows_of([document.doc_id for document in documents]))
        vectors = found.columns["vectors"].astype(np.float32)
        parts = [vectors[start:end].sum(axis=0) for start, end in zip(found.offsets[:-1], found.offsets[1:], strict=True)]
        units = [part / max(float(np.linalg.norm(part)), np.finfo(np.float32).tiny) for part in parts]
        return Ragged.of_lists("vectors", [unit[None].astype(np.float16) for unit in units], vectors.shape[-1])


class TokenVectors:
    """The token vectors of a dense model before they are pooled, for students that learn from tokens."""

    columns = ("vectors",)

    def __init__(self, model: SentenceTransformer, identity: str, batch_size: int) -> None:
        self.model = model
        self.identity = fingerprint(["tokens", identity])
        self.batch_size = batch_size

    def encode_documents(self, documents: Sequence[Document]) -> Ragged:
        """float16 [L, D] for each document."""
        texts = [document.full_text for document in documents]
        with torch.inference_mode():
            encoded = self.model.encode_document(texts, batch_size=self.batch_size, show_progress_bar=False, output_value="token_embeddings")
        arrays = [one.cpu().numpy().astype(np.float16) for one in cast(list[torch.Tensor], encoded)]
        return Ragged.of_lists("vectors", arrays, arrays[0].shape[1] if arrays else 0)
