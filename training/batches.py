"""What the model reads of a batch of samples: each distinct document once, those of like length together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from retriever.collection import Collection
from retriever.errors import DataError
from retriever.images.reading import read_image
from retriever.models.modalities import Modality, as_texts, text_options
from retriever.models.routes import modules_of
from retriever.training.ahead import ReadAhead
from retriever.training.samples import TrainingSamples
from retriever.training.states import FrozenTexts
from retriever.training.towers import VECTOR, FrozenTowers, Read
from retriever.types import Document, Query

IMAGES = 32
"""Images that are encoded together at most, where a batch is encoded in groups to save memory."""

GROUP = 16
"""Documents that are encoded together at least; below that, padding costs less than a further pass through the model."""


def as_dataset(samples: TrainingSamples) -> Dataset:
    """Samples as the trainers take them: their numbers alone; a `Batcher` fetches the texts of a batch."""
    return Dataset.from_dict({"label": list(range(len(samples)))})


@dataclasses.dataclass(frozen=True)
class Batcher:
    """The data collator: sample numbers in, features for the model out.

    Features have the prefix `query_`, and `document_0_`, `document_1_` ... for groups of distinct documents of falling length; there
    are none of documents whose encodings are stored. Images are groups of their own, read when the batch is made.
    The label is a mapping: "samples" int64 [B], and "rows" int64 [U], the documents in the order in which the groups have them.

    Attributes:
        model: a sentence-transformers model, whose prompts and tokenizer are used.
        samples: what the numbers stand for.
        collection: where the documents are.
        max_length: tokens read of a text; the model's own when None.
        states: of all texts, where the lower layers are frozen: a further feature.
        towers: those that do not learn, whose vectors stand in for them.
        images_together: images of a group of documents at most; all when None.
        ahead: reads the images of the next batch; each batch is read when it is asked for when None.
    """

    model: Any
    samples: TrainingSamples
    collection: Collection
    max_length: int | None = None
    states: FrozenTexts | None = None
    towers: FrozenTowers | None = None
    images_together: int | None = None
    ahead: ReadAhead | None = None
    valid_label_columns: tuple[str, ...] = ("label",)

    def __call__(self, batch: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """The features of one batch."""
        numbers = np.array([sample["label"] for sample in batch])
        features = self._features(numbers)
        if self.ahead:
            self.ahead.begin(*self._of_images(self.ahead.following(numbers, len(self.samples))))
        return features

    def _features(self, numbers: NDArray[np.int64]) -> dict[str, Any]:
        rows = self._rows(numbers)
        queries = self._queries([self.samples.queries[number] for number in numbers])
        features = {f"query_{key}": value for key, value in queries.items()}
        groups, order = self._groups(rows) if self.samples.encodings is None else ([], torch.arange(len(rows)))
        for number, group in enumerate(groups):
            features |= {f"document_{number}_{key}": value for key, value in group.items()}
        return features | {"label": {"samples": torch.from_numpy(numbers), "rows": torch.from_numpy(rows)[order]}}

    def _rows(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """[U], the documents of some samples, sorted."""
        return np.unique(self.samples.documents[numbers][self.samples.mask[numbers]])

    def _documents(self, rows: NDArray[np.int64]) -> Sequence[Document]:
        looked_up: Sequence[Document] = self._ready(("rows", rows.tobytes()), lambda: self.collection.documents_by_row(rows.tolist()))
        return looked_up

    def _of_images(self, numbers: NDArray[np.int64]) -> tuple[dict[Hashable, Any], dict[Hashable, Callable[[], Any]]]:
        """What is known of a batch with images, and how its images are read, by the names under which they are asked for."""
        if not len(numbers) or not self.collection.has_images:
            return {}, {}
        rows, queries = self._rows(numbers), [self.samples.queries[number] for number in numbers]
        asked = [query.image for query in queries if query.image]
        documents = self.collection.documents_by_row(rows.tolist()) if self.samples.encodings is None else []
        wanted = [("query", asked)] * bool(asked) + [("document", group) for group in self._image_groups(documents)]
        jobs: dict[Hashable, Callable[[], Any]] = {
            (task, *paths): partial(self._read_images, paths, task) for task, paths in wanted if not (self.towers and self.towers.holds("image", paths))
        }
        return {("rows", rows.tobytes()): documents}, jobs

    def _image_groups(self, documents: Sequence[Document]) -> list[list[Path]]:
        """The images among documents, as many together as are encoded together."""
        paths = [document.image for document in documents if document.image]
        size = self.images_together or max(1, len(paths))
        return [paths[start : start + size] for start in range(0, len(paths), size)]

    def _ready(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What was begun under a name while the last step computed, or is made now."""
        return self.ahead.take(key, make) if self.ahead else make()

    def _queries(self, asked: Sequence[Query]) -> dict[str, Any]:
        """The features of a batch's queries, which are images or texts."""
        images = [query.image for query in asked if query.image]
        if images:
            if len(images) < len(asked):
                raise DataError("training: a batch holds queries that are images and queries that are texts; `make_samples` keeps them apart")
            return self.read_images(images, "query")
        texts = [query.text for query in asked]
        queries = self.read(texts, "query")
        return {**queries, **self.states.of_queries(texts, queries)} if self.states else queries

    def _groups(self, rows: NDArray[np.int64]) -> tuple[list[dict[str, Any]], Tensor]:
        """The features of documents in groups, texts by falling length and then images, and the places of these documents among the rows."""
        documents = self._documents(rows)
        groups: list[dict[str, Any]] = []
        order: list[int] = []
        if texts := [place for place, document in enumerate(documents) if not document.image]:
            features = self.read([documents[place].full_text for place in texts], "document")
            if self.states:
                features = {**features, **self.states.of_documents(rows[texts].tolist(), features)}
            groups, within = length_groups(features)
            order += [texts[place] for place in within.tolist()]
        groups += [self.read_images(paths, "document") for paths in self._image_groups(documents)]
        return groups, torch.tensor([*order, *(place for place, document in enumerate(documents) if document.image)])

    def read_images(self, paths: Sequence[Path], task: str) -> dict[str, Any]:
        """What the model makes of images before its first layer, or what its tower makes of them where that does not learn."""
        features: dict[str, Any] = self._ready((task, *paths), lambda: self._read_images(paths, task))
        return features

    def _read_images(self, paths: Sequence[Path], task: str) -> dict[str, Any]:

        def pixels(wanted: Sequence[Path]) -> dict[str, Any]:
            features: dict[str, Any] = self.model.preprocess([read_image(path) for path in wanted], task=task)
            return features

        return self._through("image", paths, paths, pixels)

    def read(self, texts: list[str], task: str) -> dict[str, Any]:
        """What the model makes of texts before its first layer, with the prompt that it encodes them with, or what its tower makes of them."""
        return self._through("text", [(task, text) for text in texts], texts, lambda wanted: self._tokens(wanted, task))

    def _through(self, modality: Modality, names: Sequence[Hashable], inputs: Sequence[Any], read: Read) -> dict[str, Any]:
        """The features of some inputs: what `read` gives, or the vectors of their tower where that does not learn (`FrozenTowers.features`)."""
        if self.towers and self.towers.stands_in_for(modality):
            return self.towers.features(modality, names, inputs, read)
        return dict(read(inputs))

    def _tokens(self, texts: Sequence[str], task: str) -> dict[str, Any]:
        names = ("query",) if task == "query" else ("document", "passage", "corpus")
        prompt = next((self.model.prompts[name] for name in names if name in self.model.prompts), None)
        reader = modules_of(self.model, "query" if task == "query" else "document")[0]
        length = length_to_read(self.max_length, getattr(reader, "max_seq_length", None), getattr(reader, f"{task}_length", None))
        features: dict[str, Any] = self.model.preprocess(as_texts(self.model, texts), prompt=prompt or None, task=task, **length, **text_options(self.model))
        return features


