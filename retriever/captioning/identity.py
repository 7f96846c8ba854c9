"""What decides a captioner's captions: its model, the words that it is told, and the seed of each image's draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retriever.captioning.answers import BLIP_PROMPT, CHAT_PROMPT
from retriever.files import text_hash
from retriever.images.files import image_sha256
from retriever.models.names import find_model
from retriever.settings.captioner import CaptionerSettings
from retriever.writing.writers import WriterIdentity

JPEG_QUALITY = 90
"""Of what a server is shown."""


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


def prompt_of(settings: CaptionerSettings) -> str:
    """What the model is told; of a model on this machine, when the table says nothing, "" until it is loaded."""
    if settings.prompt is not None:
        return settings.prompt
    return CHAT_PROMPT if settings.server else ""


def seed_of(identity: WriterIdentity, sample: int, path: Path) -> int:
    """The seed of an image's draws, from 0 to 2^31 - 1."""
    return text_hash(f"{identity.seed} {sample} {image_sha256(path)}") % 2**31
