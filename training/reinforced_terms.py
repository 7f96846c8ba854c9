"""The losses of reinforced training over a whole batch, whatever the number of processes that made it.

Every image is compared with every caption of a batch. So each process gets the vectors that the others made of their parts, as open_clip
does for CLIP (Radford et al. 2021, arXiv:2103.00020), and computes the losses of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from retriever.reinforced.shards import ReinforcedDataset
from retriever.training import parallel
from retriever.training.adapter import DistillationLoss
from retriever.training.families import Encoded
from retriever.training.reinforced_batches import LABELS
from retriever.training.reinforced_loss import both_ways, paired_contrastive, reinforced


class ReinforcedLoss(DistillationLoss):
    """The losses `reinforced` and `contrastive` on a batch of augmented images and captions, each summed over real and synthetic captions."""

    def terms(self, queries: Encoded, documents: Encoded, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One scalar for each loss of the file, the same in every process: of the batch of which the model's captions and images here are a part."""
        own = slice(None if labels.get("weight", 1) else 0)  # a process for which nothing is left encodes a sample that does not count
        texts, images, *known = parallel.gather_rows([rows[own] for rows in (queries[0], documents[0], *(labels[name] for name in LABELS))])
        batch = dict(zip(LABELS, known, strict=True))
        sizes = self.settings.matryoshka or (self.size or texts.shape[-1],)
        values = [self._values(self.scores((texts[:, :size],), (images[:, :size],)).T, batch) for size in sizes]
        return {name: self.settings.losses[name] * torch.stack([one[name] for one in values]).mean() for name in self.losses}

    def _values(self, scores: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Loss -> its value for the student's scores [B, B + M] of images and captions."""
        dataset: ReinforcedDataset = self.samples.dataset  # type: ignore[attr-defined]
        sums = {name: scores.new_zeros(()) for name in self.losses}
        same = known_to_fit(batch) if "contrastive" in sums else None
        for written in (0, 1):
            texts = (batch["written"] == written).nonzero()[:, 0]
            if not len(texts):
                continue
            images = torch.searchsorted(batch["samples"], batch["of"][texts])
            of_images, of_texts = (torch.split(part, list(dataset.dimensions), dim=1) for part in (batch["images"][images], batch["texts"][texts]))
            own = scores[images][:, texts]  # [B, B], or [M, M] of the images that have a synthetic caption
            if "reinforced" in sums:
                student, teacher = both_ways(own, of_images, of_texts, dataset.logit_scales)
                sums["reinforced"] = sums["reinforced"] + reinforced(student, teacher, torch.ones_like(student, dtype=torch.bool))
            if same is not None:
                sums["contrastive"] = sums["contrastive"] + paired_contrastive(own, same[images][:, texts])
        return sums


def known_to_fit(batch: Mapping[str, Tensor]) -> Tensor:
    """Whether a text has the words of one of an image's captions, bool [B, B + M]; `batch` is as a `ReinforcedBatcher` labels it."""
    samples, words, known = batch["samples"], batch["words"], batch["known"]
    distinct, places = torch.unique(words, return_inverse=True)
    columns = torch.searchsorted(distinct, known[:, 1].contiguous()).clamp(max=len(distinct) - 1)
    there = distinct[columns] == known[:, 1]  # of an image's captions, those that stand in the batch
    fits = torch.zeros(len(samples), len(distinct), dtype=torch.bool, device=samples.device)
    fits[torch.searchsorted(samples, known[there, 0]), columns[there]] = True
    return fits[:, places]
