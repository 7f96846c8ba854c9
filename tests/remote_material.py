"""A small collection with all kinds of encodings, and what an exact comparison finds in it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from retriever.encodings import Encoding
from retriever.filters import Condition
from retriever.ragged import Ragged
from retriever.remote.engine import Facts, Point
from retriever.tables.fields import FieldColumns, FieldWriter
from retriever.types import Document

N, D, V = 30, 8, 40
HOSTILE = ['"', "\\", '\\"', 'de" or true or "', "')", '] or fields["year"] > 0 or [', "a\nb\tc\r", "{x}", "😀\0", "", "$meta", "%", "null"]
TEXTS = ["de", "fr", *HOSTILE]


def documents(count: int = N) -> list[Document]:
    """Every fifth has no fields, and one has a text longer than an engine's field."""
    found = []
    for row in range(count):
        fields: dict[str, Any] = {"year": 2000 + row % 7 / 2, "language": TEXTS[row % len(TEXTS)], "open": row % 2 == 0, "date": f"2024-05-{1 + row:02d}"}
        fields["topics"] = [TEXTS[row % 5], "law", "tax"][: row % 4]
        text = 'Straße "😀"\n' * (20_000 if row == 4 else row % 3)
        found.append(Document(f"d/{row}é", text, title=f"Title {row}" if row % 2 else "", fields=fields if row % 5 else {}))
    return found


def encodings_of(kind: str, count: int = N) -> Encoding:
    """With two equal documents, and an empty one where the kind has such; token vectors are ones that float16 holds."""
    rng = np.random.default_rng(7)
    if kind == "dense":
        vectors = rng.normal(size=(count, D)).astype(np.float32)
        vectors[-1:] = vectors[:1]
        return vectors
    counts = rng.integers(1, 6, count)
    counts[count // 2 : count // 2 + 1] = 0
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    if kind == "late_interaction":
        return Ragged(offsets, {"vectors": rng.normal(size=(offsets[-1], D)).astype(np.float16)})
    dimensions = np.concatenate([np.zeros(0), *(np.sort(rng.choice(V, size, replace=False)) for size in counts)]).astype(np.int32)
    return Ragged(offsets, {"dimensions": dimensions, "values": (rng.random(offsets[-1]) + 0.01).astype(np.float32)})


def facts_of(kind: str, count: int = N, encoder: str = "student-1") -> Facts:
    return Facts(encoder, kind, count, V if kind == "sparse" else D, "fingerprint")


def blocks_of(kind: str, count: int = N, size: int = 13) -> Iterator[tuple[Sequence[Document], Encoding]]:
    whole, listed = encodings_of(kind, count), documents(count)
    for start in range(0, count, size):
        rows = np.arange(start, min(start + size, count))
        yield [listed[row] for row in rows], whole[rows]


def queries_of(kind: str) -> Encoding:
    """Some documents' encodings, one of them equal to another document's; empty ones where the kind has such."""
    return encodings_of(kind)[np.array([0, 3, N // 2, 11])]


@functools.cache
def expected(kind: str) -> NDArray[np.float64]:
    """[B, N], of `queries_of` and all documents."""
    return brute_force(kind, queries_of(kind), encodings_of(kind))


def brute_force(kind: str, queries: Encoding, encodings: Encoding) -> NDArray[np.float64]:
    """[B, n] in loops; -inf for what is not found: no common term, no token."""
    scores = np.full((len(queries), len(encodings)), -np.inf)
    for number in range(len(queries)):
        for row in range(len(encodings)):
            query, document = queries[np.array([number])], encodings[np.array([row])]
            if not isinstance(query, Ragged) or not isinstance(document, Ragged):
                scores[number, row] = sum(a * b for a, b in zip(np.ravel(query).tolist(), np.ravel(document).tolist(), strict=True))
            elif kind == "sparse":
                there = dict(zip(document.columns["dimensions"].tolist(), document.columns["values"].tolist(), strict=True))
                pairs = zip(query.columns["dimensions"].tolist(), query.columns["values"].tolist(), strict=True)
                products = [value * there[dimension] for dimension, value in pairs if dimension in there]
                scores[number, row] = sum(products) if products else -np.inf
            elif len(query.columns["vectors"]) and len(document.columns["vectors"]):
                tokens = document.columns["vectors"].astype(np.float64)
                scores[number, row] = sum(max(tokens @ token) for token in query.columns["vectors"].astype(np.float64))
    return scores


def agree(found: Sequence[Sequence[Point]], scores: NDArray[np.float64], k: int, allowed: NDArray[np.bool_] | None = None) -> None:
    """Asserts that each query found the best k of its scores, equal ones in any order, with these scores and documents."""
    listed = documents()
    for points, exact in zip(found, scores if allowed is None else np.where(allowed, scores, -np.inf), strict=True):
        best = np.sort(exact[np.isfinite(exact)])[::-1][:k]
        np.testing.assert_allclose([point.score for point in points], best, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose([exact[point.row] for point in points], best, rtol=1e-5, atol=1e-5)
        assert len({point.row for point in points}) == len(points)
        for point in points:
            given, got = listed[point.row], point.document
            assert (got.doc_id, got.title, got.text) == (given.doc_id, given.title, given.text)
            assert {name: value for name, value in got.fields.items() if value != []} == {name: value for name, value in given.fields.items() if value != []}


def columns(folder: Path) -> FieldColumns:
    """The same fields as the local index has them."""
    writer = FieldWriter()
    for document in documents():
        writer.add(document.doc_id, document.fields)
    writer.write(folder / "fields.arrow")
    return FieldColumns(folder, N)


def conditions(text_ranges: bool) -> st.SearchStrategy[list[Condition]]:
    """Conditions on the collection's fields, such as a user or an attacker writes."""
    compare = st.sampled_from(["=", "!=", "<", "<=", ">", ">="])
    equal = st.sampled_from(["=", "!="])
    texts = st.sampled_from(TEXTS) | st.text(max_size=5)
    one = (
        st.builds(Condition, st.just("year"), compare, st.sampled_from([2000, 2001.5, -1e300, "2002"]))
        | st.builds(Condition, st.just("open"), equal, st.booleans())
        | st.builds(Condition, st.just("language"), compare if text_ranges else equal, texts)
        | st.builds(Condition, st.just("date"), compare, st.sampled_from(["2024-05-07", "2024-05-30"]))
        | st.builds(Condition, st.just("topics"), equal, texts)
        | st.builds(Condition, st.sampled_from(["language", "topics"]), st.just("in"), st.lists(texts, max_size=3).map(tuple))
        | st.builds(Condition, st.just("year"), st.just("in"), st.lists(st.sampled_from([2000, 2000.5, 7]), max_size=2).map(tuple))
    )
    return st.lists(one, min_size=1, max_size=2)
