"""What a cross-encoder learns from: the pairs of a batch as features, and the losses on its logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retriever.collection import Collection
from retriever.scores.units import check_unit
from retriever.settings.training import TrainingSettings
from retriever.training.batches import length_groups, length_to_read
from retriever.training.families import check_losses
from retriever.training.loss_table import LOSS_TABLE
from retriever.training.samples import TrainingSamples
from retriever.training.sureness import with_scales


@dataclasses.dataclass(frozen=True)
class PairBatcher:
    """The data collator: sample numbers in, features of each list's pairs out, in groups of like length.

    The label is a mapping: "samples" int64 [B], and "places" int64 [n], where each pair stands in the batch's lists, row by row.
    """

    model: Any
    samples: TrainingSamples
    collection: Collection
    max_length: int | None = None
    valid_label_columns: tuple[str, ...] = ("label",)

    def __call__(self, batch: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """The features of one batch."""
        numbers = np.array([sample["label"] for sample in batch])
        places = np.flatnonzero(self.samples.mask[numbers])
        documents = self.collection.documents_by_row(self.samples.documents[numbers].reshape(-1)[places].tolist())
        size = self.samples.documents.shape[1]
        texts = [(self.samples.queries[numbers[place // size]].text, document.full_text) for place, document in zip(places.tolist(), documents, strict=True)]
        length = length_to_read(self.max_length, getattr(self.model, "max_seq_length", None))
        groups, order = length_groups(self.model.preprocess(texts, **length))
        features: dict[str, Any] = {f"pairs_{number}": group for number, group in enumerate(groups)}
        return features | {"label": {"samples": torch.from_numpy(numbers), "places": torch.from_numpy(places)[order]}}


class PairLoss(nn.Module):
    """The weighted losses of an experiment on the logits of a cross-encoder; each query is compared within its own list."""

    def __init__(self, model: Any, samples: TrainingSamples, settings: TrainingSettings) -> None:
        """Raises a ConfigError for a loss that compares what a cross-encoder has not, or that cannot learn from the samples' unit."""
        super().__init__()
        self.losses = {name: LOSS_TABLE[name] for name, weight in settings.losses.items() if weight}
        check_unit(samples.unit, self.losses, settings.teacher_temperature, "training: the target")
        check_losses(model, self.losses)
        self.model = model
        self.samples = samples
        self.settings = with_scales(settings, samples)

    def forward(self, features: Sequence[Mapping[str, Any]], labels: Mapping[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """One scalar for each loss of the file.

        Args:
            features: of groups of pairs.
            labels: sample numbers and the pairs' places, as a `PairBatcher` gives them.
        """
        logits = torch.cat([self.model(dict(group))["scores"].reshape(-1).float() for group in features])  # [n]
        numbers = labels["samples"].cpu().numpy()
        teacher = torch.from_numpy(self.samples.teacher[numbers]).to(logits.device)  # [B, K]
        mask = torch.from_numpy(self.samples.mask[numbers]).to(logits.device)  # [B, K]
        scores = torch.zeros(teacher.numel(), device=logits.device).scatter(0, labels["places"], logits).reshape(teacher.shape)
        negatives = mask & ~torch.from_numpy(self._may_be_relevant(numbers)).to(logits.device)
        negatives[:, 0] = True  # the positive stands in its own sum
        terms = {}
        for name, loss in self.losses.items():
            terms[name] = self.settings.losses[name] * loss.function(
                scores, teacher, negatives if loss.needs == "negatives" else mask, **loss.arguments(self.settings)
            )
        return terms

    def get_config_dict(self) -> Mapping[str, Any]:
        """What a model card says of the loss."""
        return {"losses": dict(self.settings.losses)}

    def _may_be_relevant(self, numbers: Any) -> Any:
        """Which documents are, or may be, relevant to their query, bool [B, K]."""
        return np.stack([np.isin(self.samples.documents[number], self.samples.not_negative[number]) for number in numbers])
