"""What was used last, within so many bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class RecentValues(Generic[Value]):
    """Values by key; the ones that nobody asked for the longest are given up first. Threads may share it.

    Attributes:
        most_bytes: that all of them take.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> Value | None:
        """The value of a key, None where it is not there."""
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, value: Value, size: int) -> None:
        """Keeps a value of so many bytes, unless it is too large for all of them."""
        if size > self.most_bytes:
            return
        with self._lock:
            before = self._values.pop(key, None)
            self._bytes += size - (before[1] if before else 0)
            self._values[key] = (value, size)
            while self._bytes > self.most_bytes:
                _, (_, freed) = self._values.popitem(last=False)
                self._bytes -= freed

    def clear(self) -> None:
        """Gives up all."""
        with self._lock:
            self._values.clear()
            self._bytes = 0
