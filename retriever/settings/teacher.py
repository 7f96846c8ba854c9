"""The `[[teacher]]` tables of an experiment file: a class for each kind, which knows that kind's keys and no others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from retriever.conversations.reading import Reading
from retriever.engines.settings import EngineSettings, ServerSettings
from retriever.settings.section import Fraction, PositiveInt, Settings, check_kind
from retriever.types import Unit, ViewName

Precision = Literal["fp32", "bf16", "fp16"]

Cascade = Annotated[
    Fraction | None,
    Field(description="the share of each list that it reads, such as 0.3: what the teachers without a cascade rank highest; the rest is filled in from them"),
]
"""Of a teacher whose cost is that of the pairs it reads."""


Folds = Annotated[
    int | None,
    Field(ge=2, le=10, description="cross-fitting: so many models, each taught without a part of the train queries, which it then scores; one when left out"),
]
"""Of a teacher that is taught."""


class TeachingSettings(Settings):
    """How a teacher is taught on the train qrels before it scores: a cross-encoder on lists, a bi-encoder contrastively."""

    epochs: PositiveInt = 2
    batch_size: PositiveInt = 32
    learning_rate: float = Field(2e-5, gt=0)
    negatives_per_positive: PositiveInt = 5
    max_length: PositiveInt = 256
    warmup: float = Field(0.1, ge=0, lt=1)
    folds: Folds = None


class EncoderTeachingSettings(TeachingSettings):
    """How a bi-encoder is taught."""

    frozen_layers: PositiveInt | None = Field(None, description="the lower layers stay as they are, as in [training]; none when left out")


class TeacherSettings(Settings):
    """What every teacher has, whatever its kind."""

    kind: str
    name: str | None = Field(None, description="what reports call it; made from kind and model when left out")
    reads: Reading | None = Field(None, description="what it reads of a turn of a conversation, such as rewrite; collection.conversation when left out")
    normalise: ViewName | None = Field(None, description="as in [ensemble], for this teacher, also when it is distilled alone; raw alone when left out")
    temperature: float | None = Field(
        None, gt=0, description='divides its scores under normalise = "temperature" and combine = "softmax_mean"; fitted when left out'
    )
    weight: float | None = Field(None, gt=0, description='in the ensemble; 1 when left out, and fitted under combine = "weighted_mean"')

    @property
    def label(self) -> str:
        """The name reports use."""
        model = str(getattr(self, "model", None) or "")
        return self.name or "-".join(part for part in (self.kind, model.rstrip("/").rsplit("/", 1)[-1]) if part)


class ModelTeacherSettings(TeacherSettings):
    """A teacher that is a model with weights."""

    model: str | None = Field(None, description='folder, installed package or hub id; "student" is the starting checkpoint')
    revision: str | None = Field(None, description="of a hub id")
    max_length: PositiveInt | None = Field(None, description="tokens read of a pair or a document; the model's own when left out")
    batch_size: PositiveInt = 32


class LexicalSettings(TeacherSettings):
    """BM25, with the parameters of the section [candidates]."""

    kind: Literal["lexical"] = "lexical"


class LabelSettings(Settings):
    """Which labels of a classifier of pairs mean that the document is relevant."""

    relevant: tuple[str, ...] = Field(strict=False, min_length=1, description="labels that mean relevant")
    other: tuple[str, ...] = Field((), strict=False, description="labels that do not; all others when left out")


class CrossEncoderSettings(ModelTeacherSettings):
    """Reads query and document together; one raw logit a pair, or the log-odds of its labels."""

    kind: Literal["cross_encoder"] = "cross_encoder"
    batch_size: PositiveInt = Field(1024, description="pairs of a batch at most; batch_tokens is the other limit")
    batch_tokens: PositiveInt | None = Field(None, description="tokens of a batch, padding included; chosen by the device when left out")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto is half precision on a GPU, fp32 elsewhere")
    backend: Literal["torch", "onnx", "openvino"] = Field("torch", description="onnx and openvino need the extra export and run on the processor")
    int8: bool = Field(False, description="8-bit products: faster, other scores; how much they differ is said before scoring")
    labels: LabelSettings | None = Field(None, description="of a model with several: which mean relevant")
    cascade: Cascade = None
    train: TeachingSettings | None = Field(None, description="taught on the train qrels first, as its own step; left out for a ready one")


class EmbeddingSettings(ModelTeacherSettings):
    """A bi-encoder: the similarity of its vectors. A trained student is one too: its model is the folder that the train step wrote."""

    kind: Literal["embedding"] = "embedding"
    family: Literal["dense", "sparse", "late_interaction", "image_text"] = Field(
        "dense", description="one vector, a sparse vector, a vector for each token, or one vector of a text or an image, as CLIP gives it"
    )
    precision: Precision = Field("fp32", description="of the products; half is faster where the device has it, scores differ a little")
    store_vectors: Literal["pooled", "tokens"] | None = Field(None, description="of documents; when left out, those that the similarity needs")
    logit_scale: float | None = Field(
        None, gt=0, description="in a reinforced dataset: what turns its cosines into logits; what the model was trained with when left out"
    )
    train: EncoderTeachingSettings | None = Field(None, description="taught on the train qrels first, as its own step; left out for a ready one")

    @model_validator(mode="after")
    def _precision_is_read(self) -> EmbeddingSettings:
        if self.precision != "fp32" and self.model in (None, "student") and not self.train:
            raise ValueError('precision: "student" encodes as the student itself will, in fp32; name the model, or leave precision out')
        if self.precision != "fp32" and (self.family == "image_text" or (self.family == "dense" and self.store_vectors == "tokens")):
            what = "an image_text model" if self.family == "image_text" else "token vectors of a dense model, which are kept"
            raise ValueError(f"precision: {self.precision} is not for {what}. Leave precision out")
        return self

    @model_validator(mode="after")
    def _dense_is_taught(self) -> EmbeddingSettings:
        if self.train and self.family != "dense":
            raise ValueError(f'train teaches the family "dense", not "{self.family}": give a ready model, or take the table "train" away')
        return self


class FusionTeachingSettings(Settings):
    """How a small fusion model is made of two towers and taught on the train qrels: matching, and comparing, from which its negatives come."""

    epochs: PositiveInt = 10
    batch_size: PositiveInt = Field(64, description="matched pairs of a step; each gets two that do not match")
    learning_rate: float = Field(5e-4, gt=0, description="of the new layers")
    tower_learning_rate: float = Field(5e-5, gt=0, description="of towers that learn")
    warmup: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.02, ge=0)
    image_size: PositiveInt | None = Field(None, description="pixels of the square that images become; as the image model says when left out")
    max_length: PositiveInt = Field(64, description="tokens of a text at most")
    width: PositiveInt = Field(256, description="of a token in the fusion layers")
    layers: PositiveInt = Field(2, description="that read image and text together")
    heads: PositiveInt = 4
    dimensions: PositiveInt = Field(128, description="of the vectors that are compared")
    dropout: float = Field(0.1, ge=0, lt=1)
    frozen_image: bool = Field(False, description="whether the image tower stays as it is; each image goes through it once then")
    frozen_text: bool = Field(False, description="likewise, of the text tower")
    folds: Folds = None

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> FusionTeachingSettings:
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}, it must be a multiple of heads, {self.heads}")
        return self


class FusionSettings(ModelTeacherSettings):
    """Reads an image and a text together, in either direction; the log-odds of matching. BLIP, BridgeTower, FLAVA, ViLT, or one made of two towers."""

    kind: Literal["fusion"] = "fusion"
    batch_size: PositiveInt = Field(128, description="pairs of a batch")
    precision: Precision = "fp32"
    image_model: str | None = Field(None, description="of one that is taught: a vision model of transformers; folder, installed package or hub id")
    text_model: str | None = Field(None, description="of one that is taught: a text encoder of sentence-transformers")
    cascade: Cascade = None
    train: FusionTeachingSettings | None = Field(None, description="made of the two towers and taught on the train qrels first, as its own step")

    @model_validator(mode="after")
    def _ready_or_taught(self) -> FusionSettings:
        towers = {"image_model": self.image_model, "text_model": self.text_model}
        if self.train and not all(towers.values()):
            missing = next(name for name, value in towers.items() if not value)
            raise ValueError(f"a fusion teacher with a table train needs {missing}; it is made of image_model and text_model")
        if self.train and self.model:
            raise ValueError("a fusion teacher has either a model, or image_model and text_model with a table train; take one away")
        if not self.train and any(towers.values()):
            raise ValueError("a fusion model of image_model and text_model must be taught first: add train = {}")
        return self


TaughtSettings = CrossEncoderSettings | EmbeddingSettings | FusionSettings
"""Of the teachers that can be taught, and so can be several models."""


class CrossFittedSettings(ModelTeacherSettings):
    """A teacher whose `train` table asks for folds, once it is taught; experiment files have none of this kind.

    Attributes:
        parts: the model of each fold.
        fold_of: train query -> the place in `parts` of the model that has not seen it. All others are scored by the mean of all.
    """

    kind: Literal["cross_fitted"] = "cross_fitted"
    parts: tuple[TaughtSettings, ...]
    fold_of: dict[str, int]


class RunSettings(TeacherSettings):
    """Scores that another program made: a run as `retriever import` writes it, or a TREC file."""

    kind: Literal["run"] = "run"
    path: Path = Field(strict=False, description="relative to the experiment file")
    unit: Unit | None = Field(None, description="what the scores mean; the one in the file when left out")
    missing: Literal["error", "lowest"] = Field("error", description='"lowest" takes pairs that are not in the file for as good as the last of their list')

    @property
    def label(self) -> str:
        """The name reports use."""
        return self.name or f"run-{self.path.stem}"


class LanguageModelSettings(ModelTeacherSettings):
    """What both kinds of language-model teachers have: the model, how it is run, and what it is told."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: the weights' own on a GPU, float32 on a CPU")
    batch_tokens: PositiveInt = Field(8192, description="tokens at a time with padding, at most")
    server: ServerSettings | None = Field(None, description="where the model runs, when not on this machine")
    prompt: str | None = Field(None, description="a preset's name, or a text with the places to be filled; the form's own preset when left out")
    system: str | None = Field(None, description="the system's turn of a chat; the preset's when left out")
    chat: bool | None = Field(None, description="whether to use the model's chat template; when left out, where the model has one and the preset wants it")

    @property
    def engine(self) -> EngineSettings:
        """The model and how it is run."""
        shared = ("model", "revision", "dtype", "max_length", "batch_size", "batch_tokens", "server")
        return EngineSettings(**{name: getattr(self, name) for name in shared})


