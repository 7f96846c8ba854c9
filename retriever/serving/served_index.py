"""An index folder that is served: every request is answered by the newest version, which is opened when there is one."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import Encoder
from retriever.errors import RetrieverError
from retriever.filters import Condition, check_conditions
from retriever.index.snapshot import Snapshot
from retriever.ragged import Ragged, joined
from retriever.search import open_index
from retriever.serving.cache import RecentValues
from retriever.serving.encoder_thread import Asked, EncoderThread, Found, in_groups
from retriever.serving.settings import Place, ServeSettings
from retriever.serving.shared_encoder import SharedEncoder, shared_encoder
from retriever.serving.timing import Stopwatch
from retriever.tables.fields import Kind
from retriever.types import Document, Query

_LOG = logging.getLogger("retriever.serving")
_AGAIN_SECONDS = 1.0
"""After which a version that could not be served is tried again."""

_PATIENCE = 60
"""Times as long as the last try took: requests wait for a try, and one that ends with an export takes many seconds."""

_ENTRY = 300
"""Bytes that a remembered value takes beside its arrays and texts."""


@dataclasses.dataclass(frozen=True)
class IndexView:
    """A version of an index.

    Attributes:
        snapshot: of which the encoder works in the encoder thread.
        encoder: the same one.
        encoded: queries' encodings, by student and query; other versions share it.
        answered: rows and scores of this version alone.
    """

    snapshot: Snapshot
    encoder: SharedEncoder
    encoded: RecentValues[Any]
    answered: RecentValues[tuple[NDArray[np.int64], NDArray[np.float32]]]
    stages: tuple[str, ...] = ()

    @property
    def version(self) -> int:
        """Its number."""
        return self.snapshot.version.number

    @property
    def documents(self) -> int:
        """How many can be found."""
        return len(self.snapshot)

    @cached_property
    def fields(self) -> Mapping[str, Kind]:
        """What the values of documents' fields are."""
        return self.snapshot.field_kinds

    def check(self, conditions: Sequence[Condition]) -> None:
        """Refuses conditions that the documents cannot answer."""
        check_conditions(self.fields, conditions, "filter")

    def remembered(self, asked: Asked) -> Found | None:
        """What was found when the same was asked of this version."""
        found = self.answered.get(_key(asked))
        return None if found is None else self._found(*found, {"encode": 0.0, "search": 0.0})

    def answer(self, asked: Sequence[Asked]) -> list[Found]:
        """Encodes all together, and searches together what has the same depth and conditions."""
        watch = Stopwatch()
        vectors = self._encoded([one.query for one in asked])
        watch.lap("encode")

        def search(places: list[int]) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
            one = asked[places[0]]
            return list(zip(*self.snapshot.search(vectors[np.array(places)], one.k, one.conditions), strict=True))

        found = in_groups(asked, lambda one: (one.k, one.conditions), search)
        watch.lap("search")
        for one, (rows, scores) in zip(asked, found, strict=True):
            self.answered.put(_key(one), (rows, scores), rows.nbytes + scores.nbytes + _size(one.query, one.conditions))
        return [self._found(rows, scores, watch.milliseconds) for rows, scores in found]

    def standings(self, query: Query, doc_id: str) -> tuple[()]:
        """None: it searches in one go."""
        return ()

    def document(self, doc_id: str) -> Document | None:
        """The document of an id."""
        row = int(self.snapshot.rows_of([doc_id])[0])
        return None if row < 0 else self.snapshot.documents_by_row([row])[0]

    def _encoded(self, queries: Sequence[Query]) -> Any:
        """The encodings of queries; each that is not remembered is encoded once."""
        keys = [(self.encoder.own.identity, query.text, query.turns, query.image) for query in queries]
        asked = dict(zip(keys, queries, strict=True))
        known = {key: self.encoded.get(key) for key in asked}
        if missing := [key for key, encoding in known.items() if encoding is None]:
            made = self.encoder.own.encode_queries([asked[key] for key in missing])
            for number, key in enumerate(missing):
                known[key] = own = made[np.array([number])]
                arrays = own.columns.values() if isinstance(own, Ragged) else (own,)
                self.encoded.put(key, own, sum(array.nbytes for array in arrays) + _size(asked[key]))
        return joined([known[key] for key in keys])

    def _found(self, rows: NDArray[np.int64], scores: NDArray[np.float32], milliseconds: Mapping[str, float]) -> Found:
        return Found(scores.tolist(), lambda: self.snapshot.documents_by_row(rows), milliseconds)


