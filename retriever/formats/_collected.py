"""The pairs of a score file in flat arrays, and the run that they make."""

from __future__ import annotations

import contextlib
import dataclasses
from array import array
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retriever.errors import DataError
from retriever.formats import Format, Pair
from retriever.formats._texts import TextWriter
from retriever.runs import Run, strings
from retriever.types import check_id

ROUNDING = 0.01
"""How far the scores of a pair that stands in a file several times may lie apart, relative to the score: sets that were
scored in half precision, batch by batch, repeat a pair with other last digits."""


LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass
class Collected:
    """The pairs of a file, flat: 16 bytes each, for files of ten million lines.

    Attributes:
        queries: query id -> number, in the order of the file.
        documents: doc id -> number.
        query_numbers: of each pair.
        document_numbers: of each pair.
        scores: of each pair, NaN in a file without scores.
        grades: query id -> doc id -> grade.
    """

    queries: dict[str, int] = dataclasses.field(default_factory=dict)
    documents: dict[str, int] = dataclasses.field(default_factory=dict)
    query_numbers: array[int] = dataclasses.field(default_factory=lambda: array("i"))
    document_numbers: array[int] = dataclasses.field(default_factory=lambda: array("i"))
    scores: array[float] = dataclasses.field(default_factory=lambda: array("d"))
    grades: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)


def collect(source: Format, path: Path, folder: Path | None, progress: Callable[[int], None] | None = None) -> Collected:
    """Reads the whole file; texts go to the folder on the way. Progress is told after every million pairs."""
    collected = Collected()
    with TextWriter(folder) if folder else contextlib.nullcontext() as texts:
        for pair in source.read(path):
            _add(collected, pair)
            if texts:
                texts.add(pair)
            if progress and len(collected.scores) % 1_000_000 == 0:
                progress(len(collected.scores))
    return collected


def _add(collected: Collected, pair: Pair) -> None:
    score = float("nan") if pair.score is None else pair.score
    if len(collected.scores) and (pair.score is None) != (collected.scores[0] != collected.scores[0]):
        raise DataError(f"{pair.where}: some pairs of the file have scores and others have none. Give every pair a score, or none")
    if abs(score) > LARGEST:
        raise DataError(f"{pair.where}: the score {pair.score} is beyond what 32 bits hold")
    for numbers, identifier, column in (
        (collected.queries, pair.query_id, collected.query_numbers),
        (collected.documents, pair.doc_id, collected.document_numbers),
    ):
        if identifier not in numbers:
            numbers[check_id(identifier, pair.where)] = len(numbers)
        column.append(numbers[identifier])
    collected.scores.append(score)
    if pair.grade is not None:
        earlier = collected.grades.setdefault(pair.query_id, {}).setdefault(pair.doc_id, pair.grade)
        if earlier != pair.grade:
            both = f"query {pair.query_id} and document {pair.doc_id}"
            raise DataError(f"{pair.where}: {both} have grade {pair.grade}, but {earlier} before. Keep one of the two")


def run_of(collected: Collected, name: str, source: Format, path: Path) -> tuple[Run, int]:
    """The run of the distinct pairs, and how many stood there again."""
    queries = np.frombuffer(collected.query_numbers, dtype=np.int32)
    documents = np.frombuffer(collected.document_numbers, dtype=np.int32)
    scores = np.frombuffer(collected.scores, dtype=np.float64)
    keys = queries.astype(np.int64) * len(collected.documents) + documents
    order = np.argsort(keys, kind="stable")
    first = np.ones(len(keys), dtype=np.bool_)
    np.not_equal(keys[order][1:], keys[order][:-1], out=first[1:])
    kept = order[first]  # of equal pairs, the one that stands first; sorted by query
    _refuse_contradictions(collected, order, kept[np.cumsum(first) - 1], lambda place: _where(source, path, place))
    if np.isnan(scores[0]):
        scores = _minus_places(queries)
    counts = np.bincount(queries[kept], minlength=len(collected.queries))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    run = Run(name, tuple(collected.queries), offsets, documents[kept], strings(collected.documents), scores[kept].astype(np.float32))
    return run, len(keys) - len(kept)


def _refuse_contradictions(collected: Collected, order: NDArray[np.int64], of_first: NDArray[np.int64], where: Callable[[int], str]) -> None:
    """Sees to it that a pair's scores are the same, wherever it stands."""
    scores = np.frombuffer(collected.scores, dtype=np.float64)
    apart = np.abs(scores[order] - scores[of_first])
    wrong = np.flatnonzero(apart > ROUNDING * np.maximum(np.abs(scores[of_first]), 1.0))
    if len(wrong):
        later, earlier = int(order[wrong[0]]), int(of_first[wrong[0]])
        query_id = next(islice(collected.queries, collected.query_numbers[later], None))
        doc_id = next(islice(collected.documents, collected.document_numbers[later], None))
        pair = f"query {query_id} and document {doc_id}"
        raise DataError(f"{where(later)}: {pair} have the score {scores[later]:g}, but {scores[earlier]:g} at {where(earlier)}. Keep one of the two")


def _minus_places(queries: NDArray[np.int32]) -> NDArray[np.float64]:
    """Minus the place, from 1, of each pair among those of its query."""
    order = np.argsort(queries, kind="stable")
    starts = np.flatnonzero(np.diff(queries[order], prepend=-1))
    places = np.empty(len(queries), dtype=np.float64)
    places[order] = np.arange(len(queries)) - np.repeat(starts, np.diff(np.append(starts, len(queries)))) + 1
    return -places


def _where(source: Format, path: Path, place: int) -> str:
    """Where a pair stands: the file is read again up to it."""
    return next(islice(source.read(path), place, None)).where
