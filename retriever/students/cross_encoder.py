"""Cross-encoder student: reads query and document together and re-ranks; it makes no index. A stock CrossEncoder inside and on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder

from retriever.conversations.reading import ConversationReader
from retriever.errors import ConfigError
from retriever.models.names import check_length, find_model
from retriever.settings.student import CrossEncoderStudentSettings
from retriever.students._identity import model_fingerprint
from retriever.students._layers import keep_layers
from retriever.students._reading import save_reader, saved_reader
from retriever.types import Document, Query, Unit

HEAD_SEED = 1
"""Of the new head of a start that is an encoder: the same start is the same student."""

RANKERS = ("ForSequenceClassification", "ForCausalLM")
"""How the names of transformers' classes end that can score a pair."""


class CrossEncoderStudent:
    """A cross-encoder with one logit.

    Attributes:
        model: the stock CrossEncoder, which trainers and users may take as it is; its activation is the identity.
        batch_size: pairs read at a time.
        reader: makes one text of a turn of a conversation.
        identity: of the model as it was loaded; see `model_fingerprint`.
    """

    kind = "cross_encoder"
    unit: Unit = "logit"

    def __init__(self, model: CrossEncoder, batch_size: int = 64) -> None:
        self.model = model
        self.batch_size = batch_size
        self.reader = ConversationReader()
        self.identity = model_fingerprint(model)

    def score_pairs(self, pairs: Sequence[tuple[Query, Document]]) -> NDArray[np.float32]:
        """[n] raw logits; pairs of similar length are read together, and the longer of two texts is cut to the model's length."""
        texts = [(self.reader.text(query).text, document.full_text) for query, document in pairs]
        logits = self.model.predict(texts, batch_size=self.batch_size, show_progress_bar=False, activation_fn=torch.nn.Identity())
        return np.asarray(logits, dtype=np.float32).reshape(len(texts))

    def save(self, folder: Path) -> None:
        """Writes a stock sentence-transformers folder, whose scores are the same raw logits."""
        self.model.save_pretrained(str(folder), create_model_card=False)
        save_reader(self.reader, folder)


def load(settings: CrossEncoderStudentSettings, batch_size: int = 64) -> CrossEncoderStudent:
    """The student of the experiment file: a cross-encoder, or an encoder with a new head, which is random and always the same.

    Raises:
        ConfigError: there is no such model, it has several labels, fewer layers than are asked for, or cannot read so long pairs.
    """
    found = find_model(settings.model, settings.revision, "student.model")
    model = _open(found.folder, settings.model)
    if settings.layers:
        keep_layers(model.transformers_model, settings.layers, "student.layers")
    check_length(settings.max_length, model.config, "student.max_length")
    if settings.max_length:
        model.max_seq_length = settings.max_length
    model.activation_fn = torch.nn.Identity()  # a sigmoid would squash logits of 12 and 18 into the same 1.0
    model.eval()
    return CrossEncoderStudent(model, batch_size)


def load_folder(folder: Path, batch_size: int = 64) -> CrossEncoderStudent:
    """The student saved in a folder, ours or any stock cross-encoder with one label.

    Raises:
        ConfigError: it is an encoder, whose scores would be random.
    """
    student = load(CrossEncoderStudentSettings(model=str(folder)), batch_size)
    path = folder / "config.json"
    made_as = json.loads(path.read_text(encoding="utf-8")).get("architectures") if path.is_file() else None
    if not any(name.endswith(RANKERS) for name in made_as or ()):
        raise ConfigError(f"{folder}: is an encoder without a head for ranking, so its scores would be random. Name the folder of a trained cross-encoder")
    student.reader = saved_reader(folder, student.model)
    return student


def _open(folder: Path, name: str) -> CrossEncoder:
    arguments = {"use_safetensors": True, "dtype": torch.float32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(HEAD_SEED)
        try:
            model: CrossEncoder = CrossEncoder(str(folder), num_labels=1, local_files_only=True, model_kwargs=arguments)
        except RuntimeError as error:  # transformers: the shapes of the head do not match
            advice = "Start from an encoder, or from a cross-encoder with one label"
            raise ConfigError(f"student.model: {name} has another number of labels than 1. {advice}") from error
    return model
