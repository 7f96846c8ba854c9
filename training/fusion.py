"""Teaches a small fusion model on pairs of images and texts that belong together: to match them (ITM) and to compare them (ITC).

After ALBEF (Li et al. 2021, arXiv:2107.07651): every pair of a step gets a text and an image that do not belong to it, drawn from the step
by how similar the compared vectors are. Deviations: no momentum towers and no soft targets of theirs, no masked words; what the qrels say
belongs together counts as such everywhere in a step, in several captions of an image too. The epoch that orders held-out pairs best is
kept, with the share of its cosine in the score that does so (`retriever.training.fusion_held_out`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from retriever.collection import Collection
from retriever.errors import DataError
from retriever.files import write_atomic
from retriever.images.reading import read_image
from retriever.models.fusion import IMAGE, TEXT, FusionModel, padded
from retriever.models.tensor_cache import TensorCache
from retriever.settings.teacher import FusionTeachingSettings
from retriever.training.fusion_held_out import SHARES, reciprocal_ranks
from retriever.types import Qrels, Query

SAVE_STEPS = 100
"""Steps between two checkpoints: what a stop costs at most."""

KEPT_BYTES = 1 << 30
"""Of pixels, or of what a frozen tower makes of them; images beyond are read again."""

TOGETHER = 64
"""Images or texts that go through a frozen tower at a time."""


@dataclasses.dataclass(frozen=True)
class MatchedPairs:
    """What belongs together.

    Attributes:
        images: distinct.
        texts: distinct.
        pairs: int64 [n, 2], numbers of an image and a text.
        known: int64, sorted, image times the number of texts plus text, of all that belong together: none of them is a negative.
    """

    images: Sequence[Path]
    texts: Sequence[str]
    pairs: NDArray[np.int64]
    known: NDArray[np.int64]

    @classmethod
    def of(cls, named: Sequence[tuple[Path, str]]) -> MatchedPairs:
        """Of distinct pairs of an image's file and a text."""
        images, texts = (list(dict.fromkeys(column)) for column in zip(*named, strict=True))
        image_of, text_of = ({name: number for number, name in enumerate(names)} for names in (images, texts))
        pairs = np.array([(image_of[image], text_of[text]) for image, text in named], dtype=np.int64)
        return cls(images, texts, pairs, np.sort(pairs[:, 0] * len(texts) + pairs[:, 1]))

    def together(self, images: NDArray[np.int64], texts: NDArray[np.int64]) -> Tensor:
        """Whether each image belongs to each text, bool [n, m]."""
        keys = images[:, None] * len(self.texts) + texts[None, :]
        places = np.minimum(np.searchsorted(self.known, keys), len(self.known) - 1)
        return torch.from_numpy(self.known[places] == keys)


def matched_pairs(
    queries: Mapping[str, Query], lessons: Sequence[str], held: Sequence[str], qrels: Qrels, collection: Collection, unseen: Sequence[str] = ()
) -> tuple[MatchedPairs, MatchedPairs | None]:
    """The images and texts that the qrels of train queries bring together, in either direction: those that are taught, and those held out, if any.

    A caption that teaches as a query stands among the documents of its image too. So that nothing of a held-out or unseen query is taught from
    its other side, every pair of an image or a text of such a query's pairs is left out.

    Args:
        queries: train queries by id, those held out too.
        lessons: ids of those that teach, but for the unseen ones.
        held: ids of those that are held out.
        unseen: ids of those that the model is to score without having seen them.
        qrels: grades above 0 belong together.
        collection: where the documents are.

    Raises:
        DataError: fewer than two pairs are left.
    """
    taught, hidden, others = (sorted(set(_pairs_of({one: queries[one] for one in ids}, qrels, collection))) for ids in (lessons, held, unseen))
    seen_images, seen_texts = ({pair[side] for pair in (*hidden, *others)} for side in (0, 1))
    kept = [(image, text) for image, text in taught if image not in seen_images and text not in seen_texts]
    if len(kept) < 2:
        found = f"{len(taught)} pairs of an image and a text in the train qrels, {len(kept)} of them without an image or a text of held-out or unseen queries"
        raise DataError(f"teach: {found}; at least 2 are needed. Check the train qrels with: retriever check")
    return MatchedPairs.of(kept), MatchedPairs.of(hidden) if len(hidden) > 1 else None


