"""Fusion model: reads an image and a text together and says how surely they match. A text is asked for images, or an image for captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from retriever.errors import ConfigError, DataError
from retriever.images.reading import read_image
from retriever.models.names import find_model
from retriever.models.tensor_cache import TensorCache
from retriever.resources import Resources
from retriever.settings.teacher import FusionSettings
from retriever.teachers._fusion_families import FusionReader, open_reader
from retriever.types import Document, Query, ScoredPairs, TeacherIdentity

IMAGES_TOGETHER = 16
"""Images that are read and go through the model at a time."""

KEPT_BYTES = 1 << 29
"""Of what the model makes of images and texts, kept from one shard to the next; half as much for texts."""


class FusionTeacher:
    """Any fusion model that an adapter reads. What needs one side alone is done once for each image and text.

    Attributes:
        identity: what decides the scores.
        shard_pairs: pairs between two writes; their images are taken one after the other.
    """

    def __init__(self, reader: FusionReader, identity: TeacherIdentity, batch_size: int) -> None:
        self.reader = reader
        self.identity = identity
        self.batch_size = batch_size
        self.shard_pairs = 8192 if torch.cuda.is_available() else 2048
        self._images = TensorCache(KEPT_BYTES)
        self._texts = TensorCache(KEPT_BYTES // 2)

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
        """The score of each pair; a text that is longer than the model reads is cut, and that is counted.

        Raises:
            DataError: a pair is not one of an image and a text, or an image cannot be read.
        """
        sides = [_sides(query, document, self.identity.name) for query, document in pairs]
        texts = list(dict.fromkeys(text for _, text in sides))
        lengths = dict(zip(texts, self.reader.lengths(texts), strict=True)) if texts else {}
        order = sorted(range(len(sides)), key=lambda place: (str(sides[place][0]), lengths[sides[place][1]]))  # an image's pairs side by side
        scores = np.empty(len(sides), dtype=np.float32)
        tokens = np.empty(len(sides), dtype=np.int32)
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            scores[places], tokens[places] = self._scored([sides[place] for place in places])
        truncated = np.array([lengths[text] > self.reader.max_length for _, text in sides], dtype=np.bool_)
        return ScoredPairs(scores, tokens, truncated)

    @torch.inference_mode()
    def _scored(self, sides: Sequence[tuple[Path, str]]) -> tuple[np.ndarray, list[int]]:
        """[n] scores, and the tokens of image and text together."""
        images = self._images.get([image for image, _ in sides], self._read, IMAGES_TOGETHER)
        texts = self._texts.get([text for _, text in sides], self.reader.texts, self.batch_size)
        rows = [images[image] for image, _ in sides], [texts[text] for _, text in sides]
        return self.reader.scores(*rows).cpu().numpy(), [len(image) + len(text) for image, text in zip(*rows, strict=True)]

    def _read(self, paths: Sequence[Path]) -> Sequence[Tensor]:
        return self.reader.images([read_image(path) for path in paths])


def _sides(query: Query, document: Document, name: str) -> tuple[Path, str]:
    """The image and the text of a pair."""
    if query.image and not query.text and document.full_text:
        return query.image, document.full_text
    if query.text and not query.image and document.image:
        return document.image, query.text
    raise DataError(
        f'teacher "{name}": query {query.query_id}, document {document.doc_id}: a fusion model reads one image and one text; found '
        f"{_what(query.image, query.text)} and {_what(document.image, document.full_text)}. Set which documents a query is meant for: Query.among"
    )


def _what(image: Path | None, text: str) -> str:
    return " with ".join([*(["an image"] if image else []), *(["a text"] if text else [])]) or "nothing"


def load(settings: FusionSettings, resources: Resources) -> FusionTeacher:
    """The model of the file: a ready one, or the folder that `retriever teach` wrote.

    Raises:
        ConfigError: there is no such model, no adapter reads its family, or its head is not among its weights.
    """
    del resources
    where = f"teacher {settings.label}"
    if not settings.model or settings.model == "student":
        raise ConfigError(f"{where}: a fusion teacher needs a model, or image_model and text_model with a table train")
    found = find_model(settings.model, settings.revision, where)
    reader = open_reader(found.folder, settings.max_length, settings.precision, where)
    deciding = {"max_length": reader.max_length, "precision": settings.precision}
    return FusionTeacher(reader, TeacherIdentity(settings.label, "fusion", found.identity, reader.unit, deciding), settings.batch_size)
