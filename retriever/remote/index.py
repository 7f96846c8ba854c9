"""Searching a collection that an engine keeps, as an index on disk is searched."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retriever.encodings import Encoding
from retriever.errors import ConfigError, SearchIndexError
from retriever.filters import Condition
from retriever.ragged import Ragged
from retriever.remote import milvus, qdrant
from retriever.remote.addresses import Address, parse_address
from retriever.remote.engine import EXACT_DOCUMENTS, FACTS, FIELDS, LAYOUT, Engine, Facts, Point, check_encodings, wanted_of
from retriever.tables.fields import Kind

TOGETHER = 2_000
"""Documents asked for in one request: their texts come back with it."""


@dataclasses.dataclass(frozen=True)
class RemoteIndex:
    """A whole collection in an engine.

    Attributes:
        address: where.
        engine: the connection.
        facts: whose encodings it holds.
        kinds: of the documents' fields.
    """

    address: Address
    engine: Engine
    facts: Facts
    kinds: Mapping[str, Kind]

    def __len__(self) -> int:
        """N, the number of documents."""
        return self.facts.documents

    @property
    def dimensions(self) -> int:
        """D of a vector or of a token's vector, the vocabulary's size for sparse entries."""
        return self.facts.dimensions

    def search(self, queries: Encoding, k: int, filter: Sequence[Condition] = (), exact: bool | None = None) -> list[list[Point]]:
        """The best documents of each query, best first, of equal ones the first rows first.

        A document without a term of a sparse query is not found, as in the local index; nor is one without tokens, which the local one puts last.

        Args:
            queries: of B queries.
            k: documents a query at most.
            filter: all of which a document must meet.
            exact: compares all documents, where the engine can; when left out, those of a collection of at most `EXACT_DOCUMENTS`.

        Raises:
            SearchIndexError: the queries have another dimension, are not finite, or the engine does not answer.
            ConfigError: the fields cannot answer the filter.
        """
        check_encodings(str(self.address), queries, self.facts, "a query")
        wanted = wanted_of(filter, self.kinds, str(self.address))
        found: list[list[Point]] = [[] for _ in range(len(queries))]
        k = min(k, len(self))
        if k <= 0 or any(not one.values for one in wanted):
            return found
        asked = np.flatnonzero(queries.counts > 0) if isinstance(queries, Ragged) else np.arange(len(queries))
        exactly = len(self) <= EXACT_DOCUMENTS if exact is None else exact
        step = max(1, TOGETHER // k)
        for start in range(0, len(asked), step):
            numbers = asked[start : start + step]
            for number, points in zip(numbers, self.engine.search(queries[numbers], k, wanted, exactly), strict=True):
                kept = [point for point in points if point.score > 0] if self.facts.student_kind == "sparse" else points
                found[number] = sorted(kept, key=lambda point: (-point.score, point.row))
        return found

    def close(self) -> None:
        """Ends the connection."""
        self.engine.close()


def open_remote(text: str, encoder: str | None = None) -> RemoteIndex:
    """The collection at an address.

    Args:
        text: the address.
        encoder: the `document_identity` of the student that encodes the queries; not compared when left out.

    Raises:
        ConfigError: the address is wrong.
        SearchIndexError: the engine does not answer, has no such collection or half of one, or it was made by another student.
        MissingExtraError: the engine's client is not installed.
    """
    address = parse_address(text)
    engine = connect(address, create=False)
    try:
        facts, notes = read_facts(engine, address)
        if encoder is not None and encoder != facts.encoder:
            raise SearchIndexError(f"{address}: was made with the student {facts.encoder}, and the queries' student is {encoder}. Search with that student")
        count = engine.count()
        if FIELDS not in notes or count != facts.documents:
            raise SearchIndexError(f"{address}: {count:,} of {facts.documents:,} documents are uploaded. Run the upload again, it continues")
    except BaseException:
        engine.close()
        raise
    return RemoteIndex(address, engine, facts, notes[FIELDS])


def connect(address: Address, create: bool) -> Engine:
    """The engine at an address; a folder of Qdrant's local mode is made where `create` is true."""
    return qdrant.connect(address, create) if address.engine == "qdrant" else milvus.connect(address)


def read_facts(engine: Engine, address: Address) -> tuple[Facts, dict[str, Any]]:
    """Whose encodings a collection holds, and all its notes.

    Raises:
        SearchIndexError: there is none, or it was made by something else or another version.
    """
    notes = engine.notes()
    if notes is None:
        raise SearchIndexError(f'{address}: there is no collection "{address.collection}". Upload one first')
    facts = notes.get(FACTS)
    if not isinstance(facts, dict):
        raise SearchIndexError(f'{address}: the collection "{address.collection}" was made by something else. Give another name')
    if facts.get("layout") != LAYOUT:
        raise SearchIndexError(f"{address}: has layout {facts.get('layout')}, this version reads {LAYOUT}. Give another name, and upload again")
    try:
        return Facts(**facts), notes
    except (TypeError, ConfigError) as error:
        raise SearchIndexError(f"{address}: its notes are damaged ({error}). Give another name, and upload again") from error