def length_to_read(max_length: int | None, *own: float | None) -> dict[str, int]:
    """What `preprocess` is told: at most `max_length` tokens, and no more than the model reads by itself, which a larger length would overrule.

    Args:
        max_length: of training; nothing is told without one.
        own: the model's lengths, None or infinite where it has none.
    """
    lengths = [int(length) for length in (max_length, *own) if length and length != math.inf]
    return {"max_length": min(lengths)} if max_length else {}


def length_groups(features: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Tensor]:
    """Texts' features in groups of falling length, each cut to its longest text.

    Args:
        features: tensors [n, L, ...] padded on the right, with the attention mask [n, L] among them; what has no row for
            each text goes into every group as it is. Features without a mask [n, L] stay one group.

    Returns:
        The groups, and the numbers [n] of the texts in their order.
    """
    mask = features.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or not bool(mask[:, 0].all()):  # padded on the left: positions would shift
        count = len(next(features[name] for name in ("offsets", "input_ids", VECTOR) if name in features))
        return [dict(features)], torch.arange(count)
    lengths, order = mask.sum(dim=1).sort(descending=True, stable=True)
    starts = group_starts(lengths.tolist())
    groups = []
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        longest, texts = int(lengths[start]), order[start:end]
        groups.append({key: _cut(value, texts, mask, longest) for key, value in features.items()})
    return groups, order


def group_starts(lengths: Sequence[int]) -> list[int]:
    """Where groups begin in texts of falling length: a text that is a quarter shorter than its group's longest begins a new one."""
    starts = [0]
    for place, length in enumerate(lengths):
        if place - starts[-1] >= GROUP and length < 0.75 * lengths[starts[-1]]:
            starts.append(place)
    return starts


def _cut(value: Any, texts: Tensor, mask: Tensor, longest: int) -> Any:
    """A feature of some texts; one with a place for each token without those that are padding in all of them."""
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != len(mask):
        return value
    return value[texts, :longest] if value.shape[:2] == mask.shape else value[texts]
