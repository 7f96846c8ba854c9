"""A collection in Qdrant: dense vectors, sparse vectors, or a vector for each token with MaxSim."""

from __future__ import annotations

import contextlib
import datetime
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from retriever.encodings import Encoding
from retriever.errors import ConfigError, MissingExtraError, SearchIndexError
from retriever.ragged import Ragged
from retriever.remote.addresses import KEYS, Address
from retriever.remote.engine import FACTS, Facts, Point, Wanted
from retriever.types import Document

VECTOR = "vector"
FIRST_ANSWER_SECONDS = 5
"""How long a first sign of life may take."""

ANSWER_SECONDS = 120
"""How long any other answer may take."""

_RANGES = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}


def connect(address: Address, create: bool) -> QdrantEngine:
    """The collection at an address.

    Qdrant's local mode keeps its points in a file that it reads with pickle: open only folders that you or your programs wrote.

    Raises:
        SearchIndexError: nobody answers there, or the key is wrong.
    """
    try:
        import qdrant_client
    except ImportError as error:
        raise MissingExtraError("qdrant-client", "qdrant") from error
    if isinstance(address.place, Path):
        if not create and not address.place.is_dir():
            raise SearchIndexError(f"{address}: there is no folder {address.place}. Upload a collection first")
        try:
            return QdrantEngine(address, qdrant_client.QdrantClient(path=str(address.place)))
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, EOFError, sqlite3.Error) as error:
            raise SearchIndexError(f"{address}: the folder cannot be opened ({_line(error)}). Close the program that uses it, or name another") from error

    def client(seconds: int) -> Any:
        return qdrant_client.QdrantClient(url=str(address.place), api_key=address.key, timeout=seconds, check_compatibility=False)

    with contextlib.closing(client(FIRST_ANSWER_SECONDS)) as first, _answers(address):
        first.collection_exists(address.collection)
    return QdrantEngine(address, client(ANSWER_SECONDS))


class QdrantEngine:
    """A collection in Qdrant, one point for each document; its id is the document's row."""

    def __init__(self, address: Address, client: Any) -> None:
        self.address = address
        self.client = client
        self.local = isinstance(address.place, Path)

    @property
    def workers(self) -> int:
        """The local mode writes one file."""
        return 1 if self.local else 4

    def notes(self) -> dict[str, Any] | None:
        """From the collection's metadata."""
        with _answers(self.address):
            if not self.client.collection_exists(self.address.collection):
                return None
            return dict(self.client.get_collection(self.address.collection).config.metadata or {})

    def create(self, facts: Facts) -> None:
        """Named vectors compared by inner product.

        Raises:
            SearchIndexError: the server is too old to keep the facts.
        """
        from qdrant_client import models

        name = self.address.collection
        maxsim = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM) if facts.student_kind == "late_interaction" else None
        dense = {VECTOR: models.VectorParams(size=facts.dimensions, distance=models.Distance.DOT, multivector_config=maxsim)}
        sparse = {VECTOR: models.SparseVectorParams()}
        vectors: dict[str, Any] = {"sparse_vectors_config": sparse} if facts.student_kind == "sparse" else {"vectors_config": dense}
        with _answers(self.address):
            self.client.create_collection(name, metadata={FACTS: vars(facts)}, **vectors)
            if self.notes() != {FACTS: vars(facts)}:  # servers before 1.16 leave it out in silence
                self.client.delete_collection(name)
                raise SearchIndexError(f"{self.address}: this Qdrant keeps no metadata of a collection. Use Qdrant 1.16 or newer")

    def note(self, name: str, value: Mapping[str, Any]) -> None:
        """Into the collection's metadata."""
        with _answers(self.address):
            self.client.update_collection(self.address.collection, metadata={name: dict(value)})

    def count(self) -> int:
        """Points in it."""
        with _answers(self.address):
            return int(self.client.count(self.address.collection, exact=True).count)

    def present(self, start: int, end: int) -> set[int]:
        """The ids that are there."""
        with _answers(self.address):
            records = self.client.retrieve(self.address.collection, list(range(start, end)), with_payload=False, with_vectors=False)
        return {int(record.id) for record in records}

    def write(self, rows: Sequence[int], documents: Sequence[Document], encodings: Encoding) -> None:
        """One request. A document without tokens is kept without a vector, and never found."""
        from qdrant_client import models

        vectors = _vectors(encodings)
        points = [
            models.PointStruct(id=row, vector={VECTOR: vector} if vector != [] else {}, payload=_payload(document))
            for row, document, vector in zip(rows, documents, vectors, strict=True)
        ]
        with _answers(self.address):
            self.client.upsert(self.address.collection, points, wait=True)

    def settle(self) -> None:
        """Nothing: each request waits until it is applied."""

    def search(self, queries: Encoding, k: int, wanted: Sequence[Wanted], exact: bool) -> list[list[Point]]:
        """One request. The local mode is always exact, and sparse vectors always are."""
        from qdrant_client import models

        params = None if self.local else models.SearchParams(exact=exact)
        allowed = _filter(wanted, self.address)
        requests = [
            models.QueryRequest(query=vector, using=VECTOR, limit=k, filter=allowed, params=params, with_payload=True) for vector in _vectors(encodings=queries)
        ]
        with _answers(self.address):
            answers = self.client.query_batch_points(self.address.collection, requests)
        return [[Point(int(point.id), float(point.score), _document(point.payload)) for point in answer.points] for answer in answers]

    def close(self) -> None:
        """Frees the folder of the local mode."""
        self.client.close()


