"""Late interaction: a vector for each token, compared by MaxSim (Khattab and Zaharia 2020, arXiv:2004.12832)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import MultiVectorEncoder, SentenceTransformer

from retriever.collection import Collection
from retriever.files import fingerprint
from retriever.models import check_length, find_model
from retriever.ragged_encodings import Ragged, RaggedVectors
from retriever.teacher_settings import EmbeddingSettings
from retriever.types import Document, Query, Unit


class LateInteraction:
    """A ColBERT-like model, or any other that sentence-transformers' MultiVectorEncoder loads. Documents' vectors are kept in float16."""

    columns = ("vectors",)
    unit: Unit = "maxsim"

    def __init__(self, model: MultiVectorEncoder, identity: str, batch_size: int) -> None:
        self.model = model
        self.identity = identity
        self.batch_size = batch_size

    def encode_documents(self, documents: Sequence[Document]) -> Ragged:
        """float16 [L, D] for each document, the tokens that count in the similarity."""
        texts = [document.full_text for document in documents]
        with torch.inference_mode():
            vectors = self.model.encode_document(texts, batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True)
        return Ragged.of_lists("vectors", [np.asarray(one, dtype=np.float16) for one in vectors], int(self.model.get_embedding_dimension() or 0))

    def encode_queries(self, queries: Sequence[Query]) -> list[NDArray[np.float32]]:
        """float32 [L, D] for each query."""
        with torch.inference_mode():
            vectors = self.model.encode_query([query.text for query in queries], batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True)
        return [np.asarray(one, dtype=np.float32) for one in vectors]

    def similarity(self, query: NDArray[np.float32], documents: Ragged) -> NDArray[np.float32]:
        """[n], the sum over a query's tokens [L, D] of the best inner product with a token of each document.

        With a model that was trained so, the mean over the query's tokens. A document without tokens has what unit vectors
        that all point away from the query would have: the lowest score there can be, and not sentence-transformers' -1e9,
        which would be the only thing that the mean of its list says.
        """
        scores = np.full(len(documents), -np.linalg.norm(query, axis=1).sum(), dtype=np.float32)
        filled = documents.counts > 0
        if filled.any():
            products = documents.columns["vectors"].astype(np.float32) @ query.T
            scores[filled] = np.maximum.reduceat(products, documents.offsets[:-1][filled], axis=0).sum(axis=1)
        return scores / np.float32(len(query)) if self.model.similarity_fn_name == "meanmaxsim" else scores


class PooledTokens:
    """The mean of each document's token vectors, normalised: one vector, for students that learn from vectors."""

    columns = ("vectors",)

    def __init__(self, encoder: LateInteraction, tokens: RaggedVectors, collection: Collection) -> None:
        self.identity = fingerprint(["pooled", encoder.identity])
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


def load_late_interaction(settings: EmbeddingSettings) -> LateInteraction:
    """The late-interaction encoder of the file.

    Raises:
        ConfigError: there is no such model, or it cannot read so long documents.
    """
    where = f"teacher {settings.label}"
    found = find_model(str(settings.model), settings.revision, where)
    model = MultiVectorEncoder(str(found.folder), local_files_only=True, model_kwargs={"use_safetensors": True})
    check_length(settings.max_length, getattr(model, "config", None), f"{where}: max_length")
    if settings.max_length:
        model.max_seq_length = settings.max_length
    facts = [model.max_seq_length, model.similarity_fn_name, str(next(model.parameters()).dtype), "float16"]
    return LateInteraction(model, fingerprint(["late_interaction", found.identity, *facts]), settings.batch_size)
