"""The queries of a collection in one Parquet file: written once in a stream, read when asked for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Container, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retriever.errors import ConfigError, DataError
from retriever.filters import check_conditions, conditions_from
from retriever.tables.documents import DocumentTable, framed, image_hash
from retriever.types import Query, Turn, check_id

QUERIES = "queries.parquet"
_BATCH_ROWS = 10_000
_QUERIES = pa.schema([(name, pa.string()) for name in ("query_id", "text", "turns", "image", "conversation", "rewrites", "fields", "among")])


@dataclasses.dataclass(frozen=True)
class WrittenQueries:
    """What queries were written: their ids, how many are images without a text, and the conditions they have, each with where it stands first."""

    query_ids: set[str]
    images: int
    among: Mapping[str, str]


def write_query_table(path: Path, queries: Iterator[tuple[str, Query]]) -> WrittenQueries:
    """Writes the queries in batches."""
    places: dict[str, str] = {}
    among: dict[str, str] = {}
    images = 0

    def rows() -> Iterator[dict[str, str | None]]:
        nonlocal images
        for where, query in queries:
            _check_query(where, query)
            if query.query_id in places:
                raise DataError(f"{where}: the query id {query.query_id} stands already at {places[query.query_id]}. Ids must be unique")
            places[query.query_id] = where
            images += query.image is not None and not query.text.strip()
            if query.among:
                among.setdefault(_json(query.among), where)
            yield row_of_query(query)

    remaining = rows()
    with pq.ParquetWriter(path, _QUERIES) as writer:
        while batch := list(islice(remaining, _BATCH_ROWS)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=_QUERIES))
    return WrittenQueries(set(places), images, among)


def refuse_unknown_fields(asked: WrittenQueries, table: DocumentTable) -> None:
    """Sees to it that the documents' fields can answer the conditions of the queries."""
    for conditions, where in asked.among.items():
        try:
            check_conditions(table.fields.kinds, conditions_from(json.loads(conditions)), f"{where}: among")
        except ConfigError as error:
            raise DataError(str(error)) from error


def read_query_table(path: Path, wanted: Container[str] | None = None) -> Iterator[Query]:
    """The queries of a file in their order: those whose ids are wanted, or all."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS):
            yield from (query_of_row(row) for row in batch.to_pylist() if wanted is None or row["query_id"] in wanted)


def row_of_query(query: Query) -> dict[str, str | None]:
    """A query as a row of texts, which `query_of_row` takes."""
    return {
        "query_id": query.query_id,
        "text": query.text,
        "turns": _turns_json(query),
        "image": None if query.image is None else str(query.image),
        "conversation": query.conversation,
        "rewrites": _json(query.rewrites),
        "fields": _json(query.fields),
        "among": _json(query.among),
    }


def query_of_row(row: Mapping[str, Any]) -> Query:
    """The query of a row."""
    turns, rewrites, fields, among = (_from_json(row[name]) for name in ("turns", "rewrites", "fields", "among"))
    said = tuple(Turn(**turn) for turn in turns)
    return Query(row["query_id"], row["text"], said, None if row["image"] is None else Path(row["image"]), row["conversation"], rewrites, fields, among)


def query_bytes(query: Query) -> bytes:
    """All that a query is, as a fingerprint takes it; what it does not have takes no part."""
    found = framed(query.query_id, id=query.query_id, text=query.text, turns=_turns_json(query), image=image_hash(query.query_id, query.image))
    if query.conversation or query.rewrites or query.fields:
        found += framed(query.query_id, conversation=query.conversation, rewrites=_json(query.rewrites), fields=_json(query.fields))
    return found + (framed(query.query_id, among=_json(query.among)) if query.among else b"")


def _check_query(where: str, query: Query) -> None:
    check_id(query.query_id, where)
    turns = {f"text of turn {number}": turn.text for number, turn in enumerate(query.turns, 1)}
    rewrites = {f"rewrite {rewriter}": rewrite for rewriter, rewrite in query.rewrites.items()}
    framed(where, id=query.query_id, text=query.text, image=image_hash(where, query.image), conversation=query.conversation, **turns, **rewrites)
    if not query.text.strip() and query.image is None:
        raise DataError(f"{where}: the query {query.query_id} is empty. Give it a text, or leave it out together with its qrels")


def _from_json(text: str) -> Any:
    """The value of a JSON text; most are empty."""
    return {} if text in ("{}", "[]") else json.loads(text)


def _turns_json(query: Query) -> str:
    return json.dumps([dataclasses.asdict(turn) for turn in query.turns], ensure_ascii=False)


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), ensure_ascii=False, sort_keys=True)
