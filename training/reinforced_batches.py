"""Reinforced training (Vasu et al. 2024, arXiv:2311.17049): images augmented as the teachers saw them, with captions, in batches of distinct pairs.

A sample is one augmented image, one caption that a person wrote and, where there are some, one that a captioner wrote. What the
teachers make of them is on the disk (`retriever.reinforced.records`), so no teacher is loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from retriever.collection import Collection
from retriever.errors import ConfigError, DataError
from retriever.images.augmentation import apply, pixels_fingerprint
from retriever.images.reading import read_image
from retriever.reinforced.records import Reinforced, as_line
from retriever.reinforced.shards import ReinforcedDataset
from retriever.settings.training import TrainingSettings
from retriever.training.batches import Batcher
from retriever.types import Qrels, Query, Unit

KEPT = 4096
"""Images whose vectors stay in memory: of ten augmentations and one teacher 30 kB each. Reading them again takes longer than a step after frozen towers."""

TOGETHER = ("reinforced", "contrastive")
"""The losses of such a batch; both take its images and captions."""

LABELS = ("images", "texts", "samples", "of", "written", "words", "known")
"""What the label of such a batch holds, each with rows that can be put after another batch's."""


def is_reinforced(settings: TrainingSettings) -> bool:
    """Whether training learns from a reinforced dataset.

    Raises:
        ConfigError: beside what such a batch has no use for.
    """
    if not settings.losses.get("reinforced"):
        return False
    others = [name for name, weight in settings.losses.items() if weight and name not in TOGETHER]
    if others:
        raise ConfigError(f"training.losses: reinforced takes batches of images and captions, which {others[0]} cannot read. Keep reinforced and contrastive")
    if settings.queue:
        raise ConfigError("training.queue: reinforced training has no lists, which a queue would make longer. Leave training.queue out")
    if settings.frozen_layers:
        raise ConfigError("training.frozen_layers: reinforced training reads other images and captions at every step. Leave training.frozen_layers out")
    return True


@dataclasses.dataclass(frozen=True)
class ReinforcedSamples:
    """S samples in training order, aligned arrays.

    Attributes:
        dataset: what the teachers make of images and captions.
        doc_ids: [S], the image of each sample.
        augmentations: int64 [S], which of the image's augmentations.
        captions: int64 [S], which of its captions.
        synthetic: int64 [S], which of its synthetic captions; -1 where it has none.
    """

    dataset: ReinforcedDataset
    doc_ids: Sequence[str]
    augmentations: NDArray[np.int64]
    captions: NDArray[np.int64]
    synthetic: NDArray[np.int64]
    unit: Unit = "cosine"
    vectors: None = None
    encodings: None = None

    def __len__(self) -> int:
        return len(self.doc_ids)


def make_reinforced_samples(
    dataset: ReinforcedDataset,
    queries: Mapping[str, Query],
    qrels: Qrels,
    held: Sequence[str],
    collection: Collection,
    epochs: int,
    generator: np.random.Generator,
) -> ReinforcedSamples:
    """Samples for all epochs, in training order: each epoch has each image once, shuffled and drawn anew.

    A held-out query teaches nothing: its caption is left out of its image's, and an image that is such a query is left out.

    Args:
        dataset: of the train split.
        queries: train queries, those held out among them.
        qrels: their grades.
        held: ids of the queries that choose the checkpoint.
        collection: tells which documents are images.
        epochs: how often each image is shown.
        generator: draws.

    Raises:
        DataError: the dataset lacks an image, or no image may teach.
    """
    teaching = _teaching(dataset, queries, qrels, frozenset(held), collection)
    if not teaching:
        raise DataError(f"{dataset.folder}: no image of it teaches: all its captions are held out, or belong to another split")
    doc_ids = list(teaching)
    order = np.concatenate([generator.permutation(len(doc_ids)) for _ in range(epochs)])
    counts = list(teaching.values())
    drawn = [(generator.integers(a), generator.choice(captions), generator.integers(s) if s else -1) for a, captions, s in (counts[place] for place in order)]
    augmentations, captions, synthetic = np.array(drawn, dtype=np.int64).T
    return ReinforcedSamples(dataset, [doc_ids[place] for place in order], augmentations, captions, synthetic)


def _teaching(
    dataset: ReinforcedDataset, queries: Mapping[str, Query], qrels: Qrels, held: frozenset[str], collection: Collection
) -> dict[str, tuple[int, list[int], int]]:
    """Image -> how many augmentations it has, which of its captions teach (of those that are queries too, the train queries alone), synthetic ones."""
    captions: dict[str, set[str]] = {}
    for query_id, query in queries.items():
        relevant = [doc_id for doc_id, grade in qrels.get(query_id, {}).items() if grade > 0]
        for doc_id in [query_id] if query.image else relevant:
            captions.setdefault(doc_id, set()).update({as_line(query.text)} if query_id not in held and not query.image else ())
    one_way = all(query.image for query in queries.values())  # captions are documents alone
    images = {document.doc_id for document in collection.documents_by_row(np.sort(collection.rows_of(list(captions)))) if document.image}
    found = {}
    for doc_id, teaching in captions.items():
        if doc_id in images and doc_id not in held:
            item = dataset.of_document(doc_id)
            if numbers := [number for number, caption in enumerate(item.captions) if one_way or caption in teaching]:
                found[doc_id] = len(item.augmentations), numbers, len(item.synthetic)  # not the item, whose vectors would fill the memory
    return found


