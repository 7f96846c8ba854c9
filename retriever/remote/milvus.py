"""A collection in Milvus: dense or sparse vectors."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from retriever.encodings import Encoding
from retriever.errors import ConfigError, MissingExtraError, SearchIndexError
from retriever.ragged import Ragged
from retriever.remote.addresses import KEYS, Address
from retriever.remote.engine import EXACT_DOCUMENTS, FACTS, Facts, Point, Wanted
from retriever.types import Document

FIRST_ANSWER_SECONDS = 5.0
"""How long a first sign of life may take."""

ANSWER_SECONDS = 120.0
"""How long any other answer may take."""

TEXT_BYTES = 65_535
"""The longest text that Milvus keeps in one piece."""

PIECES = 4_096
"""Of a document's text at most."""

_SILENT = ("server unavailable", "connecting to server", "deadline exceeded", "timeout")


def connect(address: Address) -> MilvusEngine:
    """The collection at an address.

    Raises:
        SearchIndexError: nobody answers there, or the token is wrong.
    """
    try:
        import pymilvus
    except ImportError as error:
        raise MissingExtraError("pymilvus", "milvus") from error
    for name in ("pymilvus", "pymilvus.milvus_client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # it prints each failure that it also raises
    with _answers(address):
        client = pymilvus.MilvusClient(str(address.place), token=address.key or "", timeout=FIRST_ANSWER_SECONDS)
        version = str(client.get_server_version(timeout=FIRST_ANSWER_SECONDS))
    return MilvusEngine(address, client, 1 if "lite" in version else 4)


class MilvusEngine:
    """A collection in Milvus, one entity for each document; its primary key is the document's row."""

    def __init__(self, address: Address, client: Any, workers: int) -> None:
        self.address = address
        self.client = client
        self._workers = workers
        self._facts: Facts | None = None

    @property
    def workers(self) -> int:
        """Milvus Lite takes one writer."""
        return self._workers

    def notes(self) -> dict[str, Any] | None:
        """From the collection's properties."""
        with _answers(self.address):
            if not self.client.has_collection(self.address.collection, timeout=ANSWER_SECONDS):
                return None
            properties = self.client.describe_collection(self.address.collection, timeout=ANSWER_SECONDS).get("properties") or {}
        return {name: json.loads(value) for name, value in properties.items() if name.startswith("retriever_")}

    def create(self, facts: Facts) -> None:
        """One vector field compared by inner product: by all vectors or a graph (dense), or by an inverted index (sparse).

        Raises:
            ConfigError: of a late-interaction student, whose tokens Milvus cannot compare.
        """
        from pymilvus import DataType, MilvusClient

        check_kind(facts, self.address)
        text = {"element_type": DataType.VARCHAR, "max_capacity": PIECES, "max_length": TEXT_BYTES}
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row", DataType.INT64, is_primary=True)
        schema.add_field("doc_id", DataType.VARCHAR, max_length=TEXT_BYTES)
        schema.add_field("title", DataType.ARRAY, **text)
        schema.add_field("text", DataType.ARRAY, **text)
        schema.add_field("fields", DataType.JSON)
        index = MilvusClient.prepare_index_params()
        if facts.student_kind == "sparse":
            schema.add_field("vector", DataType.SPARSE_FLOAT_VECTOR)
            index.add_index("vector", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
        else:
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=facts.dimensions)
            graph = {"index_type": "HNSW", "params": {"M": 32, "efConstruction": 100}}
            index.add_index("vector", metric_type="IP", **({"index_type": "FLAT"} if facts.documents <= EXACT_DOCUMENTS else graph))
        properties = {FACTS: json.dumps(vars(facts))}
        with _answers(self.address):
            self.client.create_collection(
                self.address.collection, schema=schema, index_params=index, properties=properties, consistency_level="Bounded", timeout=ANSWER_SECONDS
            )

    def note(self, name: str, value: Mapping[str, Any]) -> None:
        """Into the collection's properties."""
        with _answers(self.address):
            self.client.alter_collection_properties(self.address.collection, {name: json.dumps(value)}, timeout=ANSWER_SECONDS)

    def count(self) -> int:
        """Entities in it."""
        return int(self._query("", ["count(*)"])[0]["count(*)"])

    def present(self, start: int, end: int) -> set[int]:
        """The primary keys that are there."""
        return {int(entity["row"]) for entity in self._query(f"row >= {start} and row < {end}", ["row"])}

    def write(self, rows: Sequence[int], documents: Sequence[Document], encodings: Encoding) -> None:
        """One request."""
        entities = [
            {
                "row": int(row),
                "doc_id": document.doc_id,
                "title": _pieces(document.title),
                "text": _pieces(document.text),
                "fields": {name: value for name, value in document.fields.items() if value not in ([], ())},  # an empty list meets no condition
                "vector": vector,
            }
            for row, document, vector in zip(rows, documents, _vectors(encodings, self._dimensions), strict=True)
        ]
        with _answers(self.address):
            self.client.upsert(self.address.collection, entities, timeout=ANSWER_SECONDS)

    def settle(self) -> None:
        """Flushes what was written."""
        with _answers(self.address):
            self.client.flush(self.address.collection, timeout=ANSWER_SECONDS)

    def search(self, queries: Encoding, k: int, wanted: Sequence[Wanted], exact: bool) -> list[list[Point]]:
        """One request; a graph is walked wider than k documents need."""
        dense = not isinstance(queries, Ragged)
        with _answers(self.address):
            answers = self.client.search(
                self.address.collection,
                _vectors(queries, self._dimensions),
                filter=expression(wanted),
                limit=k,
                output_fields=["row", "doc_id", "title", "text", "fields"],
                search_params={"metric_type": "IP", "params": {"ef": max(2 * k, 128)} if dense else {}},
                anns_field="vector",
                consistency_level="Strong" if exact else "Bounded",
                timeout=ANSWER_SECONDS,
            )
        return [[Point(int(hit["row"]), float(hit["distance"]), _document(hit["entity"])) for hit in answer] for answer in answers]

    def close(self) -> None:
        """Ends the connection."""
        self.client.close()

    @property
    def _dimensions(self) -> int:
        if self._facts is None:
            self._facts = Facts(**(self.notes() or {})[FACTS])
        return self._facts.dimensions

    def _query(self, condition: str, fields: list[str]) -> list[dict[str, Any]]:
        with _answers(self.address):
            found = self.client.query(self.address.collection, filter=condition, output_fields=fields, consistency_level="Strong", timeout=ANSWER_SECONDS)
        return list(found)


def check_kind(facts: Facts, address: Address) -> None:
    """Refuses a student whose encodings Milvus cannot compare.

    Raises:
        ConfigError: it is a late-interaction student.
    """
    if facts.student_kind == "late_interaction":
        raise ConfigError(
            f"{address}: Milvus compares no token vectors by MaxSim; it keeps dense and sparse encodings. Upload to qdrant://, which keeps all three"
        )


def expression(wanted: Sequence[Wanted]) -> str:
    """What Milvus filters by. Its templates with parameters are unknown to Milvus Lite, so values are written as literals, escaped.

    Both lexers end a text at its quotation mark or a line break and know the escapes used here; every other character stands for itself.
    """
    return " and ".join(f"({_condition(one)})" for one in wanted)


def _condition(one: Wanted) -> str:
    path = f'fields["{one.field}"]'
    literals = [_literal(value) for value in one.values]
    equal = " or ".join(f"json_contains({path}, {literal})" if one.kind == "texts" else f"{path} == {literal}" for literal in literals)
    if one.comparison in ("=", "in"):
        return equal
    return f"exists {path} and not ({equal})" if one.comparison == "!=" else f"{path} {one.comparison} {literals[0]}"


def _literal(value: float | bool | str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    escaped = value.translate({ord("\\"): r"\\", ord('"'): r"\"", ord("\n"): r"\n", ord("\r"): r"\r", ord("\t"): r"\t"})
    return f'"{escaped}"'


def _vectors(encodings: Encoding, dimensions: int) -> list[Any]:
    """As the client takes them: numbers, or values by dimension."""
    if not isinstance(encodings, Ragged):
        return list(encodings.astype(np.float32, copy=False).tolist())
    pairs = [
        zip(encodings.columns["dimensions"][start:end].tolist(), encodings.columns["values"][start:end].tolist(), strict=True)
        for start, end in zip(encodings.offsets[:-1], encodings.offsets[1:], strict=True)
    ]
    return [dict(some) or {dimensions: 1.0} for some in pairs]  # Milvus refuses empty vectors; no query has this dimension


def _pieces(text: str) -> list[str]:
    """The text, cut where a piece would be too long, and never inside a character."""
    encoded, pieces = text.encode(), []
    while encoded:
        piece = encoded[:TEXT_BYTES].decode(errors="ignore")
        pieces.append(piece)
        encoded = encoded[len(piece.encode()) :]
    return pieces


def _document(entity: Mapping[str, Any]) -> Document:
    return Document(entity["doc_id"], "".join(entity["text"]), "".join(entity["title"]), fields=entity["fields"] or {})


@contextlib.contextmanager
def _answers(address: Address) -> Iterator[None]:
    """Turns what the client raises into one line."""
    import grpc
    from pymilvus.exceptions import MilvusException, MilvusUnavailableException

    try:
        yield
    except (MilvusException, grpc.RpcError) as error:
        said = " ".join(str(getattr(error, "message", error)).split())[:300]
        if isinstance(error, MilvusUnavailableException) or any(words in said.lower() for words in _SILENT):
            raise SearchIndexError(f"{address}: Milvus does not answer ({said}). Start it, or mend the address") from error
        if "unauthenticated" in said.lower() or "auth check" in said.lower():
            raise SearchIndexError(f"{address}: Milvus refuses the token. Put the right one into {KEYS['milvus']}") from error
        raise SearchIndexError(f"{address}: Milvus refuses the request ({said})") from error
