"""Random changes of images whose parameters are kept, so that the same pixels can be made again whenever they are needed.

An image is cut out and resized, perhaps mirrored, and changed by a few operations: the random resized crop and the operations of
RandAugment (Cubuk et al. 2020, arXiv:1909.13719) as reinforced training stores them (Vasu et al. 2024, arXiv:2311.17049). Pillow
and numpy do it; the same version of Pillow gives the same pixels bit for bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from retriever.errors import DataError
from retriever.settings.reinforce import OPERATIONS, AugmentationSettings

_TRIES = 10
"""Draws of a cut-out before the middle of the image is taken; of a very long image most do not fit."""


@dataclasses.dataclass(frozen=True, slots=True)
class Augmentation:
    """What was drawn for one image; all that is needed to make the augmented one again from it.

    Attributes:
        crop: top, left, height and width in pixels of the upright image.
        size: side of the square that the cut-out becomes.
        operations: (number in `OPERATIONS`, magnitude) in their order; None for one that was skipped. The magnitude is what the
            operation takes: of Brightness, Color, Contrast and Sharpness what is added to the factor 1, of Rotate degrees, of
            translations pixels, of shears the tangent, of Posterize bits, of Solarize the threshold.
        flipped: whether the cut-out is mirrored, before the operations.
    """

    crop: tuple[int, int, int, int]
    size: int
    operations: tuple[tuple[int, float] | None, ...] = ()
    flipped: bool = False

    def to_json(self) -> list[Any]:
        """The parameters of the random steps in their order, as DataCompDR keeps them; `size` is kept once for all.

        [[top, left, height, width], [[operation, magnitude], ...]]; of a mirrored one [[...], true, [...]].
        """
        operations = [None if one is None else list(one) for one in self.operations]
        return [list(self.crop), *([True] if self.flipped else []), operations]

    @classmethod
    def from_json(cls, value: Any, size: int, where: str) -> Augmentation:
        """The parameters read back.

        Raises:
            DataError: they are none; the message begins with `where`.
        """
        parts = list(value) if isinstance(value, list) else []
        flipped = parts.pop(1) if len(parts) == 3 and isinstance(parts[1], bool) else False
        crop, listed = (*parts, None, None)[:2]
        operations = [None if one is None else _operation(one) for one in listed or []] if isinstance(listed, list | None) else [()]
        if len(parts) not in (1, 2) or not _is_crop(crop) or () in operations:
            raise DataError(f"{where}: {value!r:.80} is no augmentation; it must be [[top, left, height, width], [[operation, magnitude], ...]]")
        return cls(tuple(crop), size, tuple(one or None for one in operations), flipped)


def _is_crop(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 4 and all(type(number) is int for number in value)
    return numbers and min(value[:2]) >= 0 and min(value[2:]) > 0


def _operation(value: Any) -> tuple[int, float] | tuple[()]:
    """An operation and its magnitude; () for what is none."""
    pair = isinstance(value, list) and len(value) == 2 and type(value[0]) is int and type(value[1]) in (int, float)
    return (value[0], value[1]) if pair and value[0] in range(len(OPERATIONS)) and math.isfinite(value[1]) else ()


def draw(generator: np.random.Generator, settings: AugmentationSettings, size: tuple[int, int]) -> Augmentation:
    """An augmentation of an image, drawn at random.

    The share of the area is uniform, the logarithm of width by height likewise, and so is the place. Operations are drawn with
    equal chances, and unlike in RandAugment each with a magnitude of its own, uniform up to `strength` of its range.

    Args:
        generator: draws.
        settings: what may be drawn.
        size: width and height of the upright image in pixels.
    """
    crop = _draw_crop(generator, settings, size)
    flipped = settings.flip and bool(generator.random() < 0.5)
    count = settings.operations_per_image if settings.operations else 0
    names = [settings.operations[int(generator.integers(len(settings.operations)))] for _ in range(count)]
    operations = tuple((OPERATIONS.index(name), _magnitude(name, settings, generator.uniform(-1, 1))) for name in names)
    return Augmentation(crop, settings.image_size, operations, flipped)


def _draw_crop(generator: np.random.Generator, settings: AugmentationSettings, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, height and width; the greatest one in the middle that the ratio allows where no draw fits."""
    width, height = size
    lowest, highest = settings.crop_ratio
    for _ in range(_TRIES):
        area = width * height * generator.uniform(*settings.crop_scale)
        ratio = math.exp(generator.uniform(math.log(lowest), math.log(highest)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(generator.integers(height - h + 1)), int(generator.integers(width - w + 1)), h, w
    w, h = min(width, max(1, round(height * highest))), min(height, max(1, round(width / lowest)))
    return (height - h) // 2, (width - w) // 2, h, w


def _magnitude(name: str, settings: AugmentationSettings, share: float) -> float:
    """What an operation is told, for a share of its range from -1 to 1; the ranges are those of RandAugment."""
    part = share * settings.strength
    if name.startswith("Shear"):
        return 0.3 * part
    if name.startswith("Translate"):
        return round(150 / 331 * settings.image_size * part)
    if name == "Rotate":
        return 30.0 * part
    if name == "Posterize":
        return 8 - round(4 * abs(part))
    if name == "Solarize":
        return 255.0 * (1 - abs(part))
    return 0.9 * part if name in ("Brightness", "Color", "Contrast", "Sharpness") else 0.0


def apply(image: Image.Image, augmentation: Augmentation) -> Image.Image:
    """The augmented image, mode RGB, of `augmentation.size` pixels on each side; the image itself stays as it is.

    Args:
        image: upright, mode RGB, as `retriever.images.reading.read_image` gives it.
        augmentation: drawn for an image of this size.

    Raises:
        DataError: it was drawn for another image.
    """
    top, left, height, width = augmentation.crop
    if top + height > image.height or left + width > image.width:
        raise DataError(f"the augmentation cuts {width} x {height} pixels out at ({left}, {top}), the image has {image.width} x {image.height}")
    square = (augmentation.size, augmentation.size)
    changed = image.crop((left, top, left + width, top + height)).resize(square, Image.Resampling.BICUBIC)
    if augmentation.flipped:
        changed = changed.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for number, magnitude in filter(None, augmentation.operations):
        changed = _DOES[OPERATIONS[number]](changed, magnitude)
    return changed


def pixels_fingerprint(image: Image.Image) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of an image's mode, size and pixels."""
    digest = hashlib.sha256(f"{image.mode} {image.width} {image.height}\n".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()[:16]


Does = Callable[[Image.Image, float], Image.Image]


def _moved(image: Image.Image, *matrix: float) -> Image.Image:
    """What lies at (x, y) comes from (a x + b y + c, d x + e y + f); black where that is outside."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def _enhanced(by: type[Any]) -> Does:
    def do(image: Image.Image, magnitude: float) -> Image.Image:
        enhanced: Image.Image = by(image).enhance(1 + magnitude)
        return enhanced

    return do


_DOES: Mapping[str, Does] = {
    "Identity": lambda image, _: image,
    "ShearX": lambda image, tangent: _moved(image, 1, tangent, 0, 0, 1, 0),
    "ShearY": lambda image, tangent: _moved(image, 1, 0, 0, tangent, 1, 0),
    "TranslateX": lambda image, pixels: _moved(image, 1, 0, -int(pixels), 0, 1, 0),
    "TranslateY": lambda image, pixels: _moved(image, 1, 0, 0, 0, 1, -int(pixels)),
    "Rotate": lambda image, degrees: image.rotate(degrees, Image.Resampling.NEAREST),
    "Brightness": _enhanced(ImageEnhance.Brightness),
    "Color": _enhanced(ImageEnhance.Color),
    "Contrast": _enhanced(ImageEnhance.Contrast),
    "Sharpness": _enhanced(ImageEnhance.Sharpness),
    "Posterize": lambda image, bits: ImageOps.posterize(image, min(8, max(1, int(bits)))),
    "Solarize": lambda image, threshold: ImageOps.solarize(image, math.ceil(threshold)),
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
}


def drawn_for(name: str, seed: int, settings: AugmentationSettings, size: tuple[int, int], count: int) -> Sequence[Augmentation]:
    """`count` augmentations of an image, the same wherever and in whatever order they are drawn: a generator for each name.

    Args:
        name: of the image.
        seed: of the experiment.
        settings: what may be drawn.
        size: width and height of the image.
        count: how many.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    generator = np.random.default_rng([seed, *np.frombuffer(digest, dtype=">u4").tolist()])
    return [draw(generator, settings, size) for _ in range(count)]
