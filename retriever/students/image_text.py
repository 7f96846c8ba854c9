"""Image-text dual encoder: one vector an image or a text, in one space, ranked by inner product. A stock SentenceTransformer inside and on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer

from retriever.errors import ConfigError
from retriever.files import write_json
from retriever.images.reading import read_image
from retriever.models.modalities import MODALITIES, as_texts, freeze, frozen_modules, reads_images, text_options, text_reader, tower
from retriever.models.names import check_length, find_model
from retriever.models.vision import skip_open_gates
from retriever.settings.student import ImageTextSettings
from retriever.students._prompts import set_prompts
from retriever.students._reading import saved_reader
from retriever.students._towers import two_towers
from retriever.students.dense import DenseStudent, truncate
from retriever.types import Document, Query

TOWERS = "towers.json"
"""What a student's folder tells beside its stock files: modules of each tower that did not learn, and the scale that was learned."""


class ImageTextStudent(DenseStudent):
    """A dense student whose queries and documents are images or texts, in any order; one with an image is read as the image alone.

    Images are read when they are encoded, a batch at a time.

    Attributes:
        logit_scale: the factor that makes a logit of a cosine, where the model has learned one: a CLIP-like checkpoint's own, or training's.
    """

    kind = "image_text"

    def __init__(self, model: SentenceTransformer, batch_size: int = 64) -> None:
        super().__init__(model, batch_size)
        skip_open_gates(model)
        self.logit_scale = _own_scale(model)

    def encode_queries(self, queries: Sequence[Query]) -> NDArray[np.float32]:
        """[B, D], of images where queries have one, else of texts."""
        texts = self.reader.texts(queries)
        return self._mixed([query.image or text for query, text in zip(queries, texts, strict=True)], "query")

    def encode_documents(self, documents: Sequence[Document]) -> NDArray[np.float32]:
        """[B, D], of images where documents have one, else of title and text joined by a space."""
        return self._mixed([document.image or document.full_text for document in documents], "document")

    def save(self, folder: Path) -> None:
        """Writes a stock sentence-transformers folder, which takes PIL images and texts."""
        super().save(folder)
        frozen = {modality: len(modules) for modality in MODALITIES if (modules := frozen_modules(self.model, modality))}
        if frozen or self.logit_scale:
            write_json(folder / TOWERS, {"frozen": frozen, "logit_scale": self.logit_scale})
        else:
            (folder / TOWERS).unlink(missing_ok=True)

    def _mixed(self, inputs: Sequence[Path | str], task: str) -> NDArray[np.float32]:
        """[n, D], of images by their paths and of texts, each kind together."""
        found = np.empty((len(inputs), self.dimensions), dtype=np.float32)
        texts = [place for place, one in enumerate(inputs) if isinstance(one, str)]
        images = [place for place, one in enumerate(inputs) if isinstance(one, Path)]
        if texts:
            found[texts] = self._encode(as_texts(self.model, [str(inputs[place]) for place in texts]), task, **text_options(self.model))
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            found[batch] = self._encode([read_image(Path(inputs[place])) for place in batch], task)
        return found


def load(settings: ImageTextSettings, batch_size: int = 64) -> ImageTextStudent:
    """The student of the experiment file: two towers with new projections, a CLIP-like checkpoint, or a trained student.

    Raises:
        ConfigError: there is no such model, it does not read images and texts, or it lacks what is asked for.
    """
    found = find_model(settings.model, settings.revision, "student.model") if settings.model else None
    model = _opened(settings, found.folder) if found else two_towers(settings)
    if settings.max_length:
        _set_length(model, settings.max_length)
    set_prompts(model, settings)
    for modality, frozen in (("image", settings.frozen_image), ("text", settings.frozen_text)):
        if frozen:
            unprojected = modality == "text" and not settings.model and settings.dimensions is None
            _freeze(model, modality, not unprojected)
    student = ImageTextStudent(model, batch_size)
    if found and (told := _told(found.folder)):
        student.logit_scale = told[1]
    return student


def load_folder(folder: Path, batch_size: int = 64) -> ImageTextStudent:
    """The student saved in a folder, ours or any stock sentence-transformers one of images and texts; towers that did not learn still do not.

    Raises:
        ConfigError: it is none, or what it tells of its towers is damaged.
    """
    student = load(ImageTextSettings(model=str(folder)), batch_size)
    student.reader = saved_reader(folder, student.model)
    if told := _told(folder):
        for modality in MODALITIES:
            freeze(tower(student.model, modality, projected=False)[: told[0].get(modality, 0)])
    return student


def _told(folder: Path) -> tuple[dict[str, int], float | None] | None:
    """What a trained student's folder tells: modules of each tower that did not learn, and the scale that was learned; None of another folder."""
    path = folder / TOWERS
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        frozen: dict[str, int] = {modality: int(told["frozen"].get(modality, 0)) for modality in MODALITIES}
        return frozen, told["logit_scale"] and float(told["logit_scale"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: does not say which towers learn ({error!r}). Copy the folder again, or train again") from error


def _opened(settings: ImageTextSettings, folder: Path) -> SentenceTransformer:
    model = SentenceTransformer(str(folder), local_files_only=True, model_kwargs={"use_safetensors": True})
    if not reads_images(model):
        known = ", ".join(str(modality) for modality in model.modalities)
        raise ConfigError(
            f"student.model: {settings.model} reads {known}, and an image_text student reads image and text. Give a CLIP-like checkpoint, "
            "or student.image_model and student.text_model"
        )
    if model.similarity_fn_name not in ("cosine", "dot"):
        raise ConfigError(f'student.model: {settings.model} compares by "{model.similarity_fn_name}"; an image_text student compares by cosine or dot')
    if settings.dimensions:
        truncate(model, settings.dimensions)
    return model


def _set_length(model: SentenceTransformer, max_length: int) -> None:
    reader = text_reader(model)
    if not isinstance(reader, Transformer):
        raise ConfigError("student.max_length: the texts' tower is a table of word vectors, which reads whole texts. Leave student.max_length out")
    config = reader.config
    check_length(max_length, getattr(config, "text_config", config), "student.max_length")
    reader.max_seq_length = max_length


def _freeze(model: SentenceTransformer, modality: Any, projected: bool) -> None:
    modules = tower(model, modality, projected)
    if not modules:
        raise ConfigError(f"student.frozen_{modality}: the model is not built of two towers, so none can be frozen. Leave student.frozen_{modality} out")
    freeze(modules)


def _own_scale(model: SentenceTransformer) -> float | None:
    """The learned scale of a CLIP-like checkpoint, stored as its logarithm."""
    stored = getattr(getattr(model[0], "auto_model", None), "logit_scale", None)
    return None if stored is None else math.exp(stored.item())
