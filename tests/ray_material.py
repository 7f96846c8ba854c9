"""Teachers for the tests of Ray, which its workers import by name."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from retriever.errors import StoreError
from retriever.types import Document, Query, ScoredPairs
from tests.scoring_material import LoggingTeacher


class FallingTeacher(LoggingTeacher):
    """Kills the process it scores in when it meets a document, as often as it is told; slow ones let later shards overtake."""

    def __init__(self, doc_id: str = "", kills: Path | None = None, times: int = 1, driver: int = 0, slow: bool = False) -> None:
        super().__init__(shard_pairs=2, name="falling")
        self.doc_id, self.kills, self.times, self.driver, self.slow = doc_id, kills, times, driver, slow

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
        if os.getpid() == self.driver:
            raise StoreError("the driver was asked")
        if self.kills and self.doc_id in {document.doc_id for _, document in pairs} and len(killed(self.kills)) < self.times:
            (self.kills / f"{time.time_ns()}-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.slow and "d1" in {document.doc_id for _, document in pairs}:
            time.sleep(0.3)
        return super().score(pairs)


class BrokenTeacher(LoggingTeacher):
    """Gives a score that is not finite."""

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
        good = super().score(pairs)
        return ScoredPairs(good.scores * float("nan"), good.n_tokens, good.truncated)


def killed(folder: Path) -> list[Path]:
    """A file for each process that died."""
    return sorted(folder.iterdir())
