"""Why a document has its score: by words of a sparse student, pairs of tokens of late interaction, or sentences of a dense one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from retriever.conversations.chat import token_places
from retriever.queries import reader_of
from retriever.ragged import Ragged
from retriever.types import Document, Query

MOST_SENTENCES = 48
"""What lies behind them counts as one sentence: each is encoded by itself, and the document without it."""


@dataclasses.dataclass(frozen=True)
class SharedWord:
    """A word of a sparse query and document: both weights, and their product, which is its part of the score."""

    word: str
    query: float
    document: float
    product: float


@dataclasses.dataclass(frozen=True)
class TokenPair:
    """A token of the query and the one of the document that is most like it; their similarity is its part of the score.

    Attributes:
        query: the token's text; "" for a special one or [MASK].
        document: likewise.
        place: [start, end) of the document's token in title and text; None for a special one.
        similarity: the inner product.
    """

    query: str
    document: str
    place: tuple[int, int] | None
    similarity: float


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence of the document before a dense student.

    Attributes:
        text: the sentence.
        place: [start, end) of it in title and text.
        alone: the score of the sentence by itself.
        lost: by how much the score falls without it; below 0 for one that stood in the way.
    """

    text: str
    place: tuple[int, int]
    alone: float
    lost: float


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What the score of a document is made of.

    Attributes:
        kind: of the rows.
        score: the student's, of the whole document, encoded now.
        rows: the largest part first; sentences in their order.
    """

    kind: Literal["words", "tokens", "sentences"]
    score: float
    rows: tuple[SharedWord, ...] | tuple[TokenPair, ...] | tuple[Sentence, ...]


def explain(encoder: Any, query: Query, document: Document, most: int = 20) -> Explanation:
    """What a document's score for a query is made of.

    Args:
        encoder: a student that encodes queries and documents: sparse, late interaction or dense.
        query: with the turns before it.
        document: what was found.
        most: rows of words and pairs of tokens at most; sentences up to `MOST_SENTENCES`.
    """
    encoded = encoder.encode_queries([query])
    if not isinstance(encoded, Ragged):
        return _sentences(encoder, encoded, document)
    kept = encoder.encode_documents([document])
    score = float(encoder.score(encoded, kept)[0])
    if "dimensions" in encoded.columns:
        return Explanation("words", score, _words(encoder, encoded, kept, most))
    return Explanation("tokens", score, _pairs(encoder, query, document, most))


def sentences_of(text: str, most: int = MOST_SENTENCES) -> list[tuple[int, int]]:
    """[start, end) of the sentences of a text, without the white space around them; the last one of `most` holds all the rest."""
    found = [place for place in _stretches(text) if place[0] < place[1]]
    return found if len(found) <= most else [*found[: most - 1], (found[most - 1][0], found[-1][1])]


def _stretches(text: str) -> Iterator[tuple[int, int]]:
    """Ends at a line's end, and behind . ! or ? before white space."""
    start = 0
    for end in re.finditer(r"[.!?]+(?=\s)|\n", text):
        yield _stripped(text, start, end.end())
        start = end.end()
    yield _stripped(text, start, len(text))


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    own = text[start:end]
    begin = start + len(own) - len(own.lstrip())
    return begin, max(begin, start + len(own.rstrip()))


def _sentences(encoder: Any, encoded: Any, document: Document) -> Explanation:
    text = document.full_text
    places = sentences_of(text)
    alone = [dataclasses.replace(document, title="", text=text[start:end], image=None) for start, end in places]
    without = [dataclasses.replace(document, title="", text=f"{text[:start]} {text[end:]}".strip(), image=None) for start, end in places]
    vectors = encoder.encode_documents([document, *alone, *without])
    scores = encoder.score(np.repeat(encoded, len(vectors), axis=0), vectors).tolist()
    whole, by_itself, left = scores[0], scores[1 : len(places) + 1], scores[len(places) + 1 :]
    rows = [Sentence(text[start:end], (start, end), one, whole - rest) for (start, end), one, rest in zip(places, by_itself, left, strict=True)]
    return Explanation("sentences", whole, tuple(rows))


def _words(encoder: Any, query: Ragged, document: Ragged, most: int) -> tuple[SharedWord, ...]:
    asked, held = (dict(zip(one.columns["dimensions"].tolist(), one.columns["values"].tolist(), strict=True)) for one in (query, document))
    words = encoder.vocabulary
    shared = [SharedWord(words[number], asked[number], held[number], asked[number] * held[number]) for number in asked.keys() & held.keys()]
    return tuple(sorted(shared, key=lambda row: (-row.product, row.word))[:most])


def _pairs(encoder: Any, query: Query, document: Document, most: int) -> tuple[TokenPair, ...]:
    """Pairs of all tokens; where documents' tokens are pooled, those before the pooling."""
    asked, text = reader_of(encoder).text(query).text, document.full_text
    query_vectors, query_places = token_places(encoder.model, asked)
    vectors, places = token_places(encoder.model, text, "document")
    if not len(vectors):
        return ()
    similarities = query_vectors @ vectors.T  # [Lq, Ld]
    best = similarities.argmax(axis=1).tolist()
    rows = [
        TokenPair(_at(asked, query_places[number]), _at(text, places[other]), places[other], float(similarities[number, other]))
        for number, other in enumerate(best)
    ]
    return tuple(sorted(rows, key=lambda row: (not row.query, -row.similarity))[:most])


def _at(text: str, place: tuple[int, int] | None) -> str:
    return "" if place is None else text[place[0] : place[1]]
