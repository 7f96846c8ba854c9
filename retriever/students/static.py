"""Static student: the mean of its tokens' vectors, read from a table. No transformer when a text is encoded; a stock SentenceTransformer inside and on disk."""

from __future__ import annotations

import json
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer

from retriever.errors import ConfigError
from retriever.files import fingerprint, made_once
from retriever.models.names import ModelFolder, cache_folder, find_model
from retriever.settings.student import StaticSettings
from retriever.students._prompts import set_prompts
from retriever.students._reading import saved_reader
from retriever.students._token_table import token_table
from retriever.students.dense import DenseStudent

RECIPE = 1
"""Of `token_table`: another number where the same encoder gives another table."""

BATCH = 4096
"""Texts encoded at a time: there is no padding that a larger batch would waste."""


class StaticStudent(DenseStudent):
    """A dense student without a transformer: it has the same vectors, index and scores, and is encoded far faster.

    A text without a known token has a vector of zeros, whose score with anything is 0.
    """

    kind = "static"

    def __init__(self, model: SentenceTransformer, batch_size: int = 64) -> None:
        super().__init__(model, max(batch_size, BATCH))


def load(settings: StaticSettings, batch_size: int = 64) -> StaticStudent:
    """The student of the experiment file: a static embedding as it is, or the table made from an encoder.

    Making a table takes a few seconds to a minute; it is kept in the user's cache folder, by the encoder's identity.

    Raises:
        ConfigError: there is no such model, no table can be made from it, or its vectors are shorter than is asked for.
    """
    found = find_model(settings.model, settings.revision, "student.model")
    if _is_static(found.folder):
        model = _open(found.folder)
        _check_static(model, settings.model)
        if settings.dimensions:
            _cut(model, settings.dimensions)
    else:
        model = _open(_made(found, settings.dimensions))
    if settings.max_length:
        _table_of(model).tokenizer.enable_truncation(settings.max_length)
    set_prompts(model, settings)
    return StaticStudent(model, batch_size)


def load_folder(folder: Path, batch_size: int = 64) -> StaticStudent:
    """The student saved in a folder, ours or any stock static embedding."""
    student = load(StaticSettings(model=str(folder)), batch_size)
    student.reader = saved_reader(folder, student.model)
    return student


def make_static(encoder: SentenceTransformer, dimensions: int | None = None) -> SentenceTransformer:
    """A stock static embedding made from an encoder: its tokenizer, and the table of `token_table`. It reads whole texts and compares by cosine.

    Args:
        encoder: any whose first module is a transformer.
        dimensions: of the vectors; the encoder's when left out.

    Raises:
        ConfigError: no table can be made from it, or its vectors are shorter than is asked for.
    """
    table = token_table(encoder, dimensions)
    tokenizer = Tokenizer.from_str(encoder.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)], similarity_fn_name="cosine", device="cpu")


def _made(found: ModelFolder, dimensions: int | None) -> Path:
    """The folder of the static embedding made from an encoder; made at the first call."""
    final = cache_folder() / "static" / fingerprint([found.identity, dimensions, RECIPE])

    def make(new: Path) -> None:
        make_static(_open(found.folder), dimensions).save_pretrained(str(new), create_model_card=False)

    return made_once(final, f"making a static embedding of {found.name}", make)


def _open(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), local_files_only=True, model_kwargs={"use_safetensors": True})


def _is_static(folder: Path) -> bool:
    path = folder / "modules.json"
    modules = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return bool(modules) and str(modules[0].get("type")).endswith(".StaticEmbedding")


def _check_static(model: SentenceTransformer, name: str) -> None:
    if others := [type(module).__name__ for module in list(model)[1:] if not isinstance(module, Normalize)]:
        raise ConfigError(f'student.model: {name} has a {others[0]} after its static embedding; use kind = "dense", or a start without it')
    if model.similarity_fn_name not in ("cosine", "dot"):
        raise ConfigError(f'student.model: {name} compares by "{model.similarity_fn_name}"; a static student compares by cosine or dot')


def _table_of(model: SentenceTransformer) -> StaticEmbedding:
    table = model[0]
    if not isinstance(table, StaticEmbedding):
        raise TypeError(f"the first module is a {type(table).__name__}")
    return table


def _cut(model: SentenceTransformer, dimensions: int) -> None:
    """Leaves the first `dimensions` of a table: those of the greatest variance of one made here, or of a Matryoshka model."""
    table = _table_of(model)
    if dimensions > table.embedding_dim:
        raise ConfigError(
            f"student.dimensions: {dimensions}, but the vectors of student.model have {table.embedding_dim}. "
            f"Give {table.embedding_dim} at most, or leave student.dimensions out"
        )
    if dimensions < table.embedding_dim:
        weights = table.embedding.weight.detach()[:, :dimensions].clone()
        model[0] = StaticEmbedding(table.tokenizer, embedding_weights=weights)
