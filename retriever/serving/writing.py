"""Changes of an index by the server: done, on the disk and seen by every search that begins afterwards, before they are acknowledged."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from retriever.errors import LockedError
from retriever.index import changes
from retriever.index.changes import Changed
from retriever.serving.served_index import ServedIndex
from retriever.types import Document

Value = TypeVar("Value")

WAIT_SECONDS = 60.0
"""For another process that is changing the same index."""


def add(served: ServedIndex, documents: Sequence[Document]) -> Changed:
    """Adds documents, encoded by the student that is loaded already."""
    listed = [(f"documents.{number}", document) for number, document in enumerate(documents)]
    return _patiently(lambda: changes.add(served.folder, listed, before=served.reopened().snapshot))


def delete(served: ServedIndex, doc_ids: Sequence[str], ignore_missing: bool) -> Changed:
    """Deletes documents."""
    return _patiently(lambda: changes.delete(served.folder, doc_ids, ignore_missing))


def compact(served: ServedIndex) -> Changed:
    """Puts all segments together."""
    return _patiently(lambda: changes.compact(served.folder))


def prune(served: ServedIndex) -> int:
    """Removes all versions but the current one; bytes that this frees."""
    return _patiently(lambda: changes.prune(served.folder))


def _patiently(change: Callable[[], Value]) -> Value:
    """The result of a change, begun again while another process holds the index's lock."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return change()
        except LockedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
