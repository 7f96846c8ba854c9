"""Images read safely: whatever a file holds, it becomes one upright RGB image, or one clear line that names the file."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping
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
from retriever.images.files import EXTENSIONS, image_bytes

__all__ = ["EXTENSIONS", "FORMATS", "MAX_PIXELS", "decoded", "held", "image_bytes", "read_image"]

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

_HELD: dict[Path, tuple[Image.Image, int]] = {}
"""Address -> an image that lies in no file, and how many hold it."""

_HOLDING = threading.Lock()


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image as people see it, in mode RGB: its first frame, turned upright as EXIF says, transparency laid on white.

    Sixteen bits a channel become eight. The size is taken from the header, before any pixel is decoded. A path may lead through
    a tar file; see `image_bytes`. It may be an address of `held`.

    Args:
        path: of a PNG, JPEG, WebP, GIF, BMP or TIFF file; its name may end as it likes.
        max_pixels: width times height that is decoded at most.

    Raises:
        DataError: it is missing, no image, cut off, damaged, or larger than `max_pixels`; the message begins with the path.
    """
    image, _ = _HELD.get(path, (None, 0))
    return decoded(image_bytes(path), str(path), max_pixels) if image is None else image


@contextlib.contextmanager
def held(image: Image.Image, name: str) -> Iterator[Path]:
    """An address at which `read_image` finds an image that lies in no file, for as long as the block runs; threads may share it.

    Args:
        image: as `decoded` gives it.
        name: that no other image has, such as the SHA-256 of its file. What is remembered of the address then stays right.
    """
    address = Path("held:", name)
    with _HOLDING:
        image, holders = _HELD.get(address, (image, 0))
        _HELD[address] = image, holders + 1
    try:
        yield address
    finally:
        with _HOLDING:
            image, holders = _HELD[address]
            if holders > 1:
                _HELD[address] = image, holders - 1  # never taken out in between: `read_image` waits for no lock
            else:
                del _HELD[address]


def decoded(encoded: bytes, where: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image that a file's bytes hold, as `read_image` gives it.

    Args:
        encoded: the bytes of a PNG, JPEG, WebP, GIF, BMP or TIFF file.
        where: what messages begin with.
        max_pixels: width times height that is decoded at most.

    Raises:
        DataError: it is no image, cut off, damaged, or larger than `max_pixels`.
    """
    decoder = next((decoder for start, decoder in _DECODERS if encoded.startswith(start)), None)
    if decoder is None or (decoder is WebPImageFile and encoded[8:12] != b"WEBP"):
        raise DataError(f"{where}: is {'empty' if not encoded else f'no image (it begins with {encoded[:8]!r})'}; allowed are {FORMATS}")
    try:
        with decoder(io.BytesIO(encoded)) as image:
            width, height = image.size
            if width * height <= max_pixels:
                image.load()
                return _as_seen(image)
    except _BROKEN as error:
        raise DataError(f"{where}: the image is cut off or damaged ({_words(error)}). Get the file again, or take it out") from error
    raise DataError(f"{where}: the image has {width:,} x {height:,} pixels, more than the {max_pixels:,} allowed. Save it smaller, or take it out")


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
