"""The table `[student]` of an experiment file: a class for each kind, which knows that kind's keys and no others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from retriever.conversations.reading import Reading
from retriever.settings.section import PositiveInt, Settings, check_kind


class StudentSettings(Settings):
    """What every student has, whatever its kind."""

    kind: str
    model: str = Field(description="the starting checkpoint: folder, installed package or hub id")
    revision: str | None = Field(None, description="of a hub id")
    max_length: PositiveInt | None = Field(None, description="tokens read of a text; the model's own when left out")
    query_prompt: str | None = Field(None, description="put before queries; the model's own when left out")
    document_prompt: str | None = Field(None, description="put before documents; the model's own when left out")
    reads: Reading | None = Field(None, description="what it reads of a turn of a conversation; collection.conversation when left out")
    history_tokens: PositiveInt | None = Field(None, description="room for the conversation, whose oldest turns are cut; what it reads at most when left out")
    frozen_documents: bool = Field(
        False, description="only the encoding of queries learns, so that an index of the starting checkpoint serves the student unchanged"
    )

    @property
    def start(self) -> str:
        """What training starts from, in words."""
        return self.model


class DenseSettings(StudentSettings):
    """One vector a text."""

    kind: Literal["dense"] = "dense"
    layers: PositiveInt | None = Field(None, description="transformer layers kept of the starting checkpoint: first, last, evenly between; all when left out")
    projection: PositiveInt | None = Field(
        None, description="dimensions of a linear layer put on the start's vectors, such as a teacher's, so that vectors can be compared; none when left out"
    )
    dimensions: PositiveInt | None = Field(None, description="of the vectors that are indexed: the first so many of a Matryoshka model; all when left out")


class SparseSettings(StudentSettings):
    """A weight for each word of the vocabulary (SPLADE)."""

    kind: Literal["sparse"] = "sparse"
    layers: PositiveInt | None = Field(None, description="transformer layers kept of the starting checkpoint; all when left out")
    inference_free_queries: bool = Field(False, description="queries are looked up in a table of learned word weights, without the transformer")
    query_dimensions: PositiveInt = Field(32, description="active dimensions of a query, on average, that training steers to")
    document_dimensions: PositiveInt = Field(150, description="active dimensions of a document, on average, that training steers to")


class LateInteractionSettings(StudentSettings):
    """A vector for each token (ColBERT)."""

    kind: Literal["late_interaction"] = "late_interaction"
    layers: PositiveInt | None = Field(None, description="transformer layers kept of the starting checkpoint, spread evenly; all when left out")
    dimensions: PositiveInt | None = Field(None, description="of a token's vector; 128 for a starting checkpoint that is not a late-interaction model yet")
    query_length: PositiveInt | None = Field(None, description="tokens read of a query; the model's own when left out")
    query_expansion: bool | None = Field(
        None, description="queries are filled up to query_length, or to 32 tokens, with [MASK] tokens, which count in the score; as the model when left out"
    )
    pool_factor: PositiveInt | None = Field(
        None, description="document tokens that become one vector in the index, by clustering; 1 keeps all; the model's own, which is 1, when left out"
    )


class StaticSettings(StudentSettings):
    """A vector for each token of the vocabulary, averaged: no transformer at all. A start that is none yet becomes one."""

    kind: Literal["static"] = "static"
    dimensions: PositiveInt | None = Field(None, description="of the vectors, those of the greatest variance; the starting checkpoint's when left out")

    @model_validator(mode="after")
    def _learns_both_sides(self) -> StaticSettings:
        if self.frozen_documents:
            raise ValueError('a static student has one table for queries and documents; leave frozen_documents out, or take kind = "dense"')
        return self


class ImageTextSettings(StudentSettings):
    """One vector an image or a text, in one space: a tower for either (CLIP, Radford et al. 2021, arXiv:2103.00020)."""

    kind: Literal["image_text"] = "image_text"
    model: str = Field("", description="a CLIP-like checkpoint or a saved student: folder, package or hub id; left out where two towers are given")
    image_model: str | None = Field(None, description="the images' tower, a vision model: folder, hub id, or efficientnet-lite0, which a package carries")
    text_model: str | None = Field(None, description="the texts' tower, a text encoder: folder, installed package or hub id")
    dimensions: PositiveInt | None = Field(
        None, description="of the vectors; 256 when left out, and the texts' own under frozen_text; with model, the first so many; all when left out"
    )
    image_size: PositiveInt | None = Field(None, description="pixels of a side, to which images are brought; the image_model's own when left out")
    frozen_image: bool = Field(False, description="the images' tower does not learn, its projection does; what it makes of an image is computed once")
    frozen_text: bool = Field(
        False, description="the texts' tower does not learn; without dimensions it has no projection either, and vectors of texts stay as they are"
    )

    @property
    def start(self) -> str:
        """What training starts from, in words."""
        return self.model or f"{self.image_model} + {self.text_model}"

    @model_validator(mode="after")
    def _one_model_or_two_towers(self) -> ImageTextSettings:
        towers = [name for name in ("image_model", "text_model") if getattr(self, name)]
        if bool(self.model) == bool(towers) or len(towers) == 1:
            given = " and ".join([*(["model"] if self.model else []), *towers]) or "none of them"
            raise ValueError(f"an image_text student is made of image_model and text_model, or is a model; given: {given}")
        if self.model and self.image_size:
            raise ValueError("image_size is that of the model; leave it out, or give image_model and text_model")
        if self.frozen_documents:
            raise ValueError("an image_text student has towers of images and texts, not of queries and documents; set frozen_text or frozen_image")
        return self


class CrossEncoderStudentSettings(StudentSettings):
    """Query and document read together: it re-ranks candidates and makes no index."""

    kind: Literal["cross_encoder"] = "cross_encoder"
    layers: PositiveInt | None = Field(None, description="transformer layers kept of the starting checkpoint; all when left out")

    @model_validator(mode="after")
    def _reads_pairs(self) -> CrossEncoderStudentSettings:
        for name in ("query_prompt", "document_prompt"):
            if getattr(self, name) is not None:
                raise ValueError(f"a cross_encoder reads pairs and takes no {name}; put the words into the texts, or leave {name} out")
        if self.frozen_documents:
            raise ValueError('a cross_encoder encodes no documents that could stay as they are; leave frozen_documents out, or take kind = "dense"')
        return self


class PrivateStudentSettings(StudentSettings):
    """A student of the user's own: a module named "package.module" with the functions `load` and `load_folder`."""

    options: dict[str, Any] = Field(default={}, description="handed to the module as they stand")

    @model_validator(mode="before")
    @classmethod
    def _is_module(cls, values: Any) -> Any:
        return check_kind(values, STUDENT_KINDS)


STUDENT_KINDS: dict[str, type[StudentSettings]] = {
    "dense": DenseSettings,
    "sparse": SparseSettings,
    "late_interaction": LateInteractionSettings,
    "static": StaticSettings,
    "image_text": ImageTextSettings,
    "cross_encoder": CrossEncoderStudentSettings,
}


def _kind_of(values: Any) -> str:
    kind = values.get("kind", "dense") if isinstance(values, Mapping) else getattr(values, "kind", None)
    return kind if kind in STUDENT_KINDS else "private"


AnyStudentSettings = Annotated[
    Annotated[DenseSettings, Tag("dense")]
    | Annotated[SparseSettings, Tag("sparse")]
    | Annotated[LateInteractionSettings, Tag("late_interaction")]
    | Annotated[StaticSettings, Tag("static")]
    | Annotated[ImageTextSettings, Tag("image_text")]
    | Annotated[CrossEncoderStudentSettings, Tag("cross_encoder")]
    | Annotated[PrivateStudentSettings, Tag("private")],
    Discriminator(_kind_of),
]
"""The table `[student]`, checked by the class of its kind."""
