"""The reinforced step: augmentations, captions and the teachers' vectors of both for every train image, shard by shard.

The folder is added to: images that are there as they are wanted stay, shards with others are removed, and what is missing is made
(a set difference, so that a stop, a damaged shard and new images are the same case). Other teachers or augmentations empty it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
from numpy.typing import NDArray

from retriever.captioning.step import captions_of, captions_so_far
from retriever.errors import DataError
from retriever.files import fingerprint
from retriever.images.augmentation import apply, drawn_for, pixels_fingerprint
from retriever.images.reading import image_bytes, read_image
from retriever.reinforced.plan import WantedImage, in_parts, wanted_images
from retriever.reinforced.records import Reinforced, files_of
from retriever.reinforced.shards import (
    MANIFEST,
    damage,
    encode_shard,
    list_shards,
    number_of,
    places_in,
    read_files,
    write_manifest,
    write_shard,
)
from retriever.reinforced.teachers import TeacherModels, load_teachers
from retriever.scores.shards import remove_temporaries, set_aside
from retriever.settings.reinforce import AugmentationSettings, Precision, ReinforceSettings
from retriever.steps.step import Done
from retriever.workers.loader import Loader, engine_of
from retriever.workers.tasks import Engine

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline

STEP = "reinforced"
MEASURED = 8
"""Images that a plan is measured on."""

TOGETHER = 16
"""Images whose augmented ones are in memory at the same time."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is made of an image, whoever makes it.

    Attributes:
        augmentation: what may be drawn.
        count: augmentations of an image.
        precision: of the stored vectors.
        store_images: whether the image's own file is kept.
        seed: of the draws.
    """

    augmentation: AugmentationSettings
    count: int
    precision: Precision
    store_images: bool
    seed: int


@dataclasses.dataclass(frozen=True)
class Prospect:
    """What `reinforce` would do: images in all and those that are there, captions, seconds and bytes for the missing ones.

    Attributes:
        to_write: captions that captioners write first; what is said of the images does not count them.
    """

    images: int
    done: int
    captions: int
    synthetic: int
    augmentations: int
    seconds: float
    bytes: int
    to_write: int = 0


def settings_of(pipeline: Pipeline) -> ReinforceSettings:
    """The section [reinforce]; its defaults where the file has none."""
    return pipeline.experiment.reinforce or ReinforceSettings()


def recipe_of(pipeline: Pipeline) -> Recipe:
    """What the experiment makes of each image."""
    settings = settings_of(pipeline)
    augmentation = settings.augmentation(getattr(pipeline.experiment.student, "image_size", None))
    return Recipe(augmentation, settings.augmentations, settings.precision, settings.store_images, pipeline.experiment.seed)


def reinforce(pipeline: Pipeline) -> Done:
    """The finished step; its folder is a reinforced dataset.

    Raises:
        ConfigError: no teacher is an image-text encoder, or one has no logit scale.
        DataError: the collection has no images with captions, or one cannot be read.
    """
    recipe, wanted = recipe_of(pipeline), _wanted(pipeline, captions_of(pipeline))
    models = load_teachers(pipeline)
    inputs = {"teachers": models.identity, "images": fingerprint([image.made_from for image in wanted])}
    settings = _told(recipe) | {"logit_scales": [teacher.logit_scale for teacher in models.teachers]}
    return pipeline.step(STEP, inputs, settings, lambda folder: _work(pipeline, recipe, wanted, models, folder), in_place=True)


def prospect(pipeline: Pipeline) -> Prospect:
    """What `reinforce` would do, measured on a few images; nothing is written."""
    captioned, to_write = captions_so_far(pipeline)
    recipe, wanted = recipe_of(pipeline), _wanted(pipeline, captioned)
    models = load_teachers(pipeline)
    folder = pipeline.folder / STEP
    there = {uid for found in _found(folder).values() for uid in found.items()} if _how(folder) == _made_how(recipe, models) else set()
    pending = [image for image in wanted if (image.uid, image.made_from) not in there]
    seconds, size = 0.0, 0.0
    for part in (pending[:1], pending[:MEASURED]) if pending else ():  # the first one warms the models up
        start = time.perf_counter()
        size = len(reinforce_shard(models, recipe, part)) / len(part)
        seconds = (time.perf_counter() - start) / len(part)
    captions, synthetic = (sum(len(getattr(image, name)) for image in wanted) for name in ("captions", "synthetic"))
    cost = seconds * len(pending), round(size * len(pending))
    return Prospect(len(wanted), len(wanted) - len(pending), captions, synthetic, recipe.count, *cost, to_write)


def reinforce_shard(models: TeacherModels, recipe: Recipe, images: Sequence[WantedImage]) -> bytes:
    """The bytes of a shard with these images; the same images give the same bytes where the models give the same numbers."""
    made = (files for part in in_parts(images, TOGETHER) for files in _reinforced(models, recipe, part))
    return encode_shard(dict(zip((image.uid for image in images), made, strict=True)))


ReinforceEngine = Engine[TeacherModels, Recipe, tuple[WantedImage, ...], bytes]


def _wanted(pipeline: Pipeline, captioned: Mapping[str, Sequence[str]]) -> list[WantedImage]:
    synthetic = settings_of(pipeline).synthetic_captions
    return wanted_images(pipeline.collection, pipeline.queries("train"), pipeline.qrels("train"), synthetic, captioned=captioned)


def _reinforced(models: TeacherModels, recipe: Recipe, images: Sequence[WantedImage]) -> Iterator[dict[str, bytes]]:
    """The files of some images, whose augmented ones and captions the teachers read together."""
    drawn, pixels, augmented = [], [], []
    for wanted in images:
        image = read_image(wanted.image)
        drawn.append(drawn_for(wanted.doc_id, recipe.seed, recipe.augmentation, image.size, recipe.count))
        changed = [apply(image, augmentation) for augmentation in drawn[-1]]
        pixels.append([pixels_fingerprint(one) for one in changed])
        augmented += changed
    texts = [text for wanted in images for text in (*wanted.captions, *wanted.synthetic)]
    of_images = _parts(models.images(augmented), [recipe.count] * len(images))
    of_texts = _parts(models.texts(texts), [len(wanted.captions) + len(wanted.synthetic) for wanted in images])
    for wanted, augmentations, prints, image_vectors, text_vectors in zip(images, drawn, pixels, of_images, of_texts, strict=True):
        data = image_bytes(wanted.image)
        about = {"doc_id": wanted.doc_id, "sha256": hashlib.sha256(data).hexdigest(), "made_from": wanted.made_from, "pixels": prints}
        item = Reinforced(wanted.uid, wanted.captions, wanted.synthetic, tuple(augmentations), image_vectors, text_vectors, about)
        yield files_of(item, recipe.precision, (wanted.image.suffix.lower(), data) if recipe.store_images else None)


def _parts(vectors: NDArray[np.float32], counts: Sequence[int]) -> list[NDArray[np.float32]]:
    return np.split(vectors, np.cumsum(counts)[:-1])


def _work(pipeline: Pipeline, recipe: Recipe, wanted: Sequence[WantedImage], models: TeacherModels, folder: Path) -> dict[str, Any]:
    settings, reporter = settings_of(pipeline), pipeline.reporter
    how, facts = _made_how(recipe, models), _facts(pipeline, recipe, wanted)
    remove_temporaries(folder)  # of a process that was killed
    if _how(folder) != how:
        for shard in _own_shards(folder):
            shard.unlink()
    write_manifest(folder, models.teachers, {**facts, "how": how, "complete": False})
    found = _kept(folder, {image.uid: image.made_from for image in wanted}, reporter.say)
    pending = [image for image in wanted if image.uid not in found]
    parts = in_parts(pending, settings.shard_images)
    taken = {number_of(shard) for shard in _own_shards(folder)}
    free = (number for number in itertools.count() if number not in taken)
    load = Loader.of(pipeline, load_teachers, None)
    with (
        reporter.bar("reinforcing images", len(wanted)) as advance,
        engine_of(pipeline.experiment.scoring, load, reinforce_shard, "teachers of images and texts") as engine,
    ):
        advance(len(found))
        for part, data in zip(parts, engine(models, recipe, parts), strict=True):
            write_shard(folder, next(free), data)
            advance(len(part))
    write_manifest(folder, models.teachers, {**facts, "how": how, "complete": True})
    return {name: facts[name] for name in ("images", "captions", "synthetic", "augmentations")} | {"made": len(pending)}


def _facts(pipeline: Pipeline, recipe: Recipe, wanted: Sequence[WantedImage]) -> dict[str, Any]:
    """What reinforced.json says beside the teachers."""
    return {
        "images": len(wanted),
        "captions": sum(len(image.captions) for image in wanted),
        "synthetic": sum(len(image.synthetic) for image in wanted),
        "augmentations": recipe.count,
        "collection": pipeline.collection.fingerprint,
        "made_with": _told(recipe),
        "versions": {"Pillow": PIL.__version__},
    }


def _told(recipe: Recipe) -> dict[str, Any]:
    kept = {name: getattr(recipe, name) for name in ("count", "precision", "store_images")}
    return {"augmentation": recipe.augmentation.model_dump(mode="json"), **kept}


def _made_how(recipe: Recipe, models: TeacherModels) -> str:
    """Changes with all that decides what is made of an image."""
    return fingerprint([_told(recipe), recipe.seed, models.identity])


def _how(folder: Path) -> str | None:
    """How the shards of a folder were made; None where none were begun."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found.get("how") if isinstance(found, dict) else None


