"""Hidden states of texts that lie on disk, as a feature of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
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
        blocks: files of [tokens, H], opened when they are read, for a mapped file counts as an open one.
    """

    block: int
    places: Mapping[Any, int]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    blocks: Sequence[Path]

    def padded(self, names: Sequence[Any], width: int) -> Tensor:
        """[n, L, H], zeros behind a text's last token; L is the width."""
        places = np.array([self.places[name] for name in names], dtype=np.int64)
        parts = [np.empty((0, 0))] * len(places)
        for number in np.unique(places // self.block).tolist():
            states = np.load(self.blocks[number], mmap_mode="r", allow_pickle=False)
            for row in np.flatnonzero(places // self.block == number).tolist():
                start = int(self.starts[places[row]])
                parts[row] = np.array(states[start : start + int(self.counts[places[row]])])
        found = np.zeros((len(parts), width, parts[0].shape[1]), dtype=parts[0].dtype)
        for row, part in enumerate(parts):
            found[row, : len(part)] = part
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
