"""Images that come with a request: decoded once, held in memory until the answer is there, and never written anywhere."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

from PIL.Image import Image

from retriever.images.readers import refuse_images
from retriever.images.reading import decoded, held
from retriever.serving.faults import bad_request
from retriever.serving.served import OpenView, Served
from retriever.serving.service import Service
from retriever.types import Query

_NAME = "image"
"""Of the field, with which messages begin."""


@contextlib.asynccontextmanager
async def uploaded(service: Service, served: Served, view: OpenView, text: str) -> AsyncIterator[Query]:
    """A query that is an image, for as long as the block runs. It waits where others hold as many as there is room for.

    Args:
        service: that answers.
        served: what is searched.
        view: its version.
        text: the image file in base64, or a data: URL.

    Raises:
        RequestError: the student reads texts alone, it is not base64, or the bytes are none of an image that is allowed.
    """
    with service.told(served):
        refuse_images(view.encoder.own, [Query("query", "", image=Path(_NAME))])
    async with service.images:
        image, name = await service.work(served, lambda: _read(text, service.limits.image_pixels))
        with held(image, name) as address:
            yield Query("query", "", image=address)


def _read(text: str, max_pixels: int) -> tuple[Image, str]:
    """The image, and a name of its bytes."""
    encoded = bytes_of(text)
    return decoded(encoded, _NAME, max_pixels), hashlib.sha256(encoded).hexdigest()


def bytes_of(text: str) -> bytes:
    """The bytes that a text in base64 stands for; white space in it, and the beginning of a data: URL, are passed over.

    Raises:
        RequestError: it is neither.
    """
    said, comma, rest = text.partition(",") if text[:5].lower() == "data:" else ("", ",", text)
    if not comma or (said and not said.lower().endswith(";base64")):
        raise bad_request(f"{_NAME}: is a data: URL without base64; write it as data:image/png;base64,...")
    try:
        return base64.b64decode("".join(rest.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"{_NAME}: is not base64 ({str(error).lower()}); send the bytes of an image file in base64, not its name") from error
