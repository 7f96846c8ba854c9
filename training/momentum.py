"""Negatives beyond the batch: a queue of past documents, as a slowly following copy of the student encoded them (MoCo, He et al. 2020, arXiv:1911.05722).

CPRD (Chen et al. 2024, arXiv:2407.07479) can mine its hard negatives from such a queue, and asks the cross-encoder about them at every
step. Here no teacher is loaded in training: of the queue's documents those that the store has a score of join a query's list, and the
others are negatives that nobody has ordered. Other deviations: the copy evaluates, without dropout and with the student's statistics of
norms; a document stands in the queue once, so that a small collection does not fill it with one document's past.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.func import functional_call

from retriever.errors import ConfigError
from retriever.settings.training import QueueSettings, TrainingSettings
from retriever.training.loss_table import LOSS_TABLE
from retriever.training.samples import TrainingSamples, direction

FILE = "queue.safetensors"
"""The copy's weights and the queues in the folder of a checkpoint."""

READING = ("target", "batch", "negatives")
"""What losses that take documents of a queue compare."""

Read = Callable[[Any], tuple[Tensor, ...]]
"""The output of a model as tensors with a row for each document."""


@dataclasses.dataclass(frozen=True)
class Past:
    """Q documents, those encoded last at the end.

    Attributes:
        rows: int64 [Q], of the collection, distinct.
        vectors: [Q, D], before they get the length 1.
    """

    rows: Tensor
    vectors: Tensor

    def then(self, rows: Tensor, vectors: Tensor, size: int) -> Past:
        """The last `size` after some more documents came, [n] and [n, D]; one that was there already gives up its old place."""
        stays = ~torch.isin(self.rows, rows)
        return Past(torch.cat([self.rows[stays], rows])[-size:], torch.cat([self.vectors[stays], vectors])[-size:])

    def without(self, rows: Tensor) -> Past:
        """The same without documents of these rows."""
        stays = ~torch.isin(self.rows, rows)
        return Past(self.rows[stays], self.vectors[stays])


@dataclasses.dataclass(frozen=True)
class Mined:
    """What Q documents of a queue are to a batch of B queries.

    Attributes:
        vectors: [Q, D].
        teacher: float32 [B, Q], the teacher's scores; 0 where it has none.
        scored: bool [B, Q], true where it has one and the document is no positive.
        negatives: bool [B, Q], those that are surely not relevant.
    """

    vectors: Tensor
    teacher: Tensor
    scored: Tensor
    negatives: Tensor

    @classmethod
    def of(cls, past: Past, samples: TrainingSamples, numbers: Sequence[int]) -> Mined:
        """Looks up what is known of the pairs of some samples' queries and the documents of a queue."""
        rows, device = past.rows.numpy(), past.vectors.device
        known = [scores_of(rows, *samples.scored[number]) if samples.scored else scores_of(rows, rows[:0], rows[:0]) for number in numbers]
        negatives = np.stack([~np.isin(rows, samples.not_negative[number]) for number in numbers])
        teacher, scored = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*known, strict=True))
        return cls(past.vectors, teacher, scored, torch.from_numpy(negatives).to(device))


