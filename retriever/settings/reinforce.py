"""The section [reinforce] of an experiment file: how images are augmented, and what is kept of them for reinforced training."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from retriever.settings.section import PositiveInt, Settings, nearest

OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"),
    *("Posterize", "Solarize", "AutoContrast", "Equalize"),
)
"""What may be done to an image after it was cut out; an operation's place here is its number in stored parameters."""

COLOUR_JITTER = ("Brightness", "Color", "Contrast", "Sharpness")

Precision = Literal["float16", "bfloat16", "float32"]


class ChangeSettings(Settings):
    """How an image is changed at random: cut out, perhaps mirrored, and changed by some operations."""

    crop_scale: tuple[float, float] = Field((0.08, 1.0), strict=False, description="least and greatest share of the image's area that is cut out")
    crop_ratio: tuple[float, float] = Field((0.75, 4 / 3), strict=False, description="least and greatest width divided by height of what is cut out")
    flip: bool = Field(False, description="mirror every second image; left and right matter in signs, writing and captions that name them")
    operations: tuple[str, ...] = Field(COLOUR_JITTER, strict=False, description=f"drawn from: {', '.join(OPERATIONS)}")
    operations_per_image: int = Field(2, ge=0, description="how many are drawn, one after the other")
    strength: float = Field(0.4, ge=0, le=1, description="the greatest magnitude, as a share of each operation's range")

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _is_range(cls, limits: tuple[float, float]) -> tuple[float, float]:
        low, high = limits
        if not 0 < low <= high:
            raise ValueError(f"[{low}, {high}] is no range: give the least and the greatest value, above 0")
        return limits

    @field_validator("crop_scale")
    @classmethod
    def _is_share(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if limits[1] > 1:
            raise ValueError(f"{limits[1]} is more than the whole image, which is 1")
        return limits

    @field_validator("operations")
    @classmethod
    def _known_operations(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in OPERATIONS:
                raise ValueError(f'unknown operation "{name}"{nearest(name, OPERATIONS)}')
        return names


class AugmentationSettings(ChangeSettings):
    """The same, and the size of what comes out."""

    image_size: PositiveInt = Field(224, description="side of the square that an augmented image has, in pixels")


class ReinforceSettings(ChangeSettings):
    """What a reinforced dataset holds of each train image."""

    image_size: PositiveInt | None = Field(None, description="side of an augmented image in pixels; student.image_size when left out, 224 where there is none")
    augmentations: PositiveInt = Field(10, description="of each image")
    synthetic_captions: Path | None = Field(
        None, strict=False, description='JSON lines {"image": "...", "captions": [...]} that a captioner wrote, relative to the experiment file'
    )
    precision: Precision = Field("float16", description="of the stored vectors; bfloat16 is written as NAME.pth.gz, the others as NAME.npz")
    store_images: bool = Field(True, description="keep each image's file in the shards; without, the collection must stay where it is")
    shard_images: PositiveInt = Field(256, description="images of a shard: what a stop costs at most")

    def augmentation(self, student_size: int | None) -> AugmentationSettings:
        """The settings of the augmentations alone, with the size that images become."""
        values = {name: getattr(self, name) for name in ChangeSettings.model_fields}
        return AugmentationSettings.model_validate(values | {"image_size": self.image_size or student_size or 224})
