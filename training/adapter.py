"""Gives our losses to sentence-transformers' trainers: features of a batch in, named loss terms out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.losses.gradcache import RandContext
from torch import Tensor, nn
from torch.nn.functional import normalize

from retriever.errors import ConfigError
from retriever.scores.units import check_unit
from retriever.settings.training import TrainingSettings
from retriever.training.documents import stored_documents
from retriever.training.families import Encoded, check_losses, family_of, join
from retriever.training.in_batch import four_ways, positive_first
from retriever.training.lists import Lists
from retriever.training.loss_table import LOSS_TABLE, Loss
from retriever.training.momentum import Mined, MomentumQueue
from retriever.training.samples import TrainingSamples, direction
from retriever.training.scale import LearnedScale
from retriever.training.sparsity import SparsityController
from retriever.training.sparsity_losses import flops
from retriever.training.sureness import with_scales

Features = Mapping[str, Any]
Compared = tuple[Tensor, Tensor, Tensor]
"""What a loss is called with: the student's side, the teacher's side, the mask."""


@dataclasses.dataclass(frozen=True)
class Targets:
    """What is known of a batch of B samples whose lists hold U distinct documents.

    Attributes:
        places: int64 [B, K], where each list's documents stand among the U; column 0 is the positive.
        teacher: float32 [B, K].
        mask: bool [B, K], false where a list has fewer than K documents.
        negatives: bool [B, U], the documents that are surely not relevant to each query.
    """

    places: Tensor
    teacher: Tensor
    mask: Tensor
    negatives: Tensor

    @classmethod
    def of(cls, samples: TrainingSamples, labels: Mapping[str, Tensor], device: torch.device) -> Targets:
        """Looks up sample numbers [B] and document rows [U], `labels` as a `Batcher` gives them."""
        numbers, rows = labels["samples"].cpu().numpy(), labels["rows"].cpu()
        documents, mask = torch.from_numpy(samples.documents[numbers]), torch.from_numpy(samples.mask[numbers])
        ordered, order = rows.sort()
        places = order[torch.searchsorted(ordered, documents.contiguous()).clamp(max=len(rows) - 1)]
        negatives = torch.stack([~torch.isin(rows, torch.from_numpy(samples.not_negative[number])) for number in numbers])
        teacher = torch.from_numpy(samples.teacher[numbers])
        return cls(places.to(device), teacher.to(device), mask.to(device), negatives.to(device))

    @property
    def strangers(self) -> Tensor:
        """The sure negatives, bool [B, U], that are not among a query's own K documents."""
        own = torch.zeros_like(self.negatives).scatter(1, self.places, True)  # padding stands for document 0 of the list, which is its own too
        return self.negatives & ~own


@dataclasses.dataclass(frozen=True)
class EncodedPair:
    """A batch at one size of its vectors: what the model made of B queries and U documents, their scores [B, U], and lists, which all losses share."""

    queries: Encoded
    documents: Encoded
    scores: Tensor
    lists: Lists


