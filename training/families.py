"""What training must know of a kind of student: its trainer, what the model's output is, and how queries and documents compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from sentence_transformers import (
    CrossEncoder,
    MultiVectorEncoder,
    MultiVectorEncoderTrainer,
    MultiVectorEncoderTrainingArguments,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    SparseEncoder,
    SparseEncoderTrainer,
    SparseEncoderTrainingArguments,
)
from torch import Tensor
from torch.nn.functional import normalize, pad

from retriever.errors import ConfigError
from retriever.models.modalities import reads_images
from retriever.training.loss_table import Loss
from retriever.training.maxsim import maxsim_matrix

Encoded = tuple[Tensor, ...]
"""What a model makes of n texts: one vector each, (float [n, D],), or one for each token with the mask of those that count, (float [n, L, D], bool [n, L])."""


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of student, as the training loop sees it.

    Attributes:
        trainers: sentence-transformers' trainer and the class of its arguments.
        read: the output of the model for n texts, as tensors with a row for each.
        similarity: [B, U] of B queries with U documents.
        bounded: the similarity is a cosine, which `student_scale` turns into a logit.
    """

    trainers: tuple[type[Any], type[Any]]
    read: Callable[[Mapping[str, Any]], Encoded]
    similarity: Callable[[Encoded, Encoded], Tensor]
    bounded: bool = False


def family_of(model: Any) -> Family:
    """The family of a sentence-transformers model.

    Raises:
        ConfigError: its similarity is none that a student can be trained for.
    """
    name = model.similarity_fn_name
    if isinstance(model, MultiVectorEncoder):
        similarity = mean_maxsim if name == "meanmaxsim" else maxsim
        return Family((MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments), _tokens, similarity, bounded=name == "meanmaxsim")
    if name not in ("cosine", "dot"):
        raise ConfigError(f'student.model: it compares by "{name}"; a student is trained to compare by cosine or dot')
    similarity = cosine if name == "cosine" else dot
    if isinstance(model, SparseEncoder):
        return Family((SparseEncoderTrainer, SparseEncoderTrainingArguments), _vector, similarity, bounded=name == "cosine")
    if isinstance(model, SentenceTransformer):
        return Family((SentenceTransformerTrainer, SentenceTransformerTrainingArguments), _vector, similarity, bounded=name == "cosine")
    raise ConfigError(f"student: a {type(model).__name__} cannot be trained as a bi-encoder; a SentenceTransformer, SparseEncoder or MultiVectorEncoder can")


def check_losses(model: Any, losses: Mapping[str, Loss]) -> None:
    """Sees to it that a student has what its losses compare; no scores are needed to know that.

    Raises:
        ConfigError: it has not.
    """
    for name, loss in losses.items():
        if isinstance(model, CrossEncoder) and loss.needs not in ("target", "batch", "negatives"):
            raise ConfigError(f"training.losses: {name} compares whole batches or vectors, which a cross-encoder has not; kl_divergence does without")
        if loss.needs == "reinforced" and not reads_images(model):
            raise ConfigError(f'training.losses: {name} teaches images and texts, and the student reads texts alone. Set student.kind = "image_text"')
        if loss.needs == "vectors" and not isinstance(model, SentenceTransformer):
            raise ConfigError(f"training.losses: {name} compares one vector a text; only dense and static students have one")


def join(parts: Sequence[Encoded]) -> Encoded:
    """Groups of texts as one; token vectors are padded to the longest text, and the padding does not count."""
    if len(parts[0]) == 1:
        return (torch.cat([vectors for (vectors,) in parts]),)
    longest = max(mask.shape[1] for _, mask in parts)
    tokens = [pad(vectors, (0, 0, 0, longest - vectors.shape[1])) for vectors, _ in parts]
    return torch.cat(tokens), torch.cat([pad(mask, (0, longest - mask.shape[1])) for _, mask in parts])


def dot(queries: Encoded, documents: Encoded) -> Tensor:
    """[B, U] inner products."""
    return queries[0] @ documents[0].T


def cosine(queries: Encoded, documents: Encoded) -> Tensor:
    """[B, U] cosines."""
    return normalize(queries[0], dim=-1) @ normalize(documents[0], dim=-1).T


def maxsim(queries: Encoded, documents: Encoded) -> Tensor:
    """[B, U], the sum over a query's tokens of the best inner product with a document's (arXiv:2004.12832)."""
    return maxsim_matrix(queries[0], queries[1], documents[0], documents[1])


def mean_maxsim(queries: Encoded, documents: Encoded) -> Tensor:
    """[B, U], the mean instead of the sum."""
    return maxsim(queries, documents) / queries[1].sum(dim=1, keepdim=True).clamp(min=1)


def _vector(output: Mapping[str, Any]) -> Encoded:
    return (output["sentence_embedding"].float(),)


def _tokens(output: Mapping[str, Any]) -> Encoded:
    return output["token_embeddings"].float(), output["attention_mask"].bool()
