"""The tables [[captioner]] of an experiment file: models that see an image and write captions of it, for reinforced training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from retriever.engines.settings import EngineSettings, ServerSettings
from retriever.settings.section import PositiveInt, Settings


class CaptionerSettings(Settings):
    """Who writes synthetic captions, and how."""

    name: str | None = Field(None, description="of the captions, in captions.parquet; the model's when left out")
    model: str = Field(
        min_length=1, description="BLIP or another image-text-to-text model of transformers: folder or hub id; the name that a server knows it by"
    )
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: the weights' own on a GPU, float32 on a CPU")
    batch_size: PositiveInt = Field(16, description="images at a time on this machine")
    server: ServerSettings | None = Field(None, description='chat completions that take images: vLLM, llama.cpp, or a paid one, such as { url = "..." }')
    prompt: str | None = Field(None, description="what a model that chats is told, or the words that another one goes on after; its own when left out")
    samples: PositiveInt = Field(3, description="captions of an image")
    temperature: float = Field(1.0, ge=0, description="divides the logits before a token is drawn; 0 takes the likeliest, so give samples = 1")
    top_p: float = Field(0.9, gt=0, le=1, description="tokens are drawn from the likeliest ones that have this probability together (BLIP, arXiv:2201.12086)")
    answer_tokens: PositiveInt = Field(48, description="of a caption at most")
    image_size: PositiveInt = Field(448, description="longest side of the JPEG that a server is sent, in pixels; it holds nothing but the pixels")

    @field_validator("server")
    @classmethod
    def _sees(cls, server: ServerSettings | None) -> ServerSettings | None:
        """Images go into chats alone, so that is what a server is asked for unless the file says otherwise."""
        if server is None or server.endpoint == "chat":
            return server
        if "endpoint" in server.model_fields_set:
            raise ValueError('images go into chats alone; set endpoint = "chat", or leave endpoint out')
        return server.model_copy(update={"endpoint": "chat"})

    @model_validator(mode="after")
    def _samples_differ(self) -> CaptionerSettings:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"temperature = 0 writes the same caption {self.samples} times. Set samples = 1, or a temperature such as 1.0")
        if self.server is not None and self.prompt is not None and not self.prompt.strip():
            raise ValueError("a model on a server must be told what to do: set prompt to a text, or leave it out")
        return self

    @property
    def label(self) -> str:
        """The name that tables and messages use."""
        return self.name if self.name is not None else self.model.rstrip("/").rsplit("/", 1)[-1]

    @property
    def engine(self) -> EngineSettings:
        """The model on a server, as engines know it."""
        return EngineSettings(model=self.model, revision=self.revision, dtype=self.dtype, server=self.server)


def check_captioners(captioners: Sequence[CaptionerSettings]) -> None:
    """Sees to it that every captioner has a name of its own.

    Raises:
        ValueError: two have the same.
    """
    labels = [one.label for one in captioners]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f'captioner: the name "{label}" is given twice; set captioner.name')