class LlmSettings(LanguageModelSettings):
    """A language model that judges one pair at a time."""

    kind: Literal["llm"] = "llm"
    form: Literal["yes_no", "query_likelihood"] = Field("yes_no", description="log-odds of yes against no, or the mean log-likelihood of the query's tokens")
    instruction: str | None = Field(None, description="what is relevant, for prompts with {instruction}")
    yes: str = Field("yes", description="the word that says so, one token")
    no: str = Field("no", description="its opposite")
    probe: bool = Field(True, description="look on a few pairs whether the answers depend on the document, before anything is stored")
    cascade: Cascade = None


class LlmListwiseSettings(LanguageModelSettings):
    """A language model that orders whole lists, a window of them at a time."""

    kind: Literal["llm_listwise"] = "llm_listwise"
    window: int = Field(20, ge=2, description="documents that are ordered at a time")
    stride: PositiveInt = Field(10, description="by which the window moves up")
    passes: PositiveInt = Field(3, description="orders that are aggregated: the first from the candidates' order, the others from shuffled ones")
    seed: int = Field(1, ge=0, description="of the shuffles")
    answer_tokens: PositiveInt | None = Field(None, description="of an answer at most; 6 for each document of a window and 16 more when left out")

    @model_validator(mode="after")
    def _windows_overlap(self) -> LlmListwiseSettings:
        if self.stride >= self.window:
            raise ValueError(f"stride is {self.stride}, it must be below window, {self.window}: a document moves up only through documents in two windows")
        return self


