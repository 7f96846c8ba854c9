"""What a server process holds for as long as it runs: what is served, the encoder's thread, caches, keys and counters."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from retriever.errors import RetrieverError
from retriever.filters import Condition, conditions_from
from retriever.serving.conversation_store import ConversationStore
from retriever.serving.encoder_thread import EncoderThread
from retriever.serving.faults import FullError, RequestError, bad_request, beyond, busy, fault_of
from retriever.serving.feedback import FILE
from retriever.serving.keys import Keys, Principal
from retriever.serving.metrics import Metrics
from retriever.serving.served import OpenView, Served, open_served
from retriever.serving.settings import Limits, ServeSettings
from retriever.types import Query, Turn

Value = TypeVar("Value")

READERS, WORKERS = 2, 4
"""Threads that read documents of what was found, and that do what takes longer: explain, score texts, open versions."""

IMAGES = 4
"""Images that are decoded and searched with at a time; of the largest that are allowed, four take 200 MB. Others wait."""


class Service:
    """All that requests of one process share.

    Attributes:
        settings: the server was started with.
        metrics: the counters.
        encoder: the thread that encodes.
        served: name -> what is served.
        keys: None where everybody may do everything.
        conversations: of all processes.
        images: lets in who holds a decoded image.
    """

    def __init__(self, settings: ServeSettings) -> None:
        """Opens everything.

        Raises:
            RetrieverError: something cannot be opened.
        """
        limits = settings.limits
        self.settings = settings
        self.metrics = Metrics()
        self.keys = Keys(settings.keys) if settings.keys else None
        self.encoder = EncoderThread(limits.batch, limits.batch_wait_ms / 1_000, limits.queue, self._tell_batch)
        try:
            self.served: dict[str, Served] = {place.name: open_served(place, settings, self.encoder) for place in settings.places}
        except BaseException:
            self.encoder.close()
            raise
        self.feedback = settings.state / FILE if settings.keep else None
        self.conversations = ConversationStore(
            settings.state / "conversations.sqlite3", limits.conversation_hours, limits.conversations, min(limits.turns, 2_000)
        )
        self._readers = ThreadPoolExecutor(READERS, "reader")
        self._workers = ThreadPoolExecutor(WORKERS, "worker")
        self._checkers = ThreadPoolExecutor(1, "keys")
        self._writers = ThreadPoolExecutor(1, "writer")
        self._writes = 0
        self.images = asyncio.Semaphore(IMAGES)
        self._guard = threading.Lock()
        self.closing = False

    @property
    def limits(self) -> Limits:
        """How much of everything."""
        return self.settings.limits

    def close(self) -> None:
        """Ends the threads when what they do is done."""
        self.closing = True
        for pool in (self._writers, self._workers, self._readers, self._checkers):
            pool.shutdown()
        self.encoder.close()
        for served in self.served.values():
            served.close()
        self.conversations.close()

    # Who asks

    async def principal(self, key: str | None) -> Principal:
        """Who a key belongs to; where there are no keys, somebody who may do everything.

        Raises:
            RequestError: there is no such key, or none was given.
        """
        if self.keys is None:
            return Principal(key_id="", role="admin")
        found = None
        if key and len(key) <= 200:
            known, found = self.keys.remembered(key)
            if not known:
                found = await asyncio.get_running_loop().run_in_executor(self._checkers, self.keys.check, key)
        if found is None:
            told = "no key was given" if not key else "there is no such key"
            raise RequestError(401, "unauthorised", f"{told}; send one as Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
        return found

    # What is asked

    def named(self, name: str | None) -> Served:
        """What is served under a name; the first one without a name.

        Raises:
            RequestError: there is none.
        """
        found = next(iter(self.served.values())) if name is None else self.served.get(name)
        if found is None:
            raise RequestError(404, "not_found", f'there is no index "{name:.100}"; served are {", ".join(self.served)}')
        return found

    async def view(self, served: Served) -> OpenView:
        """The newest version. One that has to be opened first is waited for: what was deleted and acknowledged is never found."""
        found = served.fresh()
        return await self.work(served, served.reopened) if found is None else found

    def query(self, text: str, turns: Sequence[Turn] = ()) -> Query:
        """A query within the limits.

        Raises:
            RequestError: it is empty, or beyond them.
        """
        limits = self.limits
        if not text.strip():
            raise bad_request("query: is empty")
        if len(turns) > limits.turns:
            raise beyond("turns", len(turns), limits.turns)
        characters = len(text) + sum(len(turn.text) for turn in turns)
        if characters > limits.query_characters:
            raise beyond("query: characters" + (", its turns included" if turns else ""), characters, limits.query_characters)
        return Query("query", text.strip(), tuple(turns))

    def depth(self, k: int) -> int:
        """The depth itself.

        Raises:
            RequestError: it is beyond the limit.
        """
        if k > self.limits.k:
            raise beyond("k", k, self.limits.k)
        return k

    def conditions(self, view: OpenView, wanted: Mapping[str, Any]) -> tuple[Condition, ...]:
        """A filter's conditions, which the view can answer.

        Raises:
            ConfigError: it cannot, or it is none.
        """
        conditions = tuple(conditions_from(wanted))
        view.check(conditions)
        return conditions

    def texts(self, name: str, texts: Sequence[str]) -> Sequence[str]:
        """Texts within the limits.

        Raises:
            RequestError: there is none, one is empty, or they are beyond them.
        """
        if not texts:
            raise bad_request(f"{name}: is empty")
        if len(texts) > self.limits.texts:
            raise beyond(name, len(texts), self.limits.texts)
        longest = max(map(len, texts))
        if longest > self.limits.text_characters:
            raise beyond(f"{name}: characters of one", longest, self.limits.text_characters)
        if (empty := next((number for number, text in enumerate(texts) if not text.strip()), None)) is not None:
            raise bad_request(f"{name}: number {empty} is empty, counted from 0")
        return texts

    # How it is done

    async def read(self, served: Served, work: Callable[[], Value]) -> Value:
        """The result of something short that only reads, in a thread.

        Raises:
            RequestError: it failed by the client's mistake.
        """
        with self.told(served):
            return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def work(self, served: Served, work: Callable[[], Value]) -> Value:
        """The result of something that takes longer or waits for the encoder.

        Raises:
            RequestError: it failed by the client's mistake, or there is too much to do.
        """
        with self.told(served):
            return await asyncio.get_running_loop().run_in_executor(self._workers, work)

    async def encoded(self, served: Served, waiting: Awaitable[Value]) -> Value:
        """What the encoder makes of the texts of a request, which holds no thread while it waits.

        Raises:
            RequestError: as `work`.
        """
        with self.told(served):
            return await waiting

    async def write(self, served: Served, work: Callable[[], Value]) -> Value:
        """The result of a change, in the thread that changes one thing after another; it is done to its end even where nobody waits any more.

        Raises:
            RequestError: it failed by the client's mistake, there is too much to do, or it takes too long.
        """
        with self._guard:
            if self._writes >= self.limits.writes:
                raise busy(5)
            self._writes += 1

        def counted() -> Value:
            try:
                return work()
            finally:
                with self._guard:
                    self._writes -= 1

        future: Future[Value] = self._writers.submit(counted)
        with self.told(served):
            try:
                async with asyncio.timeout(self.limits.write_timeout_seconds):
                    return await asyncio.shield(asyncio.wrap_future(future))
            except TimeoutError as error:
                raise RequestError(
                    504, "timeout", f"not done after {self.limits.write_timeout_seconds:g} s; it goes on, so look before you try again"
                ) from error

    @contextlib.contextmanager
    def told(self, served: Served) -> Iterator[None]:
        """Turns mistakes into what clients are told."""
        try:
            yield
        except FullError as full:
            raise busy(full.seconds) from full
        except RetrieverError as error:
            raise fault_of(error, served.paths) from error

    def _tell_batch(self, size: int, seconds: float) -> None:
        self.metrics.batch.observe(size)
        self.metrics.batch_seconds.observe(seconds)


def writable(service: Service, served: Served) -> bool:
    """Whether documents of it can be changed."""
    return service.settings.write and served.folder is not None


def check_writable(service: Service, served: Served) -> None:
    """Refuses changes of what cannot be changed.

    Raises:
        RequestError: it cannot.
    """
    if not service.settings.write:
        raise RequestError(403, "read_only", "this server changes nothing; it does with: retriever serve --write")
    if served.folder is None:
        raise RequestError(403, "read_only", f'"{served.name}" is no index folder, and only those are changed here')
