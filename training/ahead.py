"""Images of the next batch, read while a step computes: decoding and resizing leave the processor to others for most of their time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ReadAhead:
    """What was begun for the batch that comes next.

    Batches follow each other in the order of the samples, so that the next one is known. One that comes otherwise, such as the first after a
    stop, is read when it is asked for. Nothing is drawn here: a training is the same with and without.

    Attributes:
        batch_size: by which a sample's number grows from a batch to the next.
    """

    def __init__(self, pool: Executor, batch_size: int) -> None:
        """One thread is enough, and more would use a batcher's stores at the same time."""
        self.batch_size = batch_size
        self._pool = pool
        self._known: Mapping[Hashable, Any] = {}
        self._coming: Future[dict[Hashable, Any]] | None = None

    def following(self, numbers: NDArray[np.int64], samples: int) -> NDArray[np.int64]:
        """The numbers of the next batch; none after the last one."""
        following = numbers + self.batch_size
        return following[following < samples]

    def begin(self, known: Mapping[Hashable, Any], jobs: Mapping[Hashable, Callable[[], Any]]) -> None:
        """Forgets the last batch, keeps what is known of the next one, and lets the thread do the rest, if there is any, one after the other."""
        self._known = known
        self._coming = self._pool.submit(lambda: {key: job() for key, job in jobs.items()}) if jobs else None

    def take(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What was known or made of that name, after waiting for it; else what `make` gives, when the thread is at rest.

        Raises:
            DataError: an image could not be read.
        """
        if key in self._known:
            return self._known[key]
        made = self._coming.result() if self._coming else {}
        return made[key] if key in made else make()
