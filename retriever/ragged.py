"""What is not one row of a fixed length for each text: token vectors, or the entries of sparse vectors, end to end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def joined(parts: Sequence[Any]) -> Any:
    """Encodings of several pieces, ragged ones or arrays, one after another; at least one."""
    if len(parts) == 1:
        return parts[0]
    return Ragged.together(parts) if isinstance(parts[0], Ragged) else np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class Ragged:
    """What n texts hold, end to end.

    Attributes:
        offsets: int64 [n + 1]; text i has the entries offsets[i]:offsets[i + 1].
        columns: name -> array [entries, ...]: token vectors, or the dimensions and values of sparse vectors.
    """

    offsets: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """[n], entries of each text."""
        return np.diff(self.offsets)

    @classmethod
    def of_lists(cls, name: str, arrays: Sequence[NDArray[Any]], width: int) -> Ragged:
        """One column from an array [entries, width] for each text."""
        offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int64)
        kind = arrays[0].dtype if arrays else np.dtype(np.float16)
        return cls(offsets, {name: np.concatenate([np.empty((0, width), dtype=kind), *arrays])})

    @classmethod
    def together(cls, parts: Sequence[Ragged]) -> Ragged:
        """The texts of several, one after another; at least one."""
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([part.counts for part in parts]))]).astype(np.int64)
        return cls(offsets, {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns})

    def __getitem__(self, rows: NDArray[np.int64]) -> Ragged:
        """What the texts with these numbers hold, in their order; one may be asked for twice."""
        counts = self.counts[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        entries = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], counts)
        return Ragged(offsets, {name: column[entries] for name, column in self.columns.items()})
