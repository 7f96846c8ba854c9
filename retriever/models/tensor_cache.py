"""Tensors kept for as long as there is room: what was not asked for longest goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from torch import Tensor

K = TypeVar("K", bound=Hashable)


class TensorCache:
    """Makes a tensor for each key once, unless it was dropped since for want of room.

    Attributes:
        limit: bytes kept at most; what one call asks for is given whole, whatever it takes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._bytes = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, keys: Sequence[K], make: Callable[[Sequence[K]], Sequence[Tensor]], together: int) -> dict[K, Tensor]:
        """Key -> tensor; those that are not there are made, each once.

        Args:
            keys: wanted; a key may stand there several times.
            make: gives the tensors of some keys, in their order.
            together: keys that are made at a time.
        """
        distinct = list(dict.fromkeys(keys))
        found = {key: self._kept[key] for key in distinct if key in self._kept}
        missing = [key for key in distinct if key not in found]
        for key in found:
            self._kept.move_to_end(key)
        for start in range(0, len(missing), together):
            part = missing[start : start + together]
            for key, tensor in zip(part, make(part), strict=True):
                found[key] = tensor
                self._keep(key, tensor)
        return found

    def _keep(self, key: Hashable, tensor: Tensor) -> None:
        self._kept[key] = tensor
        self._bytes += tensor.nbytes
        while self._bytes > self.limit:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes
