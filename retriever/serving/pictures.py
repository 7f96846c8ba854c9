"""Pictures of documents for people: decoded within the limits of `retriever.images`, and written anew, so that nothing of a file goes out but its pixels."""

from __future__ import annotations

import io
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from retriever.images.files import image_sha256
from retriever.images.reading import read_image
from retriever.serving.cache import RecentValues

MEDIA_TYPE = "image/jpeg"
CACHE_BYTES = 32 << 20
"""Of pictures that a process remembers."""


class Picture(NamedTuple):
    """A picture as it is sent.

    Attributes:
        mark: differs where the file or the size does.
        jpeg: its bytes.
    """

    mark: str
    jpeg: bytes


class Pictures:
    """Makes pictures in a thread of its own, one after another: a file within the limits may take 200 MB while it is decoded."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "pictures")
        self._made: RecentValues[Picture] = RecentValues(CACHE_BYTES)

    def ask(self, path: Path, size: int) -> Future[Picture]:
        """The picture of an image file, no side longer than `size` pixels.

        Raises (the future does):
            DataError: it cannot be read; the message holds the path.
        """
        return self._thread.submit(self._picture, path, size)

    def _picture(self, path: Path, size: int) -> Picture:
        mark = f"{image_sha256(path)[:32]}-{size}"
        made = self._made.get(mark)
        if made is None:
            made = Picture(mark, _jpeg(read_image(path), size))
            self._made.put(mark, made, len(made.jpeg))
        return made


def _jpeg(image: Image.Image, size: int) -> bytes:
    image.thumbnail((size, size))
    written = io.BytesIO()
    image.save(written, "JPEG", quality=88, optimize=True)
    return written.getvalue()
