"""Samples and models for the tests of training."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from retriever.training.samples import TrainingSamples
from retriever.types import Query


class NamedSimilarity(nn.Module):
    """As much of a SentenceTransformer as a loss on embeddings asks for."""

    def __init__(self, similarity: str) -> None:
        super().__init__()
        self.similarity_fn_name = similarity


def samples_of(
    documents: Sequence[Sequence[int]],
    teacher: Sequence[Sequence[float]] | None = None,
    mask: Sequence[Sequence[bool]] | None = None,
    not_negative: Sequence[Sequence[int]] | None = None,
) -> TrainingSamples:
    """Samples of these rows; without more, every document but the positive is a negative and the teacher likes the first ones."""
    rows = np.array(documents, dtype=np.int64)
    scores = -np.arange(rows.size, dtype=np.float32).reshape(rows.shape) if teacher is None else np.array(teacher, dtype=np.float32)
    known = [[row[0]] for row in documents] if not_negative is None else not_negative
    return TrainingSamples(
        queries=[Query(f"q{number}", f"query {number}") for number in range(len(rows))],
        documents=rows,
        teacher=scores,
        mask=np.ones(rows.shape, dtype=np.bool_) if mask is None else np.array(mask, dtype=np.bool_),
        not_negative=[np.unique(np.array(rows_of_query, dtype=np.int64)) for rows_of_query in known],
    )


def random_embeddings(batch: int, size: int, dimensions: int = 8, seed: int = 1) -> list[torch.Tensor]:
    """Queries, then `size` columns of documents, each [B, D], of lengths that are not 1."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, dimensions, generator=generator) for _ in range(1 + size)]