def _pairs_of(queries: Mapping[str, Query], qrels: Qrels, collection: Collection) -> Iterator[tuple[Path, str]]:
    for query_id, query in queries.items():
        relevant = [doc_id for doc_id, grade in qrels.get(query_id, {}).items() if grade > 0]
        for document in collection.documents_by_row(collection.rows_of(relevant).tolist()):
            if query.image and not query.text and document.full_text:
                yield query.image, document.full_text
            elif query.text and not query.image and document.image:
                yield document.image, query.text


def compare_loss(cosines: Tensor, together: Tensor, scale: Tensor) -> Tensor:
    """Mean cross-entropy of both directions, all that belongs together sharing the target alike (ITC; ALBEF's equation 1, its targets without momentum).

    Args:
        cosines: [n, m] of images and texts.
        together: bool [n, m]; at least one in every row and column.
        scale: [], multiplies the cosines.
    """
    logits = cosines * scale
    rows, columns = (
        -(functional.log_softmax(one, dim=1) * belongs / belongs.sum(dim=1, keepdim=True)).sum(dim=1).mean()
        for one, belongs in ((logits, together), (logits.T, together.T))
    )
    return (rows + columns) / 2


def draw_negatives(logits: Tensor, together: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows, and for each a column that does not belong to it, drawn by the softmax over those that do not; rows without any are left out.

    Args:
        logits: [n, m], scaled cosines.
        together: bool [n, m].
        generator: draws.
    """
    rows = (~together.all(dim=1)).nonzero()[:, 0]
    weights = logits[rows].masked_fill(together[rows], -math.inf).softmax(dim=1) + 1e-6 * ~together[rows]  # a softmax may round all but one to 0
    return rows, torch.multinomial(weights, 1, generator=generator)[:, 0] if len(rows) else rows


class _Inputs:
    """Pixels and texts on their way into the towers; through a frozen tower everything goes once."""

    def __init__(self, model: FusionModel, pairs: MatchedPairs, settings: FusionTeachingSettings) -> None:
        self.model = model
        self.pairs = pairs
        self.frozen_image = settings.frozen_image
        self.frozen_text = settings.frozen_text
        self._images = TensorCache(KEPT_BYTES)
        self._texts = TensorCache(KEPT_BYTES)

    def read(self, images: NDArray[np.int64]) -> Mapping[int, Tensor]:
        """Image -> its pixels, or the frozen tower's tokens of it."""
        return self._images.get(images.tolist(), self._make_images, TOGETHER)

    def image_tokens(self, found: Mapping[int, Tensor], images: NDArray[np.int64]) -> Tensor:
        """[n, T, W] of distinct images that were read."""
        rows = torch.stack([found[image] for image in images.tolist()]).to(self.model.device)
        return self.model.of_images(rows if self.frozen_image else self.model.image_tower(rows))

    def text_tokens(self, texts: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """[n, L, W] of distinct texts, and a mask [n, L]."""
        if self.frozen_text:
            found = self._texts.get(texts.tolist(), self._make_texts, TOGETHER)
            states, mask = padded([found[text] for text in texts.tolist()], self.model.device)
        else:
            states, mask = self.model.text_tower([self.pairs.texts[text] for text in texts.tolist()], self.model.device)
        return self.model.of_texts(states), mask

    def _make_images(self, images: Sequence[int]) -> Sequence[Tensor]:
        pixels = self.model.image_tower.pixels([read_image(self.pairs.images[image]) for image in images])
        if not self.frozen_image:
            return list(pixels)
        with torch.no_grad():
            return list(self.model.image_tower(pixels.to(self.model.device)).cpu())

    def _make_texts(self, texts: Sequence[int]) -> Sequence[Tensor]:
        with torch.no_grad():
            states, mask = self.model.text_tower([self.pairs.texts[text] for text in texts], self.model.device)
        return [row[kept].cpu() for row, kept in zip(states, mask, strict=True)]


@dataclasses.dataclass(frozen=True)
class StepLoss:
    """The two losses of a step, each []."""

    match: Tensor
    compare: Tensor


def step_loss(inputs: _Inputs, found: Mapping[int, Tensor], batch: NDArray[np.int64], generator: torch.Generator) -> StepLoss:
    """The losses of a batch of pairs [n, 2]; matching sees them, and for each of their images and texts a drawn one that does not belong to it."""
    model = inputs.model
    images, texts = (np.unique(batch[:, side]) for side in (0, 1))
    image_tokens = inputs.image_tokens(found, images)
    text_tokens, mask = inputs.text_tokens(texts)
    together = inputs.pairs.together(images, texts)
    cosines = model.image_vectors(image_tokens) @ model.text_vectors(text_tokens, mask).T
    compare = compare_loss(cosines, together.to(model.device), model.scale)
    matched = torch.from_numpy(np.stack([np.searchsorted(images, batch[:, 0]), np.searchsorted(texts, batch[:, 1])]))
    logits = (cosines * model.scale).detach().float().cpu()
    for_images = torch.stack(draw_negatives(logits, together, generator))
    for_texts = torch.stack(draw_negatives(logits.T, together.T, generator)[::-1])
    rows, columns = torch.cat([matched, for_images, for_texts], dim=1).to(model.device)
    said = model.match(image_tokens[rows], text_tokens[columns], mask[columns])
    labels = (torch.arange(len(rows)) < matched.shape[1]).long().to(model.device)
    return StepLoss(functional.cross_entropy(said, labels), compare)


def teach_fusion(
    model: FusionModel,
    pairs: MatchedPairs,
    held: MatchedPairs | None,
    settings: FusionTeachingSettings,
    folder: Path,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, float]]:
    """Teaches the model and saves it in `folder`/model; a stop loses at most the last `SAVE_STEPS` steps.

    Args:
        model: of two towers; it is changed in place.
        pairs: what belongs together.
        held: pairs that choose the epoch and the share of the cosine; without them the last one is kept, and matching alone.
        settings: of the teacher's `train` table.
        folder: for the checkpoint and the model.
        seed: of the order of pairs, the negatives and dropout.
        progress: called after every step with its number and the number of all.

    Returns:
        For each epoch the means of its losses: epoch, match, compare; and of what is held out how well the model orders it, with the share that
        does so best: reciprocal_rank, similarity.

    Raises:
        DataError: a loss is no longer finite, or an image cannot be read.
    """
    frozen = [name for name, stays in ((IMAGE, settings.frozen_image), (TEXT, settings.frozen_text)) if stays]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    for name in frozen:
        getattr(model, name).requires_grad_(False)
    per_epoch = -(-len(pairs.pairs) // settings.batch_size)
    run = _Run(model, frozen, settings, settings.epochs * per_epoch, folder)
    inputs = _Inputs(model, pairs, settings)
    others = None if held is None else _Inputs(model, held, settings)
    batches = partial(_batch, pairs.pairs, per_epoch, seed)
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []), ThreadPoolExecutor(1) as ahead:
        first = run.resume()
        following = batches(first)
        reading = ahead.submit(inputs.read, np.unique(following[:, 0]))
        for step in range(first, run.steps):
            torch.manual_seed(_seed_of(seed, step))  # dropout, so that going on after a stop makes the same steps
            found, batch = reading.result(), following
            if step + 1 < run.steps:
                following = batches(step + 1)
                reading = ahead.submit(inputs.read, np.unique(following[:, 0]))
            run.step(step, step_loss(inputs, found, batch, torch.Generator().manual_seed(_seed_of(seed, step))))
            if others and (step + 1) % per_epoch == 0:
                run.keep_best(_held_out(others))
            run.save()
            if progress:
                progress(step + 1, run.steps)
    run.load_best()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.cpu().eval().save(folder / "model")
    for leftover in (run.checkpoint, run.best):
        leftover.unlink(missing_ok=True)
    return run.curve(per_epoch)


def _held_out(inputs: _Inputs) -> NDArray[np.float64]:
    """The mean reciprocal rank for each share; the model's parts are in the mode of training again afterwards."""
    model, pairs = inputs.model, inputs.pairs
    training = [module for module in model.modules() if module.training]
    model.eval()
    with torch.no_grad():
        numbers = np.arange(len(pairs.images)), np.arange(len(pairs.texts))
        images = torch.cat([inputs.image_tokens(inputs.read(part), part) for part in _parts(numbers[0])])
        texts, mask = inputs.text_tokens(numbers[1])
        found = reciprocal_ranks(model, images, texts, mask, pairs.together(*numbers))
    for module in training:
        module.training = True
    return found


def _parts(numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return np.array_split(numbers, -(-len(numbers) // TOGETHER))


class _Run:
    """The optimiser's side of a teaching, with its checkpoint."""

    def __init__(self, model: FusionModel, frozen: Sequence[str], settings: FusionTeachingSettings, steps: int, folder: Path) -> None:
        self.model = model
        self.frozen = frozen
        self.settings = settings
        self.steps = steps
        self.checkpoint = folder / "checkpoint.pt"
        self.best = folder / "best.safetensors"
        self.losses: list[list[float]] = []
        self.held: list[list[float]] = []
        towers = [parameter for name in (IMAGE, TEXT) if name not in frozen for parameter in getattr(model, name).parameters()]
        new = [parameter for name, parameter in model.named_parameters() if name.split(".")[0] not in (IMAGE, TEXT)]
        groups = [{"params": new, "lr": settings.learning_rate}, {"params": towers, "lr": settings.tower_learning_rate}]
        self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=settings.weight_decay)
        warm = max(1, round(settings.warmup * steps))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / max(1, steps - warm))))
        )
        model.train()
        for name in frozen:
            getattr(model, name).eval()

    def resume(self) -> int:
        """The steps that a checkpoint has behind it; 0 without one."""
        if not self.checkpoint.exists():
            return 0
        state = torch.load(self.checkpoint, map_location=self.model.device, weights_only=True)
        self.model.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.losses, self.held = state["losses"], state["held"]
        return len(self.losses)

    def step(self, number: int, loss: StepLoss) -> None:
        """One step of the optimiser."""
        values = [loss.match.item(), loss.compare.item()]
        if not all(map(math.isfinite, values)):
            raise DataError(f"teach: the losses are {values} at step {number}. Lower learning_rate, which is {self.settings.learning_rate}")
        self.optimizer.zero_grad()
        (loss.match + loss.compare).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        self.losses.append(values)

    def save(self) -> None:
        """Writes the checkpoint, where it is time to."""
        if len(self.losses) % SAVE_STEPS == 0 and len(self.losses) < self.steps:
            write_atomic(self.checkpoint, lambda path: torch.save(self._state(), path))

    def keep_best(self, found: NDArray[np.float64]) -> None:
        """Notes an epoch's mean reciprocal ranks, and keeps the weights where they are the best so far."""
        share = int(found.argmax())
        if not self.held or found[share] > max(rank for rank, _ in self.held):
            write_atomic(self.best, lambda path: save_file({name: value.contiguous() for name, value in self._weights().items()}, path))
        self.held.append([float(found[share]), SHARES[share]])

    def load_best(self) -> None:
        """Goes back to the best epoch, and to the share of the cosine that was best there."""
        if self.held:
            self.model.load_state_dict(load_file(self.best, device=str(self.model.device)), strict=False)
            self.model.similarity = max(self.held, key=lambda one: one[0])[1]

    def curve(self, per_epoch: int) -> list[dict[str, float]]:
        """The means of the losses of each epoch, and what is held out."""
        means = [np.mean(self.losses[start : start + per_epoch], axis=0) for start in range(0, len(self.losses), per_epoch)]
        names = ("match", "compare", "reciprocal_rank", "similarity")
        values = [[*loss.tolist(), *held] for loss, held in zip(means, self.held or [[]] * len(means), strict=True)]
        return [{"epoch": epoch + 1, **{name: round(value, 4) for name, value in zip(names, row, strict=False)}} for epoch, row in enumerate(values)]

    def _weights(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.model.state_dict().items() if name.split(".")[0] not in self.frozen}

    def _state(self) -> dict[str, Any]:
        states = {"model": self._weights(), "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
        return {**states, "losses": self.losses, "held": self.held}


def _batch(pairs: NDArray[np.int64], per_epoch: int, seed: int, step: int) -> NDArray[np.int64]:
    """The pairs of a step; each epoch has an order of its own, and its steps are of one size, or one pair apart."""
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(len(pairs))
    return pairs[np.array_split(order, per_epoch)[place]]


def _seed_of(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
