"""Which answers are still to be written, of things that are told apart by what they are: a turn, an image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from retriever.files import fingerprint
from retriever.writing.shards import Answers

Thing = TypeVar("Thing")

Shard = tuple[int, tuple[str, ...]]
"""A sample number and the keys of the things that are asked about together."""


@dataclasses.dataclass(frozen=True)
class KeyedPlan(Generic[Thing]):
    """The answers that are still to be written.

    Attributes:
        things: by their keys.
        wanted: file name and shard.
        column: the name of the keys, in the files.
    """

    things: Mapping[str, Thing]
    wanted: Mapping[str, Shard]
    column: str

    def __len__(self) -> int:
        return sum(len(keys) for _, keys in self.wanted.values())

    @property
    def about(self) -> Mapping[str, Any]:
        """Nothing: the keys say themselves what was asked about."""
        return {}

    def shards(self) -> Mapping[str, Shard]:
        """File name of each shard, and what is asked for it."""
        return self.wanted

    def items(self, task: Shard) -> list[tuple[str, int]]:
        """The (key, sample number) of a shard."""
        sample, keys = task
        return [(key, sample) for key in keys]

    def asked(self, task: Shard) -> Iterator[tuple[int, dict[str, Thing]]]:
        """The sample number and the things of a shard."""
        sample, keys = task
        yield sample, {key: self.things[key] for key in keys}


def plan_missing(things: Mapping[str, Thing], samples: int, found: Answers, size: int, column: str) -> KeyedPlan[Thing]:
    """The answers that were not found, in shards of `size`; stopped after a shard, the others stay as they are."""
    wanted: dict[str, Shard] = {}
    for sample in range(samples):
        keys = [key for key in things if (key, sample) not in found]
        for start in range(0, len(keys), size):
            shard = sample, tuple(keys[start : start + size])
            wanted[f"{fingerprint(shard)}.parquet"] = shard
    return KeyedPlan(things, wanted, column)
