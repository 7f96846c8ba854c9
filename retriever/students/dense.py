"""Dense dual encoder: one vector a text, ranked by inner product. A stock SentenceTransformer inside and on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from retriever.config import StudentSettings
from retriever.errors import ConfigError
from retriever.files import fingerprint
from retriever.models import check_length, find_model
from retriever.types import Document, Query, Unit


class DenseStudent:
    """A bi-encoder with its lengths and prompts.

    Attributes:
        model: the stock SentenceTransformer, which trainers and users may take as it is.
        batch_size: texts encoded at a time.
        identity: of the model as it was loaded; see `model_fingerprint`.
    """

    kind = "dense"

    def __init__(self, model: SentenceTransformer, batch_size: int = 64) -> None:
        self.model = model
        self.batch_size = batch_size
        self.identity = model_fingerprint(model)

    @property
    def dimensions(self) -> int:
        """D."""
        return int(self.model.get_embedding_dimension() or 0)

    @property
    def unit(self) -> Unit:
        """What an inner product of its vectors is."""
        return "cosine" if self.model.similarity_fn_name == "cosine" else "dot"

    def encode_queries(self, queries: Sequence[Query]) -> NDArray[np.float32]:
        """[B, D]; their inner products with documents' vectors are the student's scores."""
        return self._encode([query.text for query in queries], "query")

    def encode_documents(self, documents: Sequence[Document]) -> NDArray[np.float32]:
        """[B, D]; title and text joined by a space."""
        return self._encode([document.full_text for document in documents], "document")

    def score(self, queries: NDArray[np.float32], documents: NDArray[np.float32]) -> NDArray[np.float32]:
        """[B, K] inner products of queries [B, D] and their documents [B, K, D]: what the index ranks by."""
        scores: NDArray[np.float32] = np.einsum("bd,bkd->bk", queries, documents, dtype=np.float32)
        return scores

    def save(self, folder: Path) -> None:
        """Writes a stock sentence-transformers folder."""
        self.model.save_pretrained(str(folder), create_model_card=False)

    def _encode(self, texts: Sequence[str], task: str) -> NDArray[np.float32]:
        encode = self.model.encode_query if task == "query" else self.model.encode_document
        cosine = self.model.similarity_fn_name == "cosine"  # then unit vectors make the inner product the cosine
        with torch.inference_mode():
            vectors = encode(list(texts), batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True, normalize_embeddings=cosine)
        return np.asarray(vectors, dtype=np.float32).reshape(len(texts), self.dimensions)


def load(settings: StudentSettings, batch_size: int = 64) -> DenseStudent:
    """The student of the experiment file: its starting checkpoint, or a trained one's folder.

    Raises:
        ConfigError: there is no such model, its similarity is neither cosine nor dot, or it cannot read so long texts.
    """
    found = find_model(settings.model, settings.revision, "student.model")
    model = SentenceTransformer(str(found.folder), local_files_only=True, model_kwargs={"use_safetensors": True})
    if model.similarity_fn_name not in ("cosine", "dot"):
        raise ConfigError(f'student.model: {settings.model} compares by "{model.similarity_fn_name}"; a dense student compares by cosine or dot')
    check_length(settings.max_length, model.config, "student.max_length")
    if settings.max_length:
        model.max_seq_length = settings.max_length
    prompts = {"query": settings.query_prompt, "document": settings.document_prompt}
    model.prompts = {**model.prompts, **{task: prompt for task, prompt in prompts.items() if prompt is not None}}
    return DenseStudent(model, batch_size)


def load_folder(folder: Path, batch_size: int = 64) -> DenseStudent:
    """The student saved in a folder, ours or any stock sentence-transformers one, with the lengths and prompts saved there."""
    return load(StudentSettings(model=str(folder)), batch_size)


def model_fingerprint(model: SentenceTransformer) -> str:
    """Changes with the weights, the vocabulary, the pooling, the length read, the prompts and the similarity.

    It is taken from what is loaded, not from files: a model that is saved and loaded again keeps it.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    vocabulary = sorted(model.tokenizer.get_vocab().items())
    # The first module's settings are lengths and the transformer's own, of which weights and vocabulary tell already.
    settings = ["", *(str(cast(Any, module).get_config_dict()) for module in list(model)[1:])]
    modules = [[type(module).__name__, its_settings] for module, its_settings in zip(model, settings, strict=True)]
    return fingerprint([digest.hexdigest(), vocabulary, modules, model.max_seq_length, model.prompts, model.similarity_fn_name])
