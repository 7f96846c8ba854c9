"""Gives our losses to sentence-transformers' trainers: embeddings in, named loss terms out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.merged_forward import embed_columns
from torch import Tensor, nn
from torch.nn.functional import normalize

from retriever.config import TrainingSettings
from retriever.training import losses
from retriever.training.samples import TrainingSamples
from retriever.units import check_unit


class DistillationLoss(nn.Module):
    """The weighted losses of an experiment on a batch of samples.

    A label is a sample's number: teacher scores, masks and document rows are looked up in the samples, so that they
    keep their precision and their types on the way through the data loader.
    """

    def __init__(self, model: SentenceTransformer, samples: TrainingSamples, settings: TrainingSettings) -> None:
        """Raises a ConfigError where a loss cannot learn from the unit of the samples' scores."""
        super().__init__()
        used = [name for name, weight in settings.losses.items() if weight]
        check_unit(samples.unit, used, settings.teacher_temperature, "training: the target")
        self.model = model
        self.samples = samples
        self.settings = settings
        self.cosine = model.similarity_fn_name == "cosine"

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> dict[str, Tensor]:
        """One scalar for each loss of the file; the trainer adds them up and logs them apart."""
        queries, *documents = sentence_features
        # Queries are short: embedding them apart from the documents saves padding them to a document's length.
        return self.compute_loss_from_embeddings([*embed_columns(self.model, [queries]), *embed_columns(self.model, documents)], labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> dict[str, Tensor]:
        """The same from embeddings: queries [B, D], then K columns of documents [B, D]; labels are sample numbers [B]."""
        numbers = labels.cpu().numpy()
        queries, documents = self._ready(embeddings[0]), self._ready(torch.stack(embeddings[1:], dim=1))  # [B, D], [B, K, D]
        teacher = torch.from_numpy(self.samples.teacher[numbers]).to(queries.device)  # [B, K]
        mask = torch.from_numpy(self.samples.mask[numbers]).to(queries.device)  # [B, K]
        own = torch.einsum("bd,bkd->bk", queries, documents)  # [B, K]
        terms: dict[str, Tensor] = {}
        for name, weight in self.settings.losses.items():
            if weight == 0:
                continue
            if name == "contrastive":
                scores, negatives = in_batch(queries, documents, self.samples, labels)
                terms[name] = weight * losses.contrastive(scores, scores, negatives)
            elif name == "kl_divergence":
                terms[name] = weight * losses.kl_divergence(own, teacher, mask, self.settings.teacher_temperature)
            else:
                terms[name] = weight * getattr(losses, name)(own, self.settings.teacher_scale * teacher, mask)
        return terms

    def get_config_dict(self) -> Mapping[str, Any]:
        """What a model card says of the loss."""
        return {"losses": dict(self.settings.losses), "student_scale": self.settings.student_scale}

    def _ready(self, embeddings: Tensor) -> Tensor:
        """Embeddings whose inner product is the student's score as a logit."""
        embeddings = embeddings.float()
        if self.cosine:
            embeddings = normalize(embeddings, dim=-1) * self.settings.student_scale**0.5
        return embeddings


def in_batch(queries: Tensor, documents: Tensor, samples: TrainingSamples, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Student scores of each query against its positive and all documents of the batch that are negatives to it.

    Args:
        queries: [B, D].
        documents: [B, K, D]; column 0 holds the positives.
        samples: where rows and false negatives are known.
        labels: sample numbers, [B].

    Returns:
        Scores [B, B * K] with the own positive first, and the mask of what may stand in the sum.
    """
    batch, size, _ = documents.shape
    numbers = labels.cpu().numpy()
    real = torch.from_numpy(samples.mask[numbers].reshape(-1))  # [B * K]
    rows = torch.from_numpy(samples.documents[numbers].reshape(-1)).masked_fill(~real, -1)  # padding must not hide a document of its row
    allowed = torch.stack([real & ~torch.isin(rows, torch.from_numpy(samples.not_negative[number])) for number in numbers])  # [B, B * K]
    scores = queries @ documents.reshape(batch * size, -1).T  # [B, B * K]
    positive = torch.arange(batch) * size
    # A document that two lists of the batch share counts once: its first place stays.
    allowed &= first_places(rows)
    allowed[torch.arange(batch), positive] = True
    order = torch.cat([positive[:, None], _others(positive, batch * size)], dim=1)  # [B, B * K]
    scores, allowed = scores.gather(1, order.to(scores.device)), allowed.gather(1, order).to(scores.device)
    return scores, allowed


def first_places(values: Tensor) -> Tensor:
    """[n], true where a value stands for the first time."""
    _, inverse = torch.unique(values, return_inverse=True)
    places = torch.arange(len(values))
    first = torch.full((int(inverse.max()) + 1,), len(values)).scatter_reduce(0, inverse, places, "amin")
    return first[inverse] == places


def _others(positive: Tensor, size: int) -> Tensor:
    """[B, size - 1], all places but the positive's, in order."""
    places = torch.arange(size - 1).expand(len(positive), -1)
    return places + (places >= positive[:, None])
