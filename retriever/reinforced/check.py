"""Whether a reinforced dataset is what it should be: bytes, layout, vectors, and pixels made again from the stored parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL

from retriever.errors import DataError
from retriever.images.augmentation import apply, pixels_fingerprint
from retriever.images.reading import read_image
from retriever.reinforced.records import Reinforced
from retriever.reinforced.shards import ReinforcedDataset, damage, list_shards

TOLERANCE = 0.01
"""How far the length of a unit vector may be from 1; bfloat16 keeps three digits."""


@dataclasses.dataclass(frozen=True)
class Verified:
    """What was looked at, and the problems that were found, a line each.

    Attributes:
        images: of the dataset.
        remade: augmented images that were made again and compared with what the teachers saw.
        problems: empty for a sound dataset.
    """

    images: int
    remade: int
    problems: tuple[str, ...]


def verify(folder: Path, advance: Callable[[int], None] = lambda count: None, elsewhere: Callable[[str], Path | None] = lambda doc_id: None) -> Verified:
    """Looks at every shard and every image of a dataset.

    Args:
        folder: of the dataset.
        advance: called with 1 for each image.
        elsewhere: where the file of an image is, by its doc_id, when the dataset does not keep it.

    Raises:
        DataError: it cannot be opened at all.
    """
    dataset = ReinforcedDataset(folder)
    problems = [f"{shard}: {problem}" for shard in list_shards(folder) if (problem := damage(shard))]
    remade = 0
    for uid in dataset.uids:
        try:
            item = dataset.item(uid)
            problems += [f"{folder}, image {uid}: {problem}" for problem in _vector_problems(dataset, item)]
            path = dataset.image_path(uid) or elsewhere(str(item.about.get("doc_id", "")))
            if path is not None and item.pixels:
                problems += [f"{folder}, image {uid}: {problem}" for problem in _pixel_problems(dataset, item, path)]
                remade += len(item.augmentations)
        except DataError as error:
            problems.append(str(error))
        advance(1)
    return Verified(len(dataset), remade, tuple(problems))


def _vector_problems(dataset: ReinforcedDataset, item: Reinforced) -> Iterator[str]:
    for what, vectors in (("images", item.images), ("texts", item.texts)):
        for teacher, own in zip(dataset.teachers, dataset.by_teacher(vectors), strict=True):
            lengths = np.linalg.norm(own, axis=1)
            if len(own) and np.abs(lengths - 1).max() > TOLERANCE:
                yield f"the vectors of {what} by {teacher.name} have lengths from {lengths.min():.3f} to {lengths.max():.3f}; they must be 1"


def _pixel_problems(dataset: ReinforcedDataset, item: Reinforced, path: Path) -> Iterator[str]:
    """Augmented images that are not what the teachers saw."""
    if len(item.pixels) != len(item.augmentations):
        yield f"{len(item.pixels)} fingerprints of {len(item.augmentations)} augmented images"
        return
    image = read_image(path)
    other = [place for place, one in enumerate(item.augmentations) if pixels_fingerprint(apply(image, one)) != item.pixels[place]]
    if other:
        made = dataset.facts.get("versions", {}).get("Pillow", "an unknown version")
        yield f"{len(other)} of {len(item.pixels)} augmented images are not those that the teachers saw (made with Pillow {made}, here is {PIL.__version__})"
