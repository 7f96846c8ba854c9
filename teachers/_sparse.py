"""Learned sparse vectors: the entries of each document, and their inner product with a query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SparseEncoder

from retriever.errors import ConfigError
from retriever.files import fingerprint
from retriever.models import check_length, find_model
from retriever.ragged_encodings import Ragged
from retriever.teacher_settings import EmbeddingSettings
from retriever.types import Document, Query, Unit


class Sparse:
    """A SPLADE-like model, or any other that sentence-transformers' SparseEncoder loads."""

    columns = ("dimensions", "values")

    def __init__(self, model: SparseEncoder, identity: str, batch_size: int) -> None:
        self.model = model
        self.identity = identity
        self.batch_size = batch_size

    @property
    def unit(self) -> Unit:
        """What the similarity is."""
        return "cosine" if self.model.similarity_fn_name == "cosine" else "dot"

    def encode_documents(self, documents: Sequence[Document]) -> Ragged:
        """The dimensions int32 and values float32 of each document that are not 0."""
        vectors = self._encode([document.full_text for document in documents], "document")
        rows, dimensions = vectors.indices().numpy()
        counts = np.bincount(rows, minlength=len(documents))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Ragged(offsets, {"dimensions": dimensions.astype(np.int32), "values": vectors.values().numpy().astype(np.float32)})

    def encode_queries(self, queries: Sequence[Query]) -> list[NDArray[np.float32]]:
        """A dense vector [V] for each query."""
        return list(self._encode([query.text for query in queries], "query").to_dense().numpy().astype(np.float32))

    def similarity(self, query: NDArray[np.float32], documents: Ragged) -> NDArray[np.float32]:
        """[n], the inner product of a query [V] with each document."""
        products = documents.columns["values"] * query[documents.columns["dimensions"].astype(np.int64)]
        document_of_each = np.repeat(np.arange(len(documents)), documents.counts)
        return np.bincount(document_of_each, products, minlength=len(documents)).astype(np.float32)

    def _encode(self, texts: list[str], task: str) -> torch.Tensor:
        encode = self.model.encode_query if task == "query" else self.model.encode_document
        with torch.inference_mode():
            vectors = encode(texts, batch_size=self.batch_size, show_progress_bar=False, convert_to_sparse_tensor=False, save_to_cpu=True)
            if self.unit == "cosine":
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
            return vectors.float().to_sparse().coalesce()


def load_sparse(settings: EmbeddingSettings) -> Sparse:
    """The sparse encoder of the file.

    Raises:
        ConfigError: there is no such model, or its similarity is neither an inner product nor a cosine.
    """
    where = f"teacher {settings.label}"
    found = find_model(str(settings.model), settings.revision, where)
    model = SparseEncoder(str(found.folder), local_files_only=True, model_kwargs={"use_safetensors": True})
    if model.similarity_fn_name not in ("dot", "cosine"):
        raise ConfigError(f'{where}: {settings.model} compares by "{model.similarity_fn_name}"; a sparse teacher compares by dot or cosine')
    check_length(settings.max_length, getattr(model, "config", None), f"{where}: max_length")
    if settings.max_length:
        model.max_seq_length = settings.max_length
    facts = [model.max_seq_length, model.similarity_fn_name, model.max_active_dims, str(next(model.parameters()).dtype)]
    return Sparse(model, fingerprint(["sparse", found.identity, *facts]), settings.batch_size)
