"""Learned sparse student: a weight for each word of the vocabulary, ranked by inner product. A stock SparseEncoder inside and on disk.

SPLADE (Formal et al. 2021, arXiv:2109.10086): the weight of a word is the largest log(1 + ReLU(logit)) over the tokens of a text.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Router
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling

from retriever.conversations.reading import ConversationReader
from retriever.errors import ConfigError
from retriever.models.names import check_length, find_model
from retriever.models.routes import document_model, modules_of, rebuilt, transformers_of, with_frozen_documents
from retriever.models.splade import without_logits
from retriever.ragged import Ragged
from retriever.settings.student import SparseSettings
from retriever.students._batches import texts_at_a_time
from retriever.students._head import sparsen, splade_of
from retriever.students._identity import fingerprints
from retriever.students._layers import keep_layers
from retriever.students._prompts import set_prompts
from retriever.students._reading import save_reader, saved_reader
from retriever.types import Document, Query, Unit

LOGITS = 2**26
"""Logits [B, L, V] of the texts that are read at a time, in numbers: where a model holds them all, 256 MiB, and about as much again while they are pooled."""

START = 2
"""A made head starts with so many times the wanted active dimensions of a document: training takes them away, and brings few back."""


class SparseStudent:
    """A sparse encoder with its lengths and prompts.

    Attributes:
        model: the stock SparseEncoder, which trainers and users may take as it is.
        batch_size: texts encoded at a time, at most.
        reader: makes one text of a turn of a conversation.
        identity: of the model as it was loaded.
        document_identity: what decides documents' entries; the same, unless queries go another way through the model.
    """

    kind = "sparse"
    columns = ("dimensions", "values")

    def __init__(self, model: SparseEncoder, batch_size: int = 64) -> None:
        self.model = model
        self.batch_size = texts_at_a_time(model, batch_size)
        self.reader = ConversationReader()
        for module in model.modules():
            if isinstance(module, SpladePooling):  # stock learns it at the first text, which would change the identity
                module.embedding_dimension = _vocabulary_size(model)
        self.identity, self.document_identity = fingerprints(model)

    @property
    def dimensions(self) -> int:
        """V, the size of the vocabulary."""
        return int(self.model.get_embedding_dimension() or 0)

    @property
    def vocabulary(self) -> list[str]:
        """[V], the word of each dimension; "" for one without, where the head was padded to a round number."""
        words = [""] * self.dimensions
        for word, number in self.model.tokenizer.get_vocab().items():
            words[number] = word
        return words

    @property
    def unit(self) -> Unit:
        """What an inner product of its vectors is."""
        return "cosine" if self.model.similarity_fn_name == "cosine" else "dot"

    def encode_queries(self, queries: Sequence[Query]) -> Ragged:
        """The active dimensions int32 of each query, rising, and their values float32, all above 0."""
        return self._encode(self.reader.texts(queries), "query")

    def encode_documents(self, documents: Sequence[Document]) -> Ragged:
        """The same of documents; title and text joined by a space."""
        return self._encode([document.full_text for document in documents], "document")

    def score(self, queries: Ragged, documents: Ragged) -> NDArray[np.float32]:
        """[n], the inner product of each query with the document at the same place: what the index ranks by."""
        products = self._matrix(queries).multiply(self._matrix(documents))
        return np.asarray(products.sum(axis=1), dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Writes a stock sentence-transformers folder. Query weights that training took below 0 count as 0, here and there."""
        with torch.no_grad():
            for module in self.model.modules():
                if isinstance(module, SparseStaticEmbedding):
                    module.weight.clamp_(min=0)
        self.model.save_pretrained(str(folder), create_model_card=False)
        save_reader(self.reader, folder)

    def _encode(self, texts: Sequence[str], task: str) -> Ragged:
        order, counts, dimensions, values = [], [], [np.zeros(0, dtype=np.int32)], [np.zeros(0, dtype=np.float32)]
        for numbers in self._batches(texts):
            vectors = self._vectors([texts[number] for number in numbers], task)
            places, found = np.nonzero(vectors)
            order += numbers
            counts += np.bincount(places, minlength=len(numbers)).tolist()
            dimensions.append(found.astype(np.int32))
            values.append(vectors[places, found])
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        by_length = Ragged(offsets, {"dimensions": np.concatenate(dimensions), "values": np.concatenate(values)})
        return by_length[np.argsort(np.array(order, dtype=np.int64))]

    def _batches(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Numbers of texts of falling length, so few together that their logits stay below `LOGITS`."""
        longest = self.model.max_seq_length or max(map(len, texts), default=1)
        prompt = max((len(prompt.encode()) for prompt in self.model.prompts.values() if prompt), default=0)
        tokens = [min(longest, len(text.encode()) + prompt + 2) for text in texts]  # a token has at least a byte
        order = sorted(range(len(texts)), key=lambda number: -tokens[number])
        start = 0
        while start < len(order):
            size = max(1, min(self.batch_size, LOGITS // (self.dimensions * tokens[order[start]])))
            yield order[start : start + size]
            start += size

    def _vectors(self, texts: list[str], task: str) -> NDArray[np.float32]:
        """[b, V], no value below 0, of length 1 where the model compares by cosine."""
        encode = self.model.encode_query if task == "query" else self.model.encode_document
        with torch.inference_mode(), without_logits(self.model):
            dense = encode(texts, batch_size=len(texts), show_progress_bar=False, convert_to_sparse_tensor=False, save_to_cpu=True)
            vectors = dense.float().clamp(min=0)
            return np.asarray(torch.nn.functional.normalize(vectors, dim=-1) if self.unit == "cosine" else vectors)

    def _matrix(self, encoded: Ragged) -> Any:
        """[n, V], as scipy's compressed rows."""
        entries = (encoded.columns["values"], encoded.columns["dimensions"], encoded.offsets)
        return csr_array(entries, shape=(len(encoded), self.dimensions))


def load(settings: SparseSettings, batch_size: int = 64, sample: Sequence[Document] = ()) -> SparseStudent:
    """The student of the experiment file: a SparseEncoder, a masked-language model, or an encoder, which is given a head.

    Args:
        settings: of the experiment file.
        batch_size: texts encoded at a time, at most.
        sample: documents of the collection, about 1,000 spread over it. Where a head is made, the first bias comes from some of
            them; where queries are inference-free, the first weights are their inverse document frequencies, and 1 without them.

    Raises:
        ConfigError: there is no such model, it cannot be made sparse, or does not fit the settings.
    """
    found = find_model(settings.model, settings.revision, "student.model")
    stock: dict[str, Any] = {"local_files_only": True, "model_kwargs": {"use_safetensors": True}}
    made = not _is_sparse(found.folder)
    model = splade_of(SentenceTransformer(str(found.folder), **stock), settings.model) if made else SparseEncoder(str(found.folder), **stock)
    if model.similarity_fn_name not in ("cosine", "dot"):
        raise ConfigError(f'student.model: {settings.model} compares by "{model.similarity_fn_name}"; a sparse student compares by dot or cosine')
    _read_as_asked(model, settings)
    if settings.layers is not None:
        for transformer in transformers_of(model) or [_transformer(model, settings)]:
            keep_layers(transformer, settings.layers, "student.layers")
    texts = [document.full_text for document in sample]
    if made:
        sparsen(model, START * settings.document_dimensions, texts)
    if settings.inference_free_queries:
        model = _with_free_queries(model, settings, texts)
    if settings.frozen_documents:
        model = with_frozen_documents(model)
    return SparseStudent(model, batch_size)


def load_folder(folder: Path, batch_size: int = 64) -> SparseStudent:
    """The student saved in a folder, ours or any stock SparseEncoder one, with the lengths and prompts saved there."""
    student = load(SparseSettings(model=str(folder)), batch_size)
    student.reader = saved_reader(folder, student.model)
    return student


def inverse_document_frequencies(tokenizer: Any, texts: Iterable[str], size: int) -> NDArray[np.float32]:
    """[size], ln(1 + (N - n + 1/2) / (n + 1/2)) of each token that n of N texts hold, as in Lucene's BM25; 0 of special tokens."""
    read = [set(tokenizer(text, add_special_tokens=False, truncation=True)["input_ids"]) for text in texts]
    held = np.bincount([number for numbers in read for number in numbers], minlength=size).astype(np.float64)
    weights = np.log1p((len(read) - held + 0.5) / (held + 0.5))
    weights[tokenizer.all_special_ids] = 0
    return weights.astype(np.float32)


def _is_sparse(folder: Path) -> bool:
    """Whether stock SparseEncoder reads a SPLADE or other sparse model from a folder; to any other it would add what it calls an autoencoder."""

    def read(name: str) -> dict[str, Any]:
        return dict(json.loads((folder / name).read_text(encoding="utf-8"))) if (folder / name).is_file() else {}

    if (folder / "modules.json").is_file():
        return read("config_sentence_transformers.json").get("model_type") == "SparseEncoder"
    return any(str(name).endswith("ForMaskedLM") for name in read("config.json").get("architectures") or ())


def _read_as_asked(model: SparseEncoder, settings: SparseSettings) -> None:
    """Sets the lengths and prompts of the experiment file."""
    check_length(settings.max_length, model.config, "student.max_length")
    if settings.max_length:
        model.max_seq_length = settings.max_length
        for module in model.modules():
            if isinstance(module, SparseStaticEmbedding):  # it reads as much as its tokenizer says, and nothing sets that
                cast(Any, module.tokenizer).model_max_length = settings.max_length
    set_prompts(model, settings)


def _with_free_queries(model: SparseEncoder, settings: SparseSettings, texts: Sequence[str]) -> SparseEncoder:
    """The same model for documents, and a table of word weights for queries; a model that has such a table stays as it is."""
    if isinstance(modules_of(model, "query")[0], SparseStaticEmbedding):
        return model
    model = document_model(model)
    if not isinstance(model[-1], SpladePooling):
        raise ConfigError(f"student.inference_free_queries: the dimensions of {settings.model} are no words. Take a SPLADE model, or leave it out")
    tokenizer = copy.deepcopy(model.tokenizer)
    size = len(tokenizer.get_vocab())
    if size != _vocabulary_size(model):  # padded to a round number; the table has a weight for each word and no more
        _transformer(model, settings).resize_token_embeddings(size)
    weights = inverse_document_frequencies(tokenizer, texts, size) if texts else np.ones(size, dtype=np.float32)
    weights[tokenizer.all_special_ids] = 0
    modules: list[Any] = list(model.children())
    return rebuilt(model, [Router.for_query_document([SparseStaticEmbedding(tokenizer, torch.from_numpy(weights))], modules)])


def _transformer(model: SparseEncoder, settings: SparseSettings) -> Any:
    if model.transformers_model is None:
        raise ConfigError(f"student.model: {settings.model} has no transformer")
    return model.transformers_model


def _vocabulary_size(model: SparseEncoder) -> int:
    return int(cast(Any, model.transformers_model).get_output_embeddings().weight.shape[0])
