"""Hidden states of texts that lie on disk, as a feature of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STATES = "frozen_states"
"""The feature that stands in for the frozen layers: hidden states [n, L, H]."""


@dataclasses.dataclass(frozen=True)
class StoredStates:
    """The states of n texts, in blocks.

    Attributes:
        block: texts that one holds; the last one may hold fewer.
        places: what a text is called -> its number.
        starts: int64 [n], where a text's tokens begin in its block.
        counts: int64 [n], its tokens.
        blocks: [tokens, H] each, memory-mapped.
    """

    block: int
    places: Mapping[Any, int]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    blocks: Sequence[NDArray[Any]]

    def padded(self, names: Sequence[Any], width: int) -> Tensor:
        """[n, L, H], zeros behind a text's last token; L is the width."""
        found = np.zeros((len(names), width, self.blocks[0].shape[1]), dtype=self.blocks[0].dtype)
        for row, name in enumerate(names):
            place = self.places[name]
            start, count = int(self.starts[place]), int(self.counts[place])
            found[row, :count] = self.blocks[place // self.block][start : start + count]
        return torch.from_numpy(found)


@dataclasses.dataclass(frozen=True)
class FrozenTexts:
    """The states of all texts that a training reads; None for queries that do not go through the transformer.

    Attributes:
        queries: by their texts.
        documents: by their rows in the collection.
    """

    queries: StoredStates | None
    documents: StoredStates | None

    def of_queries(self, texts: Sequence[str], features: Mapping[str, Any]) -> dict[str, Tensor]:
        """The feature of queries with these texts, as long as their token ids."""
        return {STATES: self.queries.padded(texts, features["input_ids"].shape[1])} if self.queries else {}

    def of_documents(self, rows: Sequence[int], features: Mapping[str, Any]) -> dict[str, Tensor]:
        """The feature of the documents of these rows."""
        return {STATES: self.documents.padded(rows, features["input_ids"].shape[1])} if self.documents else {}
