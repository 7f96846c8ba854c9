"""The one thread of a process that encodes: queries of all requests in batches, and between them other work in small pieces."""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import numpy as np

from retriever.filters import Condition
from retriever.serving.faults import FullError
from retriever.types import Document, Query

Value = TypeVar("Value")

PIECE = 16
"""Texts of other work of a request that are encoded at a time, so that queries need not wait for long."""

TOGETHER = 32
"""Texts of several requests that are encoded at a time, where they are short."""

PASSAGE = 1000
"""Characters of a passage of middling length. What is encoded at a time is not longer than `PIECE` of these."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """A query on its way.

    Attributes:
        query: what is asked.
        k: documents at most.
        conditions: on their fields.
        stages: how many of several are searched; None for all.
    """

    query: Query
    k: int
    conditions: tuple[Condition, ...] = ()
    stages: int | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found for one query.

    Attributes:
        scores: best first.
        documents: gives the documents with these scores; may read from the disk.
        milliseconds: stage -> what it took for the whole batch.
    """

    scores: Sequence[float]
    documents: Callable[[], Sequence[Document]]
    milliseconds: Mapping[str, float]


class View(Protocol):
    """A version of something that can be searched."""

    def answer(self, asked: Sequence[Asked]) -> list[Found]:
        """What is found for each query; called in the encoder thread alone."""
        ...


def in_groups(asked: Sequence[Asked], key: Callable[[Asked], Hashable], search: Callable[[list[int]], Iterable[Value]]) -> list[Value]:
    """What is found for queries, in their order.

    Args:
        asked: the queries.
        key: those of equal ones are searched together.
        search: gives what is found for the queries of some places.
    """
    groups: dict[Hashable, list[int]] = {}
    for place, one in enumerate(asked):
        groups.setdefault(key(one), []).append(place)
    found: dict[int, Value] = {}
    for places in groups.values():
        found |= dict(zip(places, search(places), strict=True))
    return [found[place] for place in range(len(asked))]


@dataclasses.dataclass
class _Waiting:
    view: View
    asked: Asked
    since: float
    future: Future[Found]


@dataclasses.dataclass
class _Piece:
    """Work that waits; with texts, `work` is a function of them, and may be asked about those of several pieces together."""

    work: Callable[..., Any]
    texts: Sequence[Any] | None
    future: Future[Any]

    @property
    def characters(self) -> int:
        """Of its texts."""
        return sum(map(_characters, self.texts or ()))


Item = TypeVar("Item", _Waiting, _Piece)