def _vectors(encodings: Encoding) -> list[Any]:
    """As the client takes them: numbers, indices with values, or lists of numbers."""
    from qdrant_client import models

    if not isinstance(encodings, Ragged):
        return list(encodings.tolist())
    ranges = [slice(start, end) for start, end in zip(encodings.offsets[:-1], encodings.offsets[1:], strict=True)]
    if "vectors" in encodings.columns:
        return [encodings.columns["vectors"][some].tolist() for some in ranges]
    dimensions, values = encodings.columns["dimensions"], encodings.columns["values"]
    return [models.SparseVector(indices=dimensions[some].tolist(), values=values[some].tolist()) for some in ranges]


def _payload(document: Document) -> dict[str, Any]:
    return {"doc_id": document.doc_id, "title": document.title, "text": document.text, "fields": dict(document.fields)}


def _document(payload: Mapping[str, Any]) -> Document:
    return Document(payload["doc_id"], payload["text"], payload["title"], fields=payload["fields"])


def _filter(wanted: Sequence[Wanted], address: Address) -> Any:
    from qdrant_client import models

    conditions: list[Any] = []
    for one in wanted:
        key = f"fields.{one.field}"
        if one.comparison in _RANGES:
            conditions.append(models.FieldCondition(key=key, range=_range(one, address)))
            continue
        equal: list[Any] = [_equal(key, value) for value in one.values]
        if one.comparison == "!=":
            equal.append(models.IsEmptyCondition(is_empty=models.PayloadField(key=key)))
            conditions.append(models.Filter(must_not=equal))
        else:
            conditions.append(models.Filter(should=equal))
    return models.Filter(must=conditions) if conditions else None


def _equal(key: str, value: float | bool | str) -> Any:
    """Qdrant matches whole numbers and texts by their type; a range takes 3 and 3.0 for the same."""
    from qdrant_client import models

    if isinstance(value, bool | str):
        return models.FieldCondition(key=key, match=models.MatchValue(value=value))
    return models.FieldCondition(key=key, range=models.Range(gte=value, lte=value))


def _range(one: Wanted, address: Address) -> Any:
    from qdrant_client import models

    (value,) = one.values
    if not isinstance(value, str):
        return models.Range(**{_RANGES[one.comparison]: value})
    try:
        moment = datetime.datetime.fromisoformat(value)
    except ValueError as error:
        raise ConfigError(
            f"{address}: Qdrant orders numbers and dates such as 2024-05-31, not other texts, found {one.field} {one.comparison} {value!r}"
        ) from error
    return models.DatetimeRange(**{_RANGES[one.comparison]: moment})


@contextlib.contextmanager
def _answers(address: Address) -> Iterator[None]:
    """Turns what the client raises into one line."""
    from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    try:
        yield
    except ResponseHandlingException as error:
        raise SearchIndexError(f"{address}: Qdrant does not answer ({_line(error.source)}). Start it, or mend the address") from error
    except UnexpectedResponse as error:
        if error.status_code in (401, 403):
            raise SearchIndexError(f"{address}: Qdrant refuses the key (status {error.status_code}). Put the right one into {KEYS['qdrant']}") from error
        raise SearchIndexError(f"{address}: Qdrant refuses the request (status {error.status_code}: {error.content[:200]!r})") from error
    except ResourceExhaustedResponse as error:
        raise SearchIndexError(f"{address}: Qdrant is busy ({_line(error)}). Run the same command again later") from error
    except sqlite3.Error as error:
        raise SearchIndexError(f"{address}: the folder is damaged or full ({_line(error)})") from error


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
