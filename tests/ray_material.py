"""Models for the tests of Ray, which its workers import by name."""

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from retriever.errors import StoreError
from retriever.types import Document, Query, ScoredPairs
from tests.scoring_material import LoggingTeacher


@dataclasses.dataclass(frozen=True)
class Fall:
    """What befalls a model that meets some documents.

    Attributes:
        doc_id: kills the process that meets this document,
        kills: when a folder is given, which gets a file each time,
        times: as often as this.
        driver: the process that must not be asked.
        slow: lets later tasks overtake the one with the document d1.
    """

    doc_id: str = ""
    kills: Path | None = None
    times: int = 1
    driver: int = 0
    slow: bool = False

    def meet(self, documents: Sequence[Document]) -> None:
        doc_ids = {document.doc_id for document in documents}
        if os.getpid() == self.driver:
            raise StoreError("the driver was asked")
        if self.kills and self.doc_id in doc_ids and len(killed(self.kills)) < self.times:
            (self.kills / f"{time.time_ns()}-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.slow and "d1" in doc_ids:
            time.sleep(0.3)


class FallingTeacher(LoggingTeacher):
    """A teacher that something befalls."""

    def __init__(self, fall: Fall | None = None) -> None:
        super().__init__(shard_pairs=2, name="falling")
        self.fall = fall or Fall()

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
        self.fall.meet([document for _, document in pairs])
        return super().score(pairs)


def falling(load: Callable[[], Any], method: str, fall: Fall) -> Any:
    """A loaded encoder or generator whose method, which is given documents, befalls something."""
    model = load()
    own = getattr(model, method)

    def meeting(documents: Sequence[Document], *more: Any) -> Any:
        fall.meet(documents)
        return own(documents, *more)

    setattr(model, method, meeting)
    return model


class BrokenTeacher(LoggingTeacher):
    """Gives a score that is not finite."""

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
        good = super().score(pairs)
        return ScoredPairs(good.scores * float("nan"), good.n_tokens, good.truncated)


def killed(folder: Path) -> list[Path]:
    """A file for each process that died."""
    return sorted(folder.iterdir())