class EncoderThread:
    """Encodes whatever waits. Batches of queries and pieces of other work take turns, so that neither waits for all of the other.

    Attributes:
        batch: queries taken together at most.
        wait_seconds: that the first of them waits for others.
        queue: how many queries, and how many pieces, may wait.
    """

    def __init__(self, batch: int, wait_seconds: float, queue: int, told: Callable[[int, float], None] = lambda size, seconds: None) -> None:
        """Starts the thread.

        Args:
            batch: queries taken together at most.
            wait_seconds: that the first of them waits for others.
            queue: how many queries, and how many pieces, may wait.
            told: is given the size of each batch and the seconds that it took.
        """
        self.batch, self.wait_seconds, self.queue = batch, wait_seconds, queue
        self._told = told
        self._changed = threading.Condition()
        self._queries: collections.deque[_Waiting] = collections.deque()
        self._pieces: collections.deque[_Piece] = collections.deque()
        self._closed = False
        self._seconds_each = 0.01
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Queries that no batch has taken yet."""
        return len(self._queries)

    def submit(self, view: View, asked: Sequence[Asked]) -> list[Future[Found]]:
        """What will be found for queries; all are taken or none. A future that is cancelled before its turn costs nothing.

        Raises:
            FullError: too many wait.
        """
        now = time.monotonic()
        items = [_Waiting(view, one, now, Future()) for one in asked]
        with self._changed:
            if len(self._queries) + len(items) > max(self.queue, len(items) if not self._queries else 0):
                raise FullError(len(self._queries) * self._seconds_each)
            self._queries.extend(items)
            self._changed.notify()
        return [item.future for item in items]

    def call(self, work: Callable[[], Value]) -> Future[Value]:
        """The result of a small piece of other work.

        Raises:
            FullError: too many wait.
        """
        return self._put(_Piece(work, None, Future()))

    def encode(self, encode: Callable[[Sequence[Any]], Any], texts: Sequence[Any]) -> Future[Any]:
        """What a function makes of up to `PIECE` texts, together with those of others that wait for the same function; short ones up to `TOGETHER`.

        Raises:
            FullError: too many wait.
        """
        return self._put(_Piece(encode, texts, Future()))

    def here(self) -> bool:
        """Whether this is the thread itself."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Ends the thread when all that waits is done."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queries or self._pieces or self._closed)
                if not self._queries and not self._pieces:
                    return
            if self._queries:
                self._answer(self._taken())
            if self._pieces:
                self._do_piece()

    def _taken(self) -> list[_Waiting]:
        """The next batch: what waits, and what comes while the first may still wait."""
        with self._changed:
            deadline = self._queries[0].since + self.wait_seconds
            while len(self._queries) < self.batch and not self._closed and not self._pieces:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            return [self._queries.popleft() for _ in range(min(self.batch, len(self._queries)))]

    def _answer(self, taken: Sequence[_Waiting]) -> None:
        alive = [item for item in taken if item.future.set_running_or_notify_cancel()]
        views: dict[int, list[_Waiting]] = {}
        for item in alive:
            views.setdefault(id(item.view), []).append(item)
        for items in views.values():
            start = time.monotonic()
            _settle(items, lambda some: some[0].view.answer([item.asked for item in some]))
            seconds = time.monotonic() - start
            self._seconds_each += 0.1 * (seconds / len(items) - self._seconds_each)
            self._told(len(items), seconds)

    def _put(self, piece: _Piece) -> Future[Any]:
        with self._changed:
            if len(self._pieces) >= self.queue:
                raise FullError(1.0)
            self._pieces.append(piece)
            self._changed.notify()
        return piece.future

    def _do_piece(self) -> None:
        with self._changed:
            taken = self._taken_pieces()
        if alive := [piece for piece in taken if piece.future.set_running_or_notify_cancel()]:
            _settle(alive, _made_together)

    def _taken_pieces(self) -> list[_Piece]:
        """The first piece, and what waits for the same function as far as there is room."""
        first = self._pieces.popleft()
        if first.texts is None:
            return [first]
        taken, left, room, characters = [first], list[_Piece](), TOGETHER - len(first.texts), PIECE * PASSAGE - first.characters
        for piece in self._pieces:
            fits = piece.texts is not None and piece.work == first.work and len(piece.texts) <= room and piece.characters <= characters
            (taken if fits else left).append(piece)
            room -= len(piece.texts or ()) if fits else 0
            characters -= piece.characters if fits else 0
        self._pieces = collections.deque(left)
        return taken


def _characters(read: Any) -> int:
    """Of a text, a query, a document, or several of them; an image counts as a passage."""
    if isinstance(read, tuple):
        return sum(map(_characters, read))
    if getattr(read, "image", None):
        return PASSAGE
    return len(read.full_text if isinstance(read, Document) else getattr(read, "text", read))


def _made_together(pieces: Sequence[_Piece]) -> list[Any]:
    """The results of pieces with one function, whose texts go through it together."""
    first = pieces[0]
    if first.texts is None:
        return [first.work()]
    texts = [piece.texts or () for piece in pieces]
    made, ends = first.work([text for some in texts for text in some]), np.cumsum([len(some) for some in texts])
    return [made[np.arange(end - len(some), end)] for some, end in zip(texts, ends, strict=True)]


def _settle(items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Any]]) -> None:
    """Gives each its result; where several fail, each is worked on alone, so that one request's mistake is its own."""
    try:
        results = work(items)
    except Exception as error:  # noqa: BLE001 (whoever waits gets it)
        if len(items) == 1:
            items[0].future.set_exception(error)
        else:
            for item in items:
                _settle([item], work)
        return
    for item, result in zip(items, results, strict=True):
        item.future.set_result(result)
