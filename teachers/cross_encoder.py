"""Cross-encoder: reads query and document together and gives one raw logit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sentence_transformers import CrossEncoder

from retriever.errors import ConfigError
from retriever.models import check_length, find_model
from retriever.resources import Resources
from retriever.teacher_settings import CrossEncoderSettings
from retriever.types import Document, Query, ScoredPairs, TeacherIdentity


class CrossEncoderTeacher:
    """Any cross-encoder that sentence-transformers loads, its activation bypassed.

    A sigmoid would squash logits of 12, 18 and 25 into the same 1.0; what is stored is what the last layer said.
    """

    shard_pairs = 1024

    def __init__(self, name: str, model: CrossEncoder, identity: str, batch_size: int) -> None:
        self.model = model
        self.batch_size = batch_size
        settings = {"max_length": model.max_seq_length, "dtype": str(next(model.parameters()).dtype)}
        self.identity = TeacherIdentity(name, "cross_encoder", identity, "logit", settings)

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
        """The raw logit of each pair; long documents are cut to the model's length, and counted."""
        texts = [(query.text, document.full_text) for query, document in pairs]
        logits = self.model.predict(texts, batch_size=self.batch_size, show_progress_bar=False, activation_fn=torch.nn.Identity(), convert_to_numpy=True)
        lengths = self._lengths(texts)
        limit = self.model.max_seq_length or int(lengths.max(initial=0))
        return ScoredPairs(np.asarray(logits, dtype=np.float32).reshape(len(pairs)), np.minimum(lengths, limit), lengths > limit)

    def _lengths(self, texts: Sequence[tuple[str, str]]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        """Tokens of each pair before anything is cut."""
        queries, documents = zip(*texts, strict=True)
        encoded = self.model.tokenizer(list(queries), list(documents), truncation=False, return_length=True, return_attention_mask=False, verbose=False)
        return np.asarray(encoded["length"], dtype=np.int32)


def load(settings: CrossEncoderSettings, resources: Resources) -> CrossEncoderTeacher:
    """The cross-encoder of the file: a ready one, or the folder that `retriever teach` wrote.

    Raises:
        ConfigError: no model is named, there is none, it has several labels, or it cannot read so long pairs.
    """
    del resources
    if not settings.model:
        raise ConfigError(f"teacher {settings.label}: a cross_encoder needs a model")
    found = find_model(settings.model, settings.revision, f"teacher {settings.label}")
    model = CrossEncoder(str(found.folder), max_length=settings.max_length, local_files_only=True, model_kwargs={"use_safetensors": True})
    if model.num_labels != 1:
        raise ConfigError(f"teacher {settings.label}: {settings.model} has {model.num_labels} labels; a cross-encoder with one is needed")
    check_length(settings.max_length, model.config, f"teacher {settings.label}: max_length")
    model.eval()
    return CrossEncoderTeacher(settings.label, model, found.identity, settings.batch_size)
