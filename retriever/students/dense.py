"""Dense dual encoder: one vector a text, ranked by inner product. A stock SentenceTransformer inside and on disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Normalize

from retriever.conversations.reading import ConversationReader
from retriever.errors import ConfigError
from retriever.models.names import check_length, find_model
from retriever.models.routes import is_routed, transformers_of, with_frozen_documents
from retriever.settings.student import DenseSettings
from retriever.students._batches import texts_at_a_time
from retriever.students._identity import fingerprints
from retriever.students._layers import keep_layers
from retriever.students._prompts import set_prompts
from retriever.students._reading import save_reader, saved_reader
from retriever.types import Document, Query, Unit

PROJECTION_SEED = 1
"""Of a new projection: the same start is the same student."""


class DenseStudent:
    """A bi-encoder with its lengths and prompts.

    Attributes:
        model: the stock SentenceTransformer, which trainers and users may take as it is.
        batch_size: texts encoded at a time.
        reader: makes one text of a turn of a conversation.
        identity: of the model as it was loaded; see `model_fingerprint`.
        document_identity: what decides documents' encodings; the same, unless queries go another way through the model.
    """

    kind = "dense"

    def __init__(self, model: SentenceTransformer, batch_size: int = 64) -> None:
        self.model = model
        self.batch_size = texts_at_a_time(model, batch_size)
        self.reader = ConversationReader()
        self.identity, self.document_identity = fingerprints(model)

    @property
    def dimensions(self) -> int:
        """D, of the vectors that are indexed."""
        return int(self.model.get_embedding_dimension() or 0)

    @property
    def unit(self) -> Unit:
        """What an inner product of its vectors is."""
        return "cosine" if self.model.similarity_fn_name == "cosine" else "dot"

    def encode_queries(self, queries: Sequence[Query]) -> NDArray[np.float32]:
        """[B, D]; their inner products with documents' vectors are the student's scores."""
        return self._encode(self.reader.texts(queries), "query")

    def encode_documents(self, documents: Sequence[Document]) -> NDArray[np.float32]:
        """[B, D]; title and text joined by a space."""
        return self._encode([document.full_text for document in documents], "document")

    def score(self, queries: NDArray[np.float32], documents: NDArray[np.float32]) -> NDArray[np.float32]:
        """[n] inner products of queries [n, D] and the documents [n, D] at the same places: what the index ranks by."""
        scores: NDArray[np.float32] = np.einsum("nd,nd->n", queries, documents, dtype=np.float32)
        return scores

    def save(self, folder: Path) -> None:
        """Writes a stock sentence-transformers folder."""
        self.model.save_pretrained(str(folder), create_model_card=False)
        save_reader(self.reader, folder)

    def _encode(self, inputs: Sequence[Any], task: str, **options: Any) -> NDArray[np.float32]:
        """[n, D] of texts, or of what else the model reads; the options are those of its `encode`."""
        encode = self.model.encode_query if task == "query" else self.model.encode_document
        cosine = self.model.similarity_fn_name == "cosine"  # then unit vectors make the inner product the cosine
        with torch.inference_mode():
            vectors = encode(list(inputs), batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True, normalize_embeddings=cosine, **options)
        return np.asarray(vectors, dtype=np.float32).reshape(len(inputs), self.dimensions)


def load(settings: DenseSettings, batch_size: int = 64) -> DenseStudent:
    """The student of the experiment file: its starting checkpoint, or a trained one's folder.

    Raises:
        ConfigError: there is no such model, its similarity is neither cosine nor dot, it cannot read so long texts,
            or it has fewer layers or dimensions than are asked for.
    """
    found = find_model(settings.model, settings.revision, "student.model")
    model = SentenceTransformer(str(found.folder), local_files_only=True, model_kwargs={"use_safetensors": True})
    if model.similarity_fn_name not in ("cosine", "dot"):
        raise ConfigError(f'student.model: {settings.model} compares by "{model.similarity_fn_name}"; a dense student compares by cosine or dot')
    if settings.layers:
        for transformer in tuple(transformers_of(model)) or (None,):
            keep_layers(transformer, settings.layers, "student.layers")
    if settings.projection:
        model = _projected(model, settings.projection)
    if settings.dimensions:
        truncate(model, settings.dimensions)
    if settings.max_length:
        _set_length(model, settings.max_length)
    set_prompts(model, settings)
    return DenseStudent(with_frozen_documents(model) if settings.frozen_documents else model, batch_size)


def load_folder(folder: Path, batch_size: int = 64) -> DenseStudent:
    """The student saved in a folder, ours or any stock sentence-transformers one, with the lengths and prompts saved there."""
    student = load(DenseSettings(model=str(folder)), batch_size)
    student.reader = saved_reader(folder, student.model)
    return student


def _projected(model: SentenceTransformer, dimensions: int) -> SentenceTransformer:
    """The model with a linear layer on its pooled vectors, which at first changes no inner product where it adds dimensions.

    A learned projection lets a small student live in its teacher's space, and then search an index of the teacher's vectors
    (LEAF, arXiv:2509.12539).
    """
    if is_routed(model):
        raise ConfigError("student.projection: the model encodes queries and documents by modules of their own. Leave it out, or take the start of that model")
    modules = [module for module in model if not isinstance(module, Normalize)]
    normalised = len(modules) < len(list(model))
    layer = Dense(int(model.get_embedding_dimension() or 0), dimensions, bias=False, activation_function=torch.nn.Identity())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(PROJECTION_SEED)
        torch.nn.init.orthogonal_(layer.linear.weight)
    projected = SentenceTransformer(
        modules=[*modules, layer, *([Normalize()] if normalised else [])],
        similarity_fn_name=model.similarity_fn_name,
        prompts={task: prompt for task, prompt in model.prompts.items() if prompt is not None},
    )
    projected.default_prompt_name = model.default_prompt_name
    return projected


def truncate(model: SentenceTransformer, dimensions: int) -> None:
    """Lets a model give the first `dimensions` of its vectors, which is what a Matryoshka model is trained for (Kusupati et al. 2022, arXiv:2205.13147)."""
    model.truncate_dim = None
    own = model.get_embedding_dimension() or 0
    if dimensions > own:
        raise ConfigError(f"student.dimensions: {dimensions}, but the model's vectors have {own}. Give {own} at most, or leave student.dimensions out")
    model.truncate_dim = dimensions if dimensions < own else None


def _set_length(model: SentenceTransformer, max_length: int) -> None:
    if model.max_seq_length is not None and math.isinf(model.max_seq_length):
        raise ConfigError('student.max_length: the model is a static embedding, whose length is set under kind = "static". Leave student.max_length out')
    check_length(max_length, model.config, "student.max_length")
    model.max_seq_length = max_length
