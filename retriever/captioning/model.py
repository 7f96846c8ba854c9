"""Models that see an image and write a caption: on this machine by transformers, or on a server over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from retriever.captioning.identity import identity_of
from retriever.captioning.server import ServerCaptioner
from retriever.engines.server import open_server
from retriever.settings.captioner import CaptionerSettings
from retriever.writing.writers import Writer

Captioner = Writer[Path]
"""Writes captions of images. The seed of a draw is made of the experiment's, the sample number and the image's bytes, of nothing else."""


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
