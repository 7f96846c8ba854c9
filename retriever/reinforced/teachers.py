"""The teachers of a reinforced dataset: encoders of images and texts into one space, each with the factor of its cosines."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retriever.errors import ConfigError, DataError
from retriever.files import fingerprint
from retriever.models.modalities import as_texts, text_options
from retriever.reinforced.shards import ReinforcedTeacher
from retriever.settings.teacher import EmbeddingSettings

if TYPE_CHECKING:
    from PIL import Image

    from retriever.pipeline import Pipeline

HIGHEST_LOGIT_SCALE = 100.0
"""CLIP's own limit (arXiv:2103.00020)."""


class ImagesAndTexts(Protocol):
    """What encodes images and texts into one space."""

    def images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """[n, D]."""
        ...

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[n, D]."""
        ...


@dataclasses.dataclass(frozen=True)
class StockModel:
    """A model of sentence-transformers that reads both, with how many it is given at a time."""

    model: Any
    batch_size: int

    def images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """[n, D]."""
        return self._encode(list(images))

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[n, D]."""
        return self._encode(as_texts(self.model, texts), **text_options(self.model))

    def _encode(self, inputs: list[Any], **options: Any) -> NDArray[np.float32]:
        vectors = self.model.encode_document(inputs, batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True, **options)
        return np.asarray(vectors, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class TeacherModels:
    """K teachers, loaded.

    Attributes:
        teachers: who they are.
        models: of each, what encodes.
    """

    teachers: tuple[ReinforcedTeacher, ...]
    models: tuple[ImagesAndTexts, ...]

    @property
    def identity(self) -> str:
        """Changes with anything that changes the vectors."""
        return fingerprint([[teacher.identity, teacher.dimensions] for teacher in self.teachers])

    def images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """[n, sum of D], the teachers' unit vectors of images, one teacher after the other.

        Raises:
            DataError: a teacher gave a vector that is no direction.
        """
        return self._units([model.images(images) for model in self.models])

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The same of texts."""
        return self._units([model.texts(texts) for model in self.models])

    def _units(self, parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        units = []
        for teacher, part in zip(self.teachers, parts, strict=True):
            lengths = np.linalg.norm(part, axis=1, keepdims=True)
            if not (np.isfinite(lengths).all() and (lengths > 0).all()):
                raise DataError(f"teacher {teacher.name}: it gave a vector that is not finite, or 0. Leave this teacher out")
            units.append(part / lengths)
        return np.concatenate(units, axis=1)


def load_teachers(pipeline: Pipeline, _: None = None) -> TeacherModels:
    """The experiment's teachers that encode images and texts into one space.

    Raises:
        ConfigError: there are none, or one has no logit scale.
    """
    chosen = [one for one in pipeline.experiment.teacher if isinstance(one, EmbeddingSettings) and _reads_images(pipeline, one)]
    if not chosen:
        raise ConfigError(
            'reinforce: no [[teacher]] encodes images and texts into one space. Add one of kind = "embedding" and family = "image_text", such as a CLIP model'
        )
    encoders = [pipeline.start if one.model in (None, "student") else pipeline.load_encoder(one) for one in chosen]
    teachers = tuple(
        ReinforcedTeacher(one.label, encoder.dimensions, one.logit_scale or logit_scale_of(encoder, one.label), encoder.identity)
        for one, encoder in zip(chosen, encoders, strict=True)
    )
    return TeacherModels(teachers, tuple(StockModel(encoder.model, one.batch_size) for one, encoder in zip(chosen, encoders, strict=True)))


def _reads_images(pipeline: Pipeline, settings: EmbeddingSettings) -> bool:
    own = settings.model in (None, "student")
    return (pipeline.experiment.student.kind if own else settings.family) == "image_text"


def logit_scale_of(encoder: Any, label: str) -> float:
    """The factor that a model was trained with, where it is kept with it; CLIP's limit at most.

    Raises:
        ConfigError: it is not.
    """
    scale = getattr(encoder, "logit_scale", None)
    if scale is None:
        raise ConfigError(
            f"teacher {label}: its model does not say what turns its cosines into logits. Set logit_scale, to what it was trained with, such as 100 for CLIP"
        )
    return min(float(scale), HIGHEST_LOGIT_SCALE)