class DistillationLoss(nn.Module):
    """The weighted losses of an experiment on a batch of samples, the same for every kind of student.

    The model encodes every distinct document of the batch once; all losses read the scores [B, U] of queries and documents.
    Teacher scores, masks and rows are looked up in the samples, so that they keep their precision on the way through the
    data loader.
    """

    def __init__(
        self,
        model: Any,
        samples: TrainingSamples,
        settings: TrainingSettings,
        sparsity: SparsityController | None = None,
        scale: LearnedScale | None = None,
        queue: MomentumQueue | None = None,
    ) -> None:
        """Raises a ConfigError where a loss cannot learn from the unit of the samples' scores, or lacks the teacher's vectors, or a scale has no use."""
        super().__init__()
        self.losses = {name: LOSS_TABLE[name] for name, weight in settings.losses.items() if weight}
        check_unit(samples.unit, self.losses, settings.teacher_temperature, "training: the target")
        check_losses(model, self.losses)
        check_vectors(model, samples, self.losses)
        self.model = model
        self.samples = samples
        self.settings = with_scales(settings, samples)
        self.sparsity = sparsity
        self.scale = scale
        self.queue = queue
        self.family = family_of(model)
        if scale and not self.family.bounded:
            raise ConfigError("training.learn_scale: the student compares by inner products, whose scale its vectors learn. Leave training.learn_scale out")
        self.compares_scores = any(loss.needs != "vectors" for loss in self.losses.values())
        self.size = getattr(model, "truncate_dim", None)  # sentence-transformers cuts vectors when it encodes, not in the forward pass

    def forward(self, features: Sequence[Features], labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One scalar for each loss of the file; the trainer adds them up and logs them apart.

        Args:
            features: of the queries, then of each group of documents.
            labels: sample numbers and document rows, as a `Batcher` gives them.
        """
        found = self._with_cached_gradients(features, labels) if self.settings.gradient_cache else self._at_once(features, labels)
        if self.queue:  # after the losses, which look at what came before this batch
            self.queue.follow(self.model)
            among = direction(self.samples.queries[int(labels["samples"][0])])
            self.queue.add(among, labels["rows"].cpu(), self.queue.encode(self.model, features[1:], self.family.read))
        return found

    def _at_once(self, features: Sequence[Features], labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        encoded = [self._encode(one, place) for place, one in enumerate(features)]
        return self.terms(encoded[0], self._documents(encoded[1:], labels), labels)

    def terms(self, queries: Encoded, documents: Encoded, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same from what the model made of B queries and U documents; of scores the mean over the sizes of a Matryoshka student."""
        targets = Targets.of(self.samples, labels, queries[0].device)
        sizes = self.settings.matryoshka or (self.size or queries[0].shape[-1],)
        mined = self.queue.mined(self.samples, labels, documents[0].shape[-1], queries[0].device) if self.queue else None
        cuts = [self._pair(_cut(queries, size), _cut(documents, size), targets, mined) for size in sizes] if self.compares_scores else []
        terms = {}
        for name, loss in self.losses.items():
            if loss.needs == "vectors":
                compared = [self._vectors(queries[0], documents[0], labels)]
            else:
                compared = [self._compared(loss, cut, targets, labels) for cut in cuts]
            values = [loss.function(*sides, **loss.arguments(self.settings)) for sides in compared]
            terms[name] = self.settings.losses[name] * torch.stack(values).mean()
        return terms | cost_of(queries[0], documents[0], self.sparsity) if self.sparsity else terms

    def scores(self, queries: Encoded, documents: Encoded) -> Tensor:
        """[B, U], the student's scores as logits."""
        similarity = self.family.similarity(queries, documents)
        if not self.family.bounded:
            return similarity
        return similarity * (self.scale() if self.scale else self.settings.student_scale)

    def get_config_dict(self) -> Mapping[str, Any]:
        """What a model card says of the loss."""
        return {"losses": dict(self.settings.losses), "student_scale": self.settings.student_scale}

    def _encode(self, features: Features, place: int) -> Encoded:
        return self.family.read(self.model(dict(features), task="document" if place else "query"))

    def _documents(self, groups: Sequence[Encoded], labels: Mapping[str, Tensor]) -> Encoded:
        """What the model made of the batch's documents: of their groups, or before training where they are frozen."""
        stored = self.samples.encodings
        return join(groups) if stored is None else stored_documents(stored, labels["rows"].cpu().numpy(), labels["rows"].device)

    def _pair(self, queries: Encoded, documents: Encoded, targets: Targets, mined: Mined | None) -> EncodedPair:
        scores = self.scores(queries, documents)
        lists = Lists(scores.gather(1, targets.places), targets.teacher, targets.mask, scores, targets.negatives, targets.strangers)
        if mined and self.settings.queue:
            further = self.scores(queries, (mined.vectors[:, : queries[0].shape[-1]],))
            lists = lists.with_mined(further, mined, self.settings.queue.hardest)
        return EncodedPair(queries, documents, scores, lists)

    def _vectors(self, queries: Tensor, documents: Tensor, labels: Mapping[str, Tensor]) -> Compared:
        """What a loss of vectors is called with, from the student's [B, D] and [U, D]; of frozen documents there is nothing to learn."""
        learning = 1 if self.samples.encodings is not None else 2
        vectors = torch.cat([queries, documents][:learning])  # [B + U, D]
        teacher = torch.cat(self._teacher_vectors(labels, vectors.device)[:learning])
        return vectors, teacher, torch.ones(len(vectors), dtype=torch.bool, device=vectors.device)

    def _compared(self, loss: Loss, pair: EncodedPair, targets: Targets, labels: Mapping[str, Tensor]) -> Compared:
        """What a loss of scores is called with, by what it needs."""
        scores, lists = pair.scores, pair.lists
        if loss.needs == "teacher_batch":
            of_queries, of_documents = self._teacher_vectors(labels, scores.device)
            return scores, normalize(of_queries, dim=1) @ normalize(of_documents, dim=1).T, torch.ones_like(scores, dtype=torch.bool)
        if loss.needs == "negatives":
            every, allowed = positive_first(lists.every, lists.negatives, targets.places[:, 0])
            return every, every, allowed
        if loss.needs == "four_ways":
            positives = tuple(part[targets.places[:, 0]] for part in pair.documents)
            among = self.scores(pair.queries, pair.queries), self.scores(positives, positives)
            every, allowed = four_ways(scores, *among, targets.negatives, targets.places[:, 0])
            return every, every, allowed
        if loss.needs == "target":
            return lists.own, lists.teacher, lists.mask
        return torch.cat([lists.own, lists.every], dim=1), lists.teacher, torch.cat([lists.mask, lists.strangers], dim=1)

    def _teacher_vectors(self, labels: Mapping[str, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        """[B, E] and [U, E], the teacher's vectors of the batch's queries and documents."""
        vectors = self.samples.vectors
        if vectors is None:  # `check_vectors` saw to it
            raise ConfigError("training: the samples carry no vectors of a teacher")
        asked = [vectors.queries[self.samples.queries[number].query_id] for number in labels["samples"].tolist()]
        documents = vectors.documents.rows(labels["rows"].cpu().numpy())
        return torch.tensor(np.stack(asked), device=device), torch.tensor(documents, device=device)

    def _with_cached_gradients(self, features: Sequence[Features], labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same terms and gradients with the activations of one group of texts in memory at a time (arXiv:2101.06983).

        Every group is encoded twice: without gradients for the losses, whose gradients end at the encodings; and again, with
        the same dropout, when the trainer asks for the gradients of the weights.
        """
        states, leaves = [], []
        for place, one in enumerate(features):
            states.append(RandContext(*(value for value in one.values() if isinstance(value, Tensor))))
            with torch.no_grad():
                encoded = self._encode(one, place)
            leaves.append(tuple(part.detach().requires_grad_(part.is_floating_point()) for part in encoded))
        with torch.enable_grad():
            terms = self.terms(leaves[0], self._documents(leaves[1:], labels), labels)
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        learned = [] if self.scale is None else [(weight, weight.grad) for weight in self.scale.parameters() if weight.grad is not None]
        for weight, _ in learned:
            weight.grad = None

        def encode_again(scale: Tensor) -> None:
            for weight, slope in learned:
                weight.grad = slope * scale
            for place, (one, state, leaf) in enumerate(zip(features, states, leaves, strict=True)):
                with state, torch.enable_grad():
                    encoded = self._encode(one, place)
                    parts = [(part, cached.grad) for part, cached in zip(encoded, leaf, strict=True) if cached.grad is not None and part.requires_grad]
                    torch.autograd.backward([part for part, _ in parts], [slope * scale for _, slope in parts])

        found = {name: term.detach() for name, term in terms.items()}
        first = next(iter(found.values())).requires_grad_()
        first.register_hook(encode_again)  # type: ignore[no-untyped-call]  # the trainer's factors, such as that of gradient accumulation, arrive here
        return found


def cost_of(queries: Tensor, documents: Tensor, sparsity: SparsityController) -> dict[str, Tensor]:
    """What sparse vectors [B, V] and [U, V] cost, with the weights that bring them to the wanted number of active dimensions; not what frozen ones do."""
    weights = sparsity.weights()
    sparsity.update(*(float((vectors > 0).sum(dim=1).float().mean()) for vectors in (queries, documents)))
    terms = {"flops_queries": weights[0] * flops(queries)}
    return terms if sparsity.documents is None else terms | {"flops_documents": weights[1] * flops(documents)}


def check_vectors(model: Any, samples: TrainingSamples, losses: Mapping[str, Loss]) -> None:
    """Sees to it that losses which compare vectors have vectors of a teacher, of a size that they can compare.

    Raises:
        ConfigError: they have not.
    """
    used = [name for name, loss in losses.items() if loss.needs_teacher_vectors]
    if not used:
        return
    if samples.vectors is None:
        raise ConfigError(f'training.losses: {used[0]} compares with a teacher\'s vectors, and there are none. Add a [[teacher]] of kind = "embedding"')
    same = [name for name in used if name in ("vector_mse", "vector_distance", "vector_cosine")]
    if same and model.get_embedding_dimension() != samples.vectors.documents.dimensions:
        raise ConfigError(
            f"training.losses: {same[0]} needs vectors of one size; the student's have {model.get_embedding_dimension()} dimensions and the teacher's "
            f"{samples.vectors.documents.dimensions}. Set student.projection = {samples.vectors.documents.dimensions}, or use gram"
        )


def _cut(encoded: Encoded, size: int) -> Encoded:
    """The first `size` dimensions."""
    return (encoded[0][..., :size], *encoded[1:])
