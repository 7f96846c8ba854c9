"""Models that see an image and write a caption: on this machine by transformers, or on a server over HTTP."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from retriever.captioning.answers import BLIP_PROMPT, CHAT_PROMPT
from retriever.engines import Prompt
from retriever.engines.server import ServerEngine, open_server
from retriever.files import text_hash
from retriever.images.files import image_sha256
from retriever.images.reading import read_image
from retriever.models.names import find_model
from retriever.settings.captioner import CaptionerSettings
from retriever.types import Usage
from retriever.writing.writers import Writer, WriterIdentity

JPEG_QUALITY = 90

Captioner = Writer[Path]
"""Writes captions of images. The seed of a draw is made of the experiment's, the sample number and the image's bytes, of nothing else."""


class ServerCaptioner:
    """A model on a server that is shown one image at a time, with as many requests at a time as its table says.

    What leaves this machine are the pixels as they are read here, made smaller, and the prompt: no name, no place, no note of the file.
    """

    def __init__(self, settings: CaptionerSettings, engine: ServerEngine, identity: WriterIdentity) -> None:
        self.settings = settings
        self.engine = engine
        self.identity = identity

    @property
    def usage(self) -> Usage:
        """Prompts, tokens and price so far."""
        return self.engine.usage

    def write(self, things: Sequence[Path], sample: int) -> list[str]:
        """One raw answer for each image.

        Raises:
            DataError: an image cannot be read; the message begins with its path.
        """
        drawn = {"max_tokens": self.settings.answer_tokens, "temperature": self.settings.temperature}
        drawn |= {"top_p": self.settings.top_p} if self.settings.temperature and self.settings.top_p < 1 else {}
        fields = [{**drawn, "seed": seed_of(self.identity, sample, path)} for path in things]
        return self.engine.answers([self._prompt(path) for path in things], fields)

    def _prompt(self, path: Path) -> Prompt:
        image = {"type": "image_url", "image_url": {"url": as_data_url(read_image(path), self.settings.image_size)}}
        return ({"role": "user", "content": [image, {"type": "text", "text": prompt_of(self.settings)}]},)


def as_data_url(image: Image.Image, longest: int) -> str:
    """An image as a JPEG in a data: URL, its longer side `longest` pixels at most."""
    small = image.copy()
    small.thumbnail((longest, longest), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    small.save(stream, format="JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def seed_of(identity: WriterIdentity, sample: int, path: Path) -> int:
    """The seed of an image's draws, from 0 to 2^31 - 1."""
    return text_hash(f"{identity.seed} {sample} {image_sha256(path)}") % 2**31


def prompt_of(settings: CaptionerSettings) -> str:
    """What the model is told; of a model on this machine, when the table says nothing, "" until it is loaded."""
    if settings.prompt is not None:
        return settings.prompt
    return CHAT_PROMPT if settings.server else ""


def identity_of(settings: CaptionerSettings, seed: int) -> WriterIdentity:
    """What decides the captions, told without loading the model; its dtype counts as the table names it.

    Raises:
        ConfigError: there is no such model.
    """
    decides: dict[str, Any] = settings.model_dump(include={"prompt", "temperature", "top_p", "answer_tokens", "dtype"})
    if not settings.server:
        found = find_model(settings.model, settings.revision, f"captioner {settings.label}")
        decides |= {"presets": [BLIP_PROMPT, CHAT_PROMPT]} if settings.prompt is None else {}
        return WriterIdentity("caption", found.identity, seed, decides | {"engine": "transformers"})
    decides |= {"prompt": prompt_of(settings), "engine": "server:chat", "image_size": settings.image_size, "jpeg_quality": JPEG_QUALITY}
    decides |= {"request": settings.server.request} if settings.server.request else {}
    return WriterIdentity("caption", "@".join(part for part in (settings.model, settings.revision) if part), seed, decides)


def open_captioner(settings: CaptionerSettings, seed: int) -> Captioner:
    """The captioner of a table [[captioner]], its model loaded.

    Raises:
        ConfigError: there is no such model, it writes no captions, or the key of its server is missing.
    """
    where = f"captioner {settings.label}"
    identity = identity_of(settings, seed)
    if settings.server:
        return ServerCaptioner(settings, open_server(settings.engine, where), identity)
    from retriever.captioning.local import load_captioner

    load: Callable[..., Captioner] = load_captioner
    return load(settings, identity, where)
