"""Milliseconds, stage by stage."""

from __future__ import annotations

import time


class Stopwatch:
    """Counts from the moment it is made.

    Attributes:
        milliseconds: what each lap took.
    """

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self._start = self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Ends a stage."""
        now = time.perf_counter()
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + (now - self._last) * 1_000
        self._last = now

    @property
    def total(self) -> float:
        """Milliseconds since the beginning."""
        return (time.perf_counter() - self._start) * 1_000
