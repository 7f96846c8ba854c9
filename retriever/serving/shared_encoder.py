"""A student whose texts the one encoder thread of a process encodes, whichever thread or request asks."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from retriever.conversations.chat import read_as
from retriever.errors import ConfigError
from retriever.ragged import joined
from retriever.serving.encoder_thread import PIECE, EncoderThread
from retriever.serving.faults import FullError
from retriever.serving.settings import Place, ServeSettings
from retriever.types import Document, Query

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Value = TypeVar("Value")

ATTEMPTS, PAUSE = 50, 0.1
"""To find room for a piece, and the seconds between two of them."""


class SharedEncoder:
    """A student whose work is done in the encoder thread, piece by piece, whichever thread asks for it.

    Attributes:
        own: the student itself.
    """

    def __init__(self, own: Any, thread: EncoderThread) -> None:
        self.own = own
        self._thread = thread

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def encode_queries(self, queries: Sequence[Query]) -> Any:
        """As the student's."""
        return self.apart(self.own.encode_queries, queries)

    def encode_documents(self, documents: Sequence[Document]) -> Any:
        """As the student's."""
        return self.apart(self.own.encode_documents, documents)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Tokens of texts as the student's tokenizer counts them, before any is cut; 0 for a tokenizer that does not. In whichever thread asks."""
        return sum(len(found.ids) for found in self._counting.encode_batch(list(texts))) if self._counting else 0

    @functools.cached_property
    def _counting(self) -> Tokenizer | None:
        """A tokenizer of its own, so that counting waits for no encoding: nothing else sets where this one cuts."""
        backend = getattr(getattr(getattr(self.own, "model", None), "tokenizer", None), "backend_tokenizer", None)
        if backend is None:
            return None
        from tokenizers import Tokenizer

        own = Tokenizer.from_str(backend.to_str())
        own.no_truncation()
        own.no_padding()
        return own

    def apart(self, encode: Callable[[Sequence[Any]], Any], texts: Sequence[Any]) -> Any:
        """What a function of the student makes of `PIECE` texts at a time, put together; those of several requests go through it together.

        Args:
            encode: a method, by which the texts of different requests are known to be for the same.
            texts: what it reads, n of them; it gives an array or a ragged array of n.
        """
        if self._thread.here():
            return encode(texts)
        return joined([_with_patience(functools.partial(self._thread.encode, encode, piece)) for piece in _pieces(texts)])

    async def awaited(self, encode: Callable[[Sequence[Any]], Any], texts: Sequence[Any]) -> Any:
        """As `apart`, for a request that holds no thread while it waits: as many as come are encoded together."""
        return joined([await _when_there_is_room(functools.partial(self._thread.encode, encode, piece)) for piece in _pieces(texts)])

    def do(self, work: Callable[[], Value]) -> Value:
        """The result of a small piece of work that uses the student."""
        return work() if self._thread.here() else _with_patience(lambda: self._thread.call(work))


def _pieces(texts: Sequence[Any]) -> list[Sequence[Any]]:
    """One at least."""
    return [texts[start : start + PIECE] for start in range(0, max(len(texts), 1), PIECE)]


def _with_patience(put: Callable[[], Future[Value]]) -> Value:
    """The result of a piece; one of something longer waits while there is no room for it."""
    for attempt in range(ATTEMPTS):
        try:
            return put().result()
        except FullError:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(PAUSE)
    raise AssertionError


async def _when_there_is_room(put: Callable[[], Future[Value]]) -> Value:
    """As `_with_patience`, in an event loop; a piece whose request was given up is not worked on."""
    for attempt in range(ATTEMPTS):
        try:
            future = put()
        except FullError:
            if attempt == ATTEMPTS - 1:
                raise
            await asyncio.sleep(PAUSE)
        else:
            return await asyncio.wrap_future(future)
    raise AssertionError


def shared_encoder(own: Any, thread: EncoderThread, settings: ServeSettings, place: Place) -> SharedEncoder:
    """A student that reads and computes as the server was told.

    Args:
        own: the student, changed in place.
        thread: that does its work.
        settings: of the server.
        place: what it searches.

    Raises:
        MissingExtraError: the backend's packages are not installed.
        ConfigError: it cannot read or compute so.
    """
    if place.reads is not None:
        if not hasattr(own, "reader"):
            raise ConfigError(
                f"--reads: the student of {place.name} reads conversations in its own way. Leave it out there: --reads NAME=READING is for one index"
            )
        read_as(own, place.reads, place.name)
    if settings.backend != "torch":
        from retriever.models.runtime import compute_in

        compute_in(settings.backend, own, f"serve: --backend {settings.backend}: the student of {place.name}")
    return SharedEncoder(own, thread)