@dataclasses.dataclass(frozen=True)
class ReinforcedBatcher(Batcher):
    """The data collator: sample numbers in, features of B captions and M synthetic ones, and of B augmented images, out.

    The label is a mapping, in the order of the texts and of the images:

    - "images" [B, D] and "texts" [B + M, D], the teachers' vectors;
    - "samples" int64 [B], the samples' numbers, ascending; "of" int64 [B + M], to which of them a text belongs;
    - "written" int64 [B + M], 1 for a synthetic caption and else 0;
    - "words" int64 [B + M], equal for texts of the same words; "known" int64 [C, 2], a sample's number and the words of each of its
      image's captions, whether or not they stand in the batch.
    """

    samples: Any
    kept: dict[str, Reinforced] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __call__(self, batch: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """The features of one batch."""
        numbers = np.array([sample["label"] for sample in batch])
        features = self._features(numbers)
        if self.ahead:
            following = self.ahead.following(numbers, len(self.samples))
            self.ahead.begin({}, {} if self._at_hand(following) else {following.tobytes(): self._augmented_ones(following)})
        return features

    def _at_hand(self, numbers: NDArray[np.int64]) -> bool:
        """Whether nothing has to be read for these samples."""
        doc_ids = [self.samples.doc_ids[number] for number in numbers]
        names = [(self._path(doc_id), int(self.samples.augmentations[number])) for doc_id, number in zip(doc_ids, numbers, strict=True)]
        return all(doc_id in self.kept for doc_id in doc_ids) and bool(self.towers and self.towers.holds("image", names))

    def _item(self, doc_id: str) -> Reinforced:
        """What is known of an image, read once for the first `KEPT` of them."""
        item: Reinforced = self.kept.get(doc_id) or self.samples.dataset.of_document(doc_id)
        if len(self.kept) < KEPT:
            self.kept[doc_id] = item
        return item

    def _features(self, numbers: NDArray[np.int64]) -> dict[str, Any]:
        samples: ReinforcedSamples = self.samples
        items, groups = self._ready(numbers.tobytes(), self._augmented_ones(numbers))
        drawn = [int(samples.augmentations[number]) for number in numbers]
        rows = [int(samples.captions[number]) for number in numbers]
        written = [place for place, number in enumerate(numbers) if samples.synthetic[number] >= 0]
        theirs = [len(items[place].captions) + int(samples.synthetic[numbers[place]]) for place in written]
        told = [*zip(items, rows, strict=True), *((items[place], row) for place, row in zip(written, theirs, strict=True))]
        texts = [_all_captions(item)[row] for item, row in told]
        features = {f"query_{key}": value for key, value in self.read(texts, "query").items()}
        for group, images in enumerate(groups):
            features |= {f"document_{group}_{key}": value for key, value in images.items()}
        label = {
            "images": torch.from_numpy(np.stack([item.images[number] for item, number in zip(items, drawn, strict=True)])),
            "texts": torch.from_numpy(np.stack([item.texts[row] for item, row in told])),
            "samples": torch.from_numpy(numbers),
            "of": torch.from_numpy(np.concatenate([numbers, numbers[written]])),
            "written": torch.tensor([0] * len(items) + [1] * len(written)),
            "words": torch.tensor([words_number(text) for text in texts]),
            "known": torch.tensor([(number, words_number(text)) for number, item in zip(numbers, items, strict=True) for text in _all_captions(item)]),
        }
        return features | {"label": label}

    def _augmented_ones(self, numbers: NDArray[np.int64]) -> Callable[[], tuple[list[Reinforced], list[dict[str, Any]]]]:
        """Reads what is known of the images of some samples and makes the features of the augmented ones, in groups; another thread may call it."""
        samples: ReinforcedSamples = self.samples
        paths = [self._path(samples.doc_ids[number]) for number in numbers]  # the collection is asked in this thread alone
        size = self.images_together or max(1, len(numbers))

        def read() -> tuple[list[Reinforced], list[dict[str, Any]]]:
            items = [self._item(samples.doc_ids[number]) for number in numbers]
            wanted = list(zip(items, (int(samples.augmentations[number]) for number in numbers), paths, strict=True))
            return items, [self._augmented(wanted[start : start + size]) for start in range(0, len(wanted), size)]

        return read

    def _augmented(self, wanted: Sequence[tuple[Reinforced, int, Path]]) -> dict[str, Any]:
        """The features of augmented images; of a tower that does not learn, what it makes of them."""

        def pixels(some: Sequence[tuple[Reinforced, int, Path]]) -> dict[str, Any]:
            features: dict[str, Any] = self.model.preprocess([self._image(*one) for one in some], task="document")
            return features

        return self._through("image", [(path, number) for _, number, path in wanted], wanted, pixels)

    def _path(self, doc_id: str) -> Path:
        """Where an image's file is.

        Raises:
            DataError: it is nowhere.
        """
        dataset: ReinforcedDataset = self.samples.dataset
        path = dataset.path_of_document(doc_id) or self.collection.document(doc_id).image
        if path is None:
            raise DataError(f"{dataset.folder}: the image {doc_id} is neither in it nor in the collection")
        return path

    def _image(self, item: Reinforced, number: int, path: Path) -> Image.Image:
        """An augmented image, bit for bit as the teachers saw it.

        Raises:
            DataError: it has other pixels.
        """
        made = apply(read_image(path), item.augmentations[number])
        if item.pixels and pixels_fingerprint(made) != item.pixels[number]:
            raise DataError(f"{path}: augmented again, it has other pixels than the teachers saw. See what changed: retriever reinforce --verify FOLDER")
        return made


def words_number(text: str) -> int:
    """A number of 64 bits that stands for a text in every process; two texts of a batch of a million have the same one with a chance of 3 in 100 million."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _all_captions(item: Reinforced) -> tuple[str, ...]:
    """What people and captioners wrote of an image, in the order of the teachers' vectors."""
    return (*item.captions, *item.synthetic)
