"""Late interaction: a vector for each token, compared by MaxSim. A stock MultiVectorEncoder inside and on disk (ColBERT, arXiv:2004.12832)."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import BaseTokenPooling, HierarchicalTokenPooling, MultiVectorMask
from torch import nn

from retriever.conversations.reading import ConversationReader
from retriever.errors import ConfigError
from retriever.files import fingerprint
from retriever.models.names import check_length, find_model
from retriever.models.routes import modules_of, readers_of, rebuilt, transformers_of, with_frozen_documents
from retriever.ragged import Ragged
from retriever.settings.student import LateInteractionSettings
from retriever.students._batches import texts_at_a_time
from retriever.students._identity import fingerprints
from retriever.students._layers import keep_layers
from retriever.students._prompts import set_prompts
from retriever.students._reading import save_reader, saved_reader
from retriever.types import Document, Query, Unit

DIMENSIONS = 128
"""Of a token's vector, where a starting checkpoint has no projection of its own; ColBERT's."""

QUERY_LENGTH = 32
"""What queries are filled up to at least, where neither the settings nor the checkpoint give a length; ColBERT's."""


class LateInteractionStudent:
    """A ColBERT-like model with its lengths, prompts and pooling.

    Documents' vectors are float16: half the bytes, for at most .00004 of a score for each token of the query (.001 for 32 tokens; MiniLM).

    Attributes:
        model: the stock MultiVectorEncoder without the pooling of tokens, which is trained as it is.
        batch_size: texts encoded at a time.
        reader: makes one text of a turn of a conversation.
        pooling: what merges the tokens of encoded documents, None to keep them all; it is saved with the model.
        document_type: of documents' vectors; np.float32 gives the scores of stock sentence-transformers to 1e-5.
        identity: of the model as it was loaded.
        document_identity: what decides documents' vectors; the same, unless queries go another way through the model.
    """

    kind = "late_interaction"
    columns = ("vectors",)
    unit: Unit = "maxsim"

    def __init__(self, model: MultiVectorEncoder, batch_size: int = 64, pooling: BaseTokenPooling | None = None, document_type: DTypeLike = np.float16) -> None:
        self.model = model
        self.batch_size = texts_at_a_time(model, batch_size)
        self.reader = ConversationReader()
        self.pooling = pooling
        self.document_type = np.dtype(document_type)
        self.identity, self.document_identity = (fingerprint([one, self.document_type.name]) for one in fingerprints(self._with_pooling()))

    @property
    def dimensions(self) -> int:
        """D, of a token's vector."""
        return int(self.model.get_embedding_dimension() or 0)

    def encode_queries(self, queries: Sequence[Query]) -> Ragged:
        """float32 [Lq, D] for each query, the [MASK] tokens of an expanded one included.

        Where the model compares by the mean over a query's tokens, its vectors are divided by their number: the sum is then the mean.
        """
        vectors = [np.asarray(one, dtype=np.float32) for one in self._encode(self.reader.texts(queries), "query")]
        if self.model.similarity_fn_name == "meanmaxsim":
            vectors = [one / np.float32(max(len(one), 1)) for one in vectors]
        return Ragged.of_lists("vectors", vectors, self.dimensions)

    def encode_documents(self, documents: Sequence[Document]) -> Ragged:
        """[Ld, D] for each document in `document_type`: the tokens that count, or what the pooling made of them."""
        vectors = self._encode([document.full_text for document in documents], "document")
        return Ragged.of_lists("vectors", [np.asarray(one, dtype=self.document_type) for one in vectors], self.dimensions)

    def score(self, queries: Ragged, documents: Ragged) -> NDArray[np.float32]:
        """[n], MaxSim of each query with the document at the same place: what the index ranks by."""
        query_tokens = queries.columns["vectors"].astype(np.float32, copy=False)
        document_tokens = torch.from_numpy(documents.columns["vectors"]).float().numpy()  # twice as fast as numpy's astype
        bounds = zip(queries.offsets[:-1], queries.offsets[1:], documents.offsets[:-1], documents.offsets[1:], strict=True)
        scores = [maxsim(query_tokens[start:end], document_tokens[first:last]) for start, end, first, last in bounds]
        return np.array(scores, dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Writes a stock sentence-transformers folder, the pooling as its last module."""
        self._with_pooling().save_pretrained(str(folder), create_model_card=False)
        save_reader(self.reader, folder)

    def _encode(self, texts: list[str], task: str) -> list[NDArray[Any]]:
        encode = self.model.encode_query if task == "query" else self.model.encode_document
        with torch.inference_mode():
            return list(encode(texts, batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True, token_pooling=self.pooling))

    def _with_pooling(self) -> MultiVectorEncoder:
        return rebuilt(self.model, [*self.model, self.pooling]) if self.pooling else self.model


def maxsim(query: NDArray[np.float32], document: NDArray[np.float32]) -> np.float32:
    """The sum over a query's tokens [Lq, D] of the best inner product with a token of the document [Ld, D].

    A document without tokens has what unit vectors that all point away from the query would have: the lowest score there can be,
    and not sentence-transformers' -1e9, which would be the only thing that the mean of a list says.
    """
    if len(document) == 0:
        return np.float32(-np.linalg.norm(query, axis=1).sum())
    return np.float32((torch.from_numpy(query) @ torch.from_numpy(document).T).amax(dim=1).sum())


def load(settings: LateInteractionSettings, batch_size: int = 64) -> LateInteractionStudent:
    """The student of the experiment file: a late-interaction checkpoint, or any encoder with a new projection of its token vectors.

    Raises:
        ConfigError: there is no such model, it has no token vectors, or it cannot be had with these dimensions, layers or lengths.
    """
    found = find_model(settings.model, settings.revision, "student.model")
    model = _open(found.folder, settings) if is_late_interaction(found.folder) else _from_encoder(found.folder, settings)
    pooling = _take_pooling(model)
    if settings.layers:
        for transformer in transformers_of(model):
            keep_layers(transformer, settings.layers, "student.layers")
    if settings.pool_factor:
        pooling = HierarchicalTokenPooling(float(settings.pool_factor)) if settings.pool_factor > 1 else None
    if settings.frozen_documents:
        model = with_frozen_documents(model)  # before the lengths, for those of queries leave what encodes documents as it is
    _set_lengths(model, settings)
    set_prompts(model, settings)
    return LateInteractionStudent(model, batch_size, pooling)


def load_folder(folder: Path, batch_size: int = 64) -> LateInteractionStudent:
    """The student saved in a folder, ours or any stock MultiVectorEncoder's, with the lengths, prompts and pooling saved there."""
    student = load(LateInteractionSettings(model=str(folder)), batch_size)
    student.reader = saved_reader(folder, student.model)
    return student


def is_late_interaction(folder: Path) -> bool:
    """Whether a folder's token vectors were trained to be compared: sentence-transformers', PyLate's, Stanford's ColBERT, or a ColPali."""
    stock, plain = _read_json(folder / "config_sentence_transformers.json"), _read_json(folder / "config.json")
    architectures = plain.get("architectures") or []
    named = stock.get("model_type") in ("MultiVectorEncoder", "ColBERT") or "query_prefix" in stock
    return named or any(name == "HF_ColBERT" or name.endswith("ForRetrieval") for name in architectures)


def start_projection(embeddings: NDArray[np.float32], width: int, dimensions: int) -> NDArray[np.float32]:
    """Orthonormal rows [dimensions, width]: a start that keeps the inner products of tokens about as they are.

    The directions in which the model's word embeddings [V, width] lie: transformers add to them from layer to layer, so they are still
    in its token vectors. Where words have another width than tokens, as in ALBERT, random directions, always the same.
    """
    if embeddings.shape[1] != width:
        random = np.random.default_rng(0).normal(size=(width, dimensions))
        return np.asarray(np.linalg.qr(random)[0].T, dtype=np.float32)
    moments = np.zeros((width, width))
    for start in range(0, len(embeddings), 8192):
        part = embeddings[start : start + 8192].astype(np.float64)
        part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        moments += part.T @ part
    directions = np.linalg.eigh(moments)[1][:, ::-1][:, :dimensions].T
    strongest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    # rounded, since another number of threads has other last bits: the start, and all that is trained from it, would be another model
    return np.asarray(np.round(directions * np.sign(strongest), 5), dtype=np.float32)


def _open(folder: Path, settings: LateInteractionSettings) -> MultiVectorEncoder:
    """A late-interaction checkpoint as it is."""
    model = MultiVectorEncoder(str(folder), local_files_only=True, model_kwargs={"use_safetensors": True})
    own = model.get_embedding_dimension()
    if settings.dimensions not in (None, own):
        raise ConfigError(f"student.dimensions: {settings.dimensions}, but the token vectors of {settings.model} have {own}. Leave it out")
    return model


def _from_encoder(folder: Path, settings: LateInteractionSettings) -> MultiVectorEncoder:
    """The transformer of an encoder, its token vectors projected and normalised; documents' punctuation does not count, as in ColBERT."""
    encoder = SentenceTransformer(str(folder), local_files_only=True, model_kwargs={"use_safetensors": True})
    transformer = encoder[0]
    if not isinstance(transformer, Transformer) or transformer.tokenizer is None:
        raise ConfigError(f"student.model: {settings.model} has no transformer that reads text, so no token vectors to compare. Name an encoder")
    width = int(transformer.get_embedding_dimension())
    dimensions = settings.dimensions or min(DIMENSIONS, width)
    if dimensions > width:
        raise ConfigError(f"student.dimensions: {dimensions}, but the token vectors of {settings.model} have {width}. Give at most {width}")
    known = transformer.tokenizer.get_vocab()
    mask = MultiVectorMask([character for character in string.punctuation if character in known])
    projection = [] if dimensions == width else [_projection(transformer, width, dimensions)]
    return MultiVectorEncoder(
        modules=[transformer, *projection, mask, Normalize(module_input_name="token_embeddings")],
        device=str(encoder.device),
        prompts=cast(dict[str, str], dict(encoder.prompts)),
        default_prompt_name=encoder.default_prompt_name,
        similarity_fn_name="maxsim",
    )


def _projection(transformer: Transformer, width: int, dimensions: int) -> Dense:
    embeddings = cast(torch.Tensor, transformer.auto_model.get_input_embeddings().weight).detach()
    weight = torch.from_numpy(start_projection(embeddings.float().cpu().numpy(), width, dimensions))
    identity, start = nn.Identity(), weight.to(embeddings.dtype)
    return Dense(width, dimensions, bias=False, activation_function=identity, init_weight=start, module_input_name="token_embeddings")


def _take_pooling(model: MultiVectorEncoder) -> BaseTokenPooling | None:
    """The pooling at the end of a saved model, taken out of it: it clusters text by text on the CPU, and training does not need it."""
    last = model[-1]
    if not isinstance(last, BaseTokenPooling):
        return None
    del model[-1]
    return last


def _set_lengths(model: MultiVectorEncoder, settings: LateInteractionSettings) -> None:
    """Puts the lengths of the settings into the model, and turns the expansion of queries on or off, where they are encoded."""
    check_length(settings.max_length, model.config, "student.max_length")
    check_length(settings.query_length, model.config, "student.query_length")
    if settings.max_length:
        model.max_seq_length = settings.max_length
        for reader in readers_of(model):
            cast(Transformer, reader).document_length = None  # a PyLate checkpoint's own, which would go before
    transformer = cast(Transformer, modules_of(model, "query")[0])
    own = transformer.query_expansion
    if settings.query_length is None and settings.query_expansion in (None, own is not None):
        return
    length = settings.query_length or (own["length"] if own and own["strategy"] == "fixed" else transformer.query_length)
    expand = own is not None if settings.query_expansion is None else settings.query_expansion
    transformer.query_expansion = None
    transformer.query_length = None if expand else length  # the expansion's own length goes before
    if expand:
        if own is None and (transformer.tokenizer is None or transformer.tokenizer.mask_token is None):
            raise ConfigError(f"student.query_expansion: {settings.model} has no [MASK] token to fill queries with. Leave it out")
        transformer.query_expansion = {
            "strategy": "fixed" if length else "min",  # a length that nobody asked for cuts no query
            "attend": bool(own and own.get("attend")),
            "token": own.get("token") if own else None,
            "length": length or QUERY_LENGTH,
        }


def _read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