class ServedIndex:
    """An index folder under a name.

    Attributes:
        name: by which requests name it.
        folder: where it lies, absolute: a relative path, such as "index" or ".", would be found in the words of any message.
        behind: whether the newest version could not be served when it was tried last.
    """

    kind = "index"

    def __init__(self, place: Place, settings: ServeSettings, thread: EncoderThread) -> None:
        self.name = place.name
        self._place = place
        self._settings = settings
        self._thread = thread
        self._index = open_index(Path(place.where).absolute(), settings.student)
        self.folder = self._index.folder
        self._cache_bytes = settings.limits.cache_bytes
        self._encoded: RecentValues[Any] = RecentValues(self._cache_bytes)
        self._opening = threading.Lock()
        self._tried = self._took = 0.0
        self.behind = False
        self._newest = self._opened = self._index.snapshot
        self._view = self._view_of(self._opened, None)

    @property
    def paths(self) -> Mapping[str, str]:
        """The folder, under the index's name."""
        return {str(self.folder): self.name}

    def fresh(self) -> IndexView | None:
        """The newest version, where it is open."""
        if not self._is_current or self._opening.locked():  # in this order: a version that is just being opened counts as current already
            return None
        return self._view

    def reopened(self) -> IndexView:
        """The newest version. One that cannot be opened, or whose student does not suit, is told in the log, and the one before answers on."""
        with self._opening:
            if self._is_current or self._was_just_tried:
                return self._view
            begun = time.monotonic()
            try:
                self._newest = self._index.snapshot
                if self._newest is not self._opened:
                    self._view = self._view_of(self._newest, self._view)
                    self._opened = self._newest
                self.behind = False
            except RetrieverError:
                self.behind, self._tried = True, time.monotonic()
                self._took = self._tried - begun
                _LOG.exception("%s: the new version cannot be served; the one before is served on", self.name)
            return self._view

    def close(self) -> None:
        """Nothing: files are only mapped."""

    @property
    def _is_current(self) -> bool:
        """Whether the view is of the newest version. One that was opened and cannot be served is current for the index alone."""
        return self._index.is_current and self._newest is self._opened

    @property
    def _was_just_tried(self) -> bool:
        """Whether it is too early to try again; what has come since the last try waits for no longer than `_AGAIN_SECONDS`."""
        pause = max(_AGAIN_SECONDS, _PATIENCE * self._took) if self._index.is_current else _AGAIN_SECONDS
        return time.monotonic() - self._tried < pause

    def _view_of(self, snapshot: Snapshot, before: IndexView | None) -> IndexView:
        """A new view; its encoder is the one before where the student is."""
        own = snapshot.encoder
        if before is not None and before.encoder.own is own:
            encoder = before.encoder
        else:
            encoder = shared_encoder(own, self._thread, self._settings, self._place)
            self._encoded.clear()
        shared: Encoder = encoder
        return IndexView(dataclasses.replace(snapshot, load_encoder=lambda: shared), encoder, self._encoded, RecentValues(self._cache_bytes))


def _key(asked: Asked) -> tuple[Any, ...]:
    return asked.query.text, asked.query.turns, asked.query.image, asked.k, asked.conditions


def _size(query: Query, conditions: Sequence[Condition] = ()) -> int:
    """Bytes that a query takes in a cache, about."""
    values = [value for one in conditions for value in (one.field, *(one.value if isinstance(one.value, tuple) else (one.value,)))]
    texts = [query.text, *(turn.text for turn in query.turns), *map(str, values)]
    return _ENTRY + 2 * sum(len(text) + 50 for text in texts)