def _kept(folder: Path, wanted: Mapping[str, str], say: Callable[[str], None]) -> set[str]:
    """The images that stay; shards that are damaged are set aside, and those with an image that is not wanted as it is are removed."""
    kept: dict[str, str] = {}
    for shard, found in _found(folder, partial(_set_aside, say=say)).items():
        if any(wanted.get(uid) != made_from or uid in kept for uid, made_from in found.items()):
            shard.unlink()
        else:
            kept |= found
    return set(kept)


def _set_aside(shard: Path, problem: str, say: Callable[[str], None]) -> None:
    set_aside(shard)
    say(f"{shard}: {problem}; it was renamed to *.damaged, and its images are made again")


def _found(folder: Path, damaged: Callable[[Path, str], None] = lambda shard, problem: None) -> dict[Path, dict[str, str]]:
    """Shard -> UID -> `made_from` of its images, of the shards whose bytes are those that were written."""
    found = {}
    for shard in _own_shards(folder):
        try:
            problem = damage(shard)
            images = {} if problem else {uid: _made_from(shard, uid, places) for uid, places in places_in(shard).items()}
        except (OSError, DataError) as error:
            problem = str(error)
        if problem:
            damaged(shard, problem)
        else:
            found[shard] = images
    return found


def _own_shards(folder: Path) -> list[Path]:
    """The tar files that this step wrote."""
    return [shard for shard in list_shards(folder) if number_of(shard) >= 0]


def _made_from(shard: Path, uid: str, places: Mapping[str, tuple[int, int]]) -> str:
    """What an image of a shard was made from; "" where its files do not say."""
    files = read_files(shard, {ending: place for ending, place in places.items() if ending == "json"})
    try:
        return str(json.loads(files["json"])["made_from"])
    except (KeyError, ValueError, TypeError):
        return ""
