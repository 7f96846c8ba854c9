"""Documents that do not learn, looked up where their encodings are stored, as the losses take them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retriever.encodings import DocumentEncodings
from retriever.errors import ConfigError
from retriever.ragged import Ragged
from retriever.settings.training import TrainingSettings
from retriever.training.families import Encoded


def stored_documents(encodings: DocumentEncodings, rows: NDArray[np.int64], device: torch.device) -> Encoded:
    """What the model would make of documents: vectors [U, D], whole sparse vectors [U, V], or token vectors [U, L, D] with their mask [U, L].

    Args:
        encodings: of the collection.
        rows: [U], which of its documents.
        device: where they are to be compared.
    """
    found = encodings.rows(rows)
    if not isinstance(found, Ragged):
        return (torch.tensor(found, device=device),)
    whole = _tokens(found) if "vectors" in found.columns else (_sparse(found, encodings.dimensions),)
    return tuple(part.to(device) for part in whole)


def check_stored(encodings: DocumentEncodings, settings: TrainingSettings) -> None:
    """Sees to it that a training can do with documents' encodings as they are.

    Raises:
        ConfigError: vectors are wanted longer than they are stored, or states of documents that nobody reads.
    """
    longest = max(settings.matryoshka or (0,))
    if longest > encodings.dimensions:
        raise ConfigError(
            f"training.matryoshka: {longest}, but the documents, which student.frozen_documents leaves as they are, have {encodings.dimensions} dimensions. "
            f"Give {encodings.dimensions} at most"
        )
    if settings.frozen_layers is not None:
        raise ConfigError(
            "training.frozen_layers: with student.frozen_documents no document is read in training, which frozen layers would make cheap. Leave one of them out"
        )


def _tokens(found: Ragged) -> tuple[Tensor, Tensor]:
    """float32 [U, L, D] of token vectors, zeros behind a document's last one, and bool [U, L], true up to there."""
    vectors = torch.from_numpy(found.columns["vectors"]).float()
    counts = torch.from_numpy(found.counts)
    mask = torch.arange(max(1, int(counts.max()))) < counts[:, None]
    padded = torch.zeros(*mask.shape, vectors.shape[1])
    padded[mask] = vectors
    return padded, mask


def _sparse(found: Ragged, size: int) -> Tensor:
    """float32 [U, V], zeros but for the entries."""
    texts = torch.from_numpy(np.repeat(np.arange(len(found)), found.counts))
    whole = torch.zeros(len(found), size)
    whole[texts, torch.from_numpy(found.columns["dimensions"]).long()] = torch.from_numpy(found.columns["values"])
    return whole