class PrivateSettings(ModelTeacherSettings):
    """A teacher of the user's own: a module named "package.module" with a function `load`."""

    options: dict[str, Any] = Field(default={}, description="handed to the module as they stand")
    cascade: Cascade = None

    @model_validator(mode="before")
    @classmethod
    def _is_module(cls, values: Any) -> Any:
        return check_kind(values, TEACHER_KINDS)


TEACHER_KINDS: dict[str, type[TeacherSettings]] = {
    "cross_encoder": CrossEncoderSettings,
    "embedding": EmbeddingSettings,
    "fusion": FusionSettings,
    "lexical": LexicalSettings,
    "llm": LlmSettings,
    "llm_listwise": LlmListwiseSettings,
    "run": RunSettings,
}


def _kind_of(values: Any) -> str:
    kind = values.get("kind") if isinstance(values, Mapping) else getattr(values, "kind", None)
    return kind if kind in TEACHER_KINDS else "private"


AnyTeacherSettings = Annotated[
    Annotated[CrossEncoderSettings, Tag("cross_encoder")]
    | Annotated[EmbeddingSettings, Tag("embedding")]
    | Annotated[FusionSettings, Tag("fusion")]
    | Annotated[LexicalSettings, Tag("lexical")]
    | Annotated[LlmSettings, Tag("llm")]
    | Annotated[LlmListwiseSettings, Tag("llm_listwise")]
    | Annotated[RunSettings, Tag("run")]
    | Annotated[PrivateSettings, Tag("private")],
    Discriminator(_kind_of),
]
"""One `[[teacher]]` table, checked by the class of its kind."""
