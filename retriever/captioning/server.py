"""A captioner on a server, over HTTP."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from retriever.captioning.identity import JPEG_QUALITY, prompt_of, seed_of
from retriever.engines import Prompt
from retriever.engines.server import ServerEngine
from retriever.images.reading import read_image
from retriever.settings.captioner import CaptionerSettings
from retriever.types import Usage
from retriever.writing.writers import WriterIdentity


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
