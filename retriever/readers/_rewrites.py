"""Rewrites in files of their own: rewrites/NAME.jsonl or rewrites/NAME.tsv beside the queries holds those of the rewriter NAME."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from retriever.errors import DataError
from retriever.readers import _records, _text
from retriever.types import Query

_ENDINGS = (".jsonl", ".jsonl.gz", ".tsv", ".tsv.gz")


def files(folder: Path) -> list[Path]:
    """The files of rewrites beside the queries in a folder."""
    inside = folder / "rewrites"
    return sorted(path for path in inside.iterdir() if path.name.endswith(_ENDINGS)) if inside.is_dir() else []


def added(folder: Path, queries: Iterator[tuple[str, Query]]) -> Iterator[tuple[str, Query]]:
    """Queries with the rewrites of the files beside them.

    Raises:
        DataError: a rewrite is for no query, for one that has it already, or stands twice.
    """
    rewriters = _read(folder)
    left = {(name, query_id): where for name, rewrites in rewriters.items() for query_id, (where, _) in rewrites.items()}
    for where, query in queries:
        own = {name: rewrites[query.query_id] for name, rewrites in rewriters.items() if query.query_id in rewrites}
        for name, (place, _) in own.items():
            left.pop((name, query.query_id), None)
            if name in query.rewrites:
                raise DataError(f'{place}: the query {query.query_id} has a rewrite by "{name}" already ({where}). Name the file after another rewriter')
        texts = {name: text for name, (_, text) in own.items() if text.strip()}
        yield where, dataclasses.replace(query, rewrites={**query.rewrites, **texts}) if texts else query
    if left:
        (name, query_id), where = next(iter(left.items()))
        raise DataError(f'{where}: the rewrite by "{name}" is for the query {query_id}, which is not there ({len(left)} such rewrites). Take it out')


def _read(folder: Path) -> dict[str, dict[str, tuple[str, str]]]:
    """Rewriter -> query id -> where the rewrite stands, and the rewrite ("" for none)."""
    rewriters: dict[str, dict[str, tuple[str, str]]] = {}
    for path in files(folder):
        rewrites = rewriters.setdefault(path.name.removesuffix(".gz").rpartition(".")[0], {})
        for where, query_id, text in _lines(path):
            if query_id in rewrites:
                raise DataError(f"{where}: a rewrite for the query {query_id} stands already at {rewrites[query_id][0]}. Keep one of the two")
            rewrites[query_id] = where, text
    return rewriters


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    if path.name.removesuffix(".gz").endswith(".tsv"):
        yield from ((where, query_id, text) for where, (query_id, text) in _text.columns(path, {2: "id, rewrite"}))
    else:
        yield from ((where, *_records.rewrite(where, record)) for where, record in _text.json_lines(path))
