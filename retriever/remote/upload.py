"""Uploading encoded documents to an engine: in parallel, continued after a stop, compared in the end with exact scores."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import Encoding
from retriever.errors import DataError, SearchIndexError
from retriever.ragged import Ragged
from retriever.remote.addresses import Address, parse_address
from retriever.remote.comparison import Comparison
from retriever.remote.engine import FIELDS, Engine, Facts, check_encodings
from retriever.remote.index import RemoteIndex, connect, read_facts
from retriever.remote.milvus import check_kind
from retriever.tables.fields import Kind, kind_of
from retriever.types import Document

Block = tuple[Sequence[Document], Encoding]
"""Some documents, and their encodings in the same order."""

PIECE = 1024
"""Documents whose presence is asked for at a time."""

REQUEST_BYTES = 8_000_000
"""Of a request, about; engines refuse much larger ones."""

NUMBER_BYTES = 20
"""Of a number in JSON."""

PAUSES = (1.0, 5.0)
"""Seconds before a failed request is sent a second and a third time."""


@dataclasses.dataclass(frozen=True)
class Uploaded:
    """What an upload did.

    Attributes:
        documents: N, all of them in the engine.
        sent: by this call; the others were there.
        recall: share of the exact best 10 of some documents' own encodings that a search as users make it found.
    """

    documents: int
    sent: int
    recall: float


def upload(text: str, blocks: Iterable[Block], facts: Facts, progress: Callable[[int], None] | None = None) -> Uploaded:
    """Fills the collection at an address; what is there already of the same upload is not sent again.

    Args:
        text: the address.
        blocks: all N documents in the order of their rows, in blocks of any size.
        facts: whose they are.
        progress: called with the number of documents just done (those that were there included).

    Raises:
        ConfigError: the address is wrong, or the engine cannot keep such encodings.
        SearchIndexError: the engine does not answer, holds something else under that name, or finds other scores than the exact ones.
        DataError: a field has values of several kinds.
    """
    address = parse_address(text)
    if address.engine == "milvus":
        check_kind(facts, address)
    engine = connect(address, create=True)
    try:
        _claim(engine, address, facts)
        stream = _Stream(engine, address, facts)
        sent = 0
        for done, new in _send(engine, stream.batches(blocks)):
            sent += new
            if progress:
                progress(done)
        count = engine.count()
        if not stream.rows == count == facts.documents:
            raise SearchIndexError(f"{address}: {stream.rows:,} documents were given, {count:,} are there, and there should be {facts.documents:,}")
        engine.settle()
        recall = stream.comparison.recall(RemoteIndex(address, engine, facts, stream.kinds))
        engine.note(FIELDS, stream.kinds)
        return Uploaded(count, sent, recall)
    finally:
        engine.close()


def _claim(engine: Engine, address: Address, facts: Facts) -> None:
    """Makes the collection, or recognises the one that an upload of the same encodings began."""
    if engine.notes() is None:
        engine.create(facts)
        return
    found, _ = read_facts(engine, address)
    different = [field.name for field in dataclasses.fields(Facts) if getattr(found, field.name) != getattr(facts, field.name)]
    if different:
        name = different[0]
        raise SearchIndexError(
            f"{address}: holds another upload, of {name} {getattr(found, name)} and not {getattr(facts, name)}. Give another name, or delete that collection"
        )


class _Stream:
    """The documents on their way: which rows they have, what kinds of fields, and what their exact scores are."""

    def __init__(self, engine: Engine, address: Address, facts: Facts) -> None:
        self.engine = engine
        self.address = address
        self.facts = facts
        self.rows = 0
        self.kinds: dict[str, Kind] = {}
        self.comparison = Comparison(address)
        self._began_before = engine.count() > 0

    def batches(self, blocks: Iterable[Block]) -> Iterator[_Batch]:
        """What is to be sent, in requests of a size that engines take."""
        for documents, encodings in blocks:
            if len(documents) != len(encodings):
                raise SearchIndexError(f"{self.address}: a block has {len(documents)} documents and {len(encodings)} encodings")
            check_encodings(str(self.address), encodings, self.facts, "a document")
            for start in range(0, len(documents), PIECE):
                end = min(start + PIECE, len(documents))
                yield from self._piece(documents[start:end], encodings[np.arange(start, end)])

    def _piece(self, documents: Sequence[Document], encodings: Encoding) -> Iterator[_Batch]:
        first, self.rows = self.rows, self.rows + len(documents)
        if self.rows > self.facts.documents:
            raise SearchIndexError(f"{self.address}: more documents were given than the {self.facts.documents:,} that there should be")
        self._look_at_fields(documents)
        self.comparison.see(first, encodings)
        there = self.engine.present(first, self.rows) if self._began_before else set()
        missing = [place for place in range(len(documents)) if first + place not in there]
        yield _Batch([], [], encodings, len(documents) - len(missing))
        sizes = [NUMBER_BYTES * size + 2 * len(documents[place].text) for place, size in enumerate(_numbers(encodings).tolist())]
        for places in _packed(missing, sizes):
            yield _Batch([first + place for place in places], [documents[place] for place in places], encodings[np.array(places)], len(places))

    def _look_at_fields(self, documents: Sequence[Document]) -> None:
        for document in documents:
            for name, value in document.fields.items():
                kind = kind_of(value)
                if kind is None or self.kinds.setdefault(name, kind) != kind:
                    raise DataError(f'document {document.doc_id}: the field "{name}" is {value!r:.60}, in documents before it is a {self.kinds.get(name)}')


@dataclasses.dataclass(frozen=True)
class _Batch:
    """One request: rows, their documents and encodings; and how many documents are done with it. Without rows nothing is sent."""

    rows: list[int]
    documents: list[Document]
    encodings: Encoding
    done: int


def _numbers(encodings: Encoding) -> NDArray[np.int64]:
    """[n], how many numbers each document's encoding has."""
    if not isinstance(encodings, Ragged):
        return np.full(len(encodings), encodings.shape[1], dtype=np.int64)
    width = encodings.columns["vectors"].shape[1] if "vectors" in encodings.columns else 2
    return encodings.counts * width


def _packed(places: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """The places in lists of about `REQUEST_BYTES`, each of at least one."""
    packed: list[int] = []
    size = 0
    for place in places:
        if packed and size + sizes[place] > REQUEST_BYTES:
            yield packed
            packed, size = [], 0
        packed.append(place)
        size += sizes[place]
    if packed:
        yield packed


def _send(engine: Engine, batches: Iterator[_Batch]) -> Iterator[tuple[int, int]]:
    """Documents done and documents sent, batch by batch; a failure stops what has not begun."""
    if engine.workers == 1:
        yield from (_write(engine, batch) for batch in batches)
        return
    waiting: collections.deque[concurrent.futures.Future[tuple[int, int]]] = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(engine.workers)
    try:
        for batch in batches:
            waiting.append(pool.submit(_write, engine, batch))
            if len(waiting) > 2 * engine.workers:  # no more encodings are read than wait to be sent
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write(engine: Engine, batch: _Batch) -> tuple[int, int]:
    if batch.rows:
        for pause in PAUSES:
            try:
                engine.write(batch.rows, batch.documents, batch.encodings)
                break
            except SearchIndexError:
                time.sleep(pause)
        else:
            engine.write(batch.rows, batch.documents, batch.encodings)
    return batch.done, len(batch.rows)
