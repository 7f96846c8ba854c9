"""Images read safely: whatever a file holds, it becomes one upright RGB image, or one clear line that names the file."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from retriever.errors import DataError
from retriever.image_files import EXTENSIONS, image_bytes

__all__ = ["EXTENSIONS", "FORMATS", "MAX_PIXELS", "image_bytes", "read_image"]

MAX_PIXELS = 1 << 26
"""Width times height that is decoded at most: 8,192 by 8,192, which takes 200 MB as RGB. A file of a few kB can claim a thousand times as many."""

_DECODERS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"\xff\xd8\xff", JpegImageFile),
    (b"GIF87a", GifImageFile),
    (b"GIF89a", GifImageFile),
    (b"BM", BmpImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
    (b"RIFF", WebPImageFile),
)
"""First bytes -> decoder. Only these are tried: the library's others, such as PostScript, start programs or are seldom looked after."""

FORMATS = "PNG, JPEG, WebP, GIF, BMP or TIFF"

_UPRIGHT: Mapping[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the stored pixels upright."""

_BROKEN = (
    OSError,
    SyntaxError,  # what a decoder raises for a wrong header
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)
"""What decoders raise over damaged bytes; a warning where warnings are errors."""


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image as people see it, in mode RGB: its first frame, turned upright as EXIF says, transparency laid on white.

    Sixteen bits a channel become eight. The size is taken from the header, before any pixel is decoded. A path may lead through
    a tar file; see `image_bytes`.

    Args:
        path: of a PNG, JPEG, WebP, GIF, BMP or TIFF file; its name may end as it likes.
        max_pixels: width times height that is decoded at most.

    Raises:
        DataError: it is missing, no image, cut off, damaged, or larger than `max_pixels`; the message begins with the path.
    """
    encoded = image_bytes(path)
    decoder = next((decoder for start, decoder in _DECODERS if encoded.startswith(start)), None)
    if decoder is None or (decoder is WebPImageFile and encoded[8:12] != b"WEBP"):
        raise DataError(f"{path}: is {'empty' if not encoded else f'no image (it begins with {encoded[:8]!r})'}; allowed are {FORMATS}")
    try:
        with decoder(io.BytesIO(encoded)) as image:
            width, height = image.size
            if width * height <= max_pixels:
                image.load()
                return _as_seen(image)
    except _BROKEN as error:
        raise DataError(f"{path}: the image is cut off or damaged ({_words(error)}). Get the file again, or take it out") from error
    raise DataError(f"{path}: the image has {width:,} x {height:,} pixels, more than the {max_pixels:,} allowed. Save it smaller, or take it out")


def _as_seen(image: Image.Image) -> Image.Image:
    """A decoded image in RGB, upright, without the file's other data (else a later reader would turn it once more)."""
    turn = _UPRIGHT.get(_orientation(image))
    seen = _in_eight_bits(image)
    if seen.has_transparency_data:
        over = seen.convert("RGBA")
        seen = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    seen = seen.convert("RGB")
    seen.info = {}
    return seen if turn is None else seen.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1, upright, where the EXIF data are absent or cannot be read: pixels are worth more than their notes."""
    try:
        return int(image.getexif().get(Base.Orientation, 1))
    except _BROKEN:
        return 1


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits or of real numbers with 8; one with 8 already, as it is.

    Integers count as 16 bits, real numbers as 0 to 1 where none is above 1, and as 0 to 255 elsewhere: a file does not say.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F":
        values = np.nan_to_num(values, nan=0.0, posinf=255.0, neginf=0.0)
        scaled = values * (255.0 if values.max(initial=0.0) <= 1.0 else 1.0)
    else:
        scaled = values.astype(np.float64) / 257.0
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def _words(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:100] or type(error).__name__