def scores_of(rows: NDArray[np.int64], known: NDArray[np.int64], scores: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """[Q] scores of documents, 0 where there is none, and whether there is one; `known` are the sorted rows of those that have one."""
    if not len(known):
        return np.zeros(len(rows), dtype=np.float32), np.zeros(len(rows), dtype=np.bool_)
    places = np.minimum(np.searchsorted(known, rows), len(known) - 1)
    found = known[places] == rows
    return np.where(found, scores[places], 0).astype(np.float32), found


def hardest(scores: Tensor, among: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Places [B, H] of the highest scores of each row among those that are allowed, best first, and whether there are so many, bool [B, H].

    Args:
        scores: [B, Q].
        among: bool [B, Q].
        count: H, unless there are fewer columns.
    """
    best = scores.detach().float().masked_fill(~among, -torch.inf).topk(min(count, scores.shape[1]), dim=1)
    return best.indices, best.values > -torch.inf


class MomentumQueue:
    """A copy of the weights that learn, which follows them, and the last documents that it encoded, apart by what queries may find.

    Weights that do not learn, and statistics of norms, are the student's own.

    Attributes:
        settings: of the experiment file.
        weights: of the copy, by their names in the model.
    """

    def __init__(self, model: Any, settings: QueueSettings) -> None:
        self.settings = settings
        self.weights = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
        self._past: dict[str, Past] = {}

    @torch.no_grad()
    def follow(self, model: Any) -> None:
        """The copy's weights become momentum x their own + (1 - momentum) x the student's."""
        for name, weight in model.named_parameters():
            if name in self.weights:
                self.weights[name] = self.weights[name].to(weight.device).lerp_(weight, 1 - self.settings.momentum)

    @torch.no_grad()
    def encode(self, model: Any, groups: Sequence[Mapping[str, Any]], read: Read) -> Tensor:
        """[U, D], what the copy makes of a batch's documents."""
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            made = [read(functional_call(model, self.weights, (dict(group),), {"task": "document"}))[0] for group in groups]
        finally:
            for module, mode in modes.items():
                module.training = mode
        return torch.cat(made)

    def add(self, among: str, rows: Tensor, vectors: Tensor) -> None:
        """Puts documents [n] with vectors [n, D] at the end of the queue of a direction."""
        past = self._past.get(among, Past(rows.new_zeros(0), vectors.new_zeros(0, vectors.shape[1])))
        self._past[among] = past.then(rows, vectors, self.settings.size)

    def mined(self, samples: TrainingSamples, labels: Mapping[str, Tensor], width: int, device: torch.device) -> Mined:
        """What the queue holds for the queries of a batch, without the batch's own documents.

        Args:
            samples: the batch's among them.
            labels: as a `Batcher` gives them.
            width: D, of the student's vectors.
            device: where they are compared.
        """
        numbers = labels["samples"].tolist()
        past = self._past.get(direction(samples.queries[numbers[0]]), Past(torch.zeros(0, dtype=torch.int64), torch.zeros(0, width)))
        past = past.without(labels["rows"].cpu())
        return Mined.of(Past(past.rows, past.vectors.to(device)), samples, numbers)

    def save(self, folder: Path) -> None:
        """Writes all that is needed to go on from a checkpoint."""
        kept = {f"weights {name}": weight for name, weight in self.weights.items()}
        kept |= {f"rows {among}": past.rows for among, past in self._past.items()} | {f"vectors {among}": past.vectors for among, past in self._past.items()}
        save_file({name: tensor.contiguous().cpu() for name, tensor in kept.items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Goes on where `save` left off."""
        kept = load_file(folder / FILE)
        self.weights = {name: kept[f"weights {name}"] for name in self.weights}
        names = [name.removeprefix("rows ") for name in kept if name.startswith("rows ")]
        self._past = {name: Past(kept[f"rows {name}"], kept[f"vectors {name}"]) for name in names}


def check_queue(model: Any, settings: TrainingSettings) -> None:
    """Sees to it that a student has what a queue keeps, and that a loss reads it.

    Raises:
        ConfigError: it has not, or none does.
    """
    if not settings.queue:
        return
    if not isinstance(model, SentenceTransformer):
        raise ConfigError("training.queue: keeps one vector a document, which only dense, static and image_text students give. Leave training.queue out")
    used = [name for name, weight in settings.losses.items() if weight]
    if not any(LOSS_TABLE[name].needs in READING for name in used):
        raise ConfigError(
            f"training.queue: holds further documents for lists and for contrastive, and {', '.join(used)} reads neither. Leave training.queue out"
        )


def with_queue(trainer: type[Any], queue: MomentumQueue) -> type[Any]:
    """A trainer whose checkpoints hold the queue too."""

    def save(self: Any, output_dir: str | None = None, state_dict: object = None) -> None:
        super(saving, self)._save(output_dir, state_dict)
        queue.save(Path(output_dir or self.args.output_dir))

    saving: type[Any] = type(trainer.__name__, (trainer,), {"_save": save})
    return saving
