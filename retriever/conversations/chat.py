"""Conversations as values, and what their history contributed to a search: terms, words or turns, by the kind of the student."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retriever.conversations.reading import UTTERANCE_FIRST, check_reading
from retriever.errors import ConfigError, DataError
from retriever.queries import reader_of
from retriever.ragged import Ragged
from retriever.search import Hit
from retriever.types import Query, Turn

MOST_TURNS = 100
"""Earlier turns that are kept of a conversation, when nobody says otherwise."""

Search = Callable[[Query], Sequence[Hit]]
"""The best documents of a query."""


@dataclasses.dataclass(frozen=True)
class Conversation:
    """What was said so far. It never changes: each turn gives a new one, so that a service can keep it wherever it likes.

    Attributes:
        turns: oldest first.
        most_turns: so many are kept, the latest ones.
    """

    turns: tuple[Turn, ...] = ()
    most_turns: int = MOST_TURNS

    def asked(self, text: str) -> Query:
        """What the user says next, as a query with the turns before it.

        Raises:
            DataError: it is empty.
        """
        if not text.strip():
            raise DataError("conversation: the utterance is empty. Say something")
        return Query("query", text.strip(), self.turns)

    def said(self, text: str) -> Conversation:
        """The conversation after the user said this."""
        return self._with(Turn("user", self.asked(text).text))

    def heard(self, answer: str) -> Conversation:
        """The conversation after the agent answered this.

        Raises:
            DataError: it is empty.
        """
        if not answer.strip():
            raise DataError("conversation: the answer is empty. Give its text")
        return self._with(Turn("agent", answer.strip()))

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {"turns": [dataclasses.asdict(turn) for turn in self.turns], "most_turns": self.most_turns}

    @classmethod
    def from_json(cls, value: object, where: str = "conversation") -> Conversation:
        """The conversation that `to_json` wrote, or that somebody else did; `most_turns` may be missing.

        Raises:
            DataError: it is none; the message begins with `where`.
        """
        if not isinstance(value, Mapping) or not isinstance(value.get("turns"), Sequence) or isinstance(value["turns"], str):
            raise DataError(f'{where}: expected an object with a list "turns", found {value!r:.60}')
        most = value.get("most_turns", MOST_TURNS)
        if not isinstance(most, int) or isinstance(most, bool) or most < 1:
            raise DataError(f"{where}: most_turns is {most!r:.20}; it is a whole number from 1 on")
        return cls(tuple(_turn(turn, f"{where}: turn {number}") for number, turn in enumerate(value["turns"], 1))[-most:], most)

    def _with(self, turn: Turn) -> Conversation:
        return dataclasses.replace(self, turns=(*self.turns, turn)[-self.most_turns :])


def _turn(value: object, where: str) -> Turn:
    speaker, text = (value.get("speaker"), value.get("text")) if isinstance(value, Mapping) else (None, None)
    if speaker not in ("user", "agent") or not isinstance(text, str) or not text.strip():
        raise DataError(f'{where}: expected {{"speaker": "user" or "agent", "text": "..."}}, found {value!r:.60}')
    return Turn(str(speaker), text)


def read_as(encoder: Any, reading: str, where: str) -> None:
    """Has a student read conversations as asked.

    Raises:
        ConfigError: there is no such reading, or the student reads in its own way; `where` names its index.
    """
    from retriever.students._reading import query_room, reader_for

    try:
        check_reading(reading)
    except ValueError as error:
        raise ConfigError(f"--reads: {error}") from error
    if not hasattr(encoder, "reader"):
        raise ConfigError(f"--reads: the student of {where} reads conversations in its own way. Leave it out")
    encoder.reader = reader_for(encoder.model, reading, query_room(encoder.model))


# What the history contributed


@dataclasses.dataclass(frozen=True)
class Term:
    """A term of a sparse query: its weight with the history and without it."""

    term: str
    weight: float
    alone: float


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of the history, and the share of the best documents' scores that all its tokens have in late interaction."""

    word: str
    share: float


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """An earlier turn, and what a dense student does without it.

    Attributes:
        turn: its number, from 1.
        text: what was said in it.
        moved: by which the query's vector moves, 1 - cosine.
        gone: ids of results that are not found any more.
        come: ids of those that are found in their places.
    """

    turn: int
    text: str
    moved: float
    gone: tuple[str, ...]
    come: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Contributions:
    """What the history contributed to a search.

    Attributes:
        kind: of the rows.
        rows: the largest first; turns in their order.
        whole: what all of the history did: of terms and turns 1 - cosine of the query's vectors with and without it, of words its
            share of the score.
    """

    kind: Literal["terms", "words", "turns"]
    rows: tuple[Term, ...] | tuple[Word, ...] | tuple[LeftOut, ...]
    whole: float


def contributions(encoder: Any, query: Query, search: Search, most: int = 10) -> Contributions:
    """What the history contributed to a query's encoding and its results.

    Args:
        encoder: a student that encodes queries: sparse, late interaction or dense.
        query: with the turns before it.
        search: of the same student, which finds the results that are compared.
        most: rows of terms and words at most.
    """
    with_history, alone = (encoder.encode_queries([one]) for one in (query, dataclasses.replace(query, turns=())))
    if not isinstance(with_history, Ragged):
        return _left_out(encoder, query, with_history[0], alone[0], search)
    if "dimensions" in with_history.columns:
        return _terms(encoder, with_history, alone, most)
    return _words(encoder, query, search(query), most)


def _terms(encoder: Any, with_history: Ragged, alone: Ragged, most: int) -> Contributions:
    """The terms whose weights the history changed most."""
    weights, before = (dict(zip(one.columns["dimensions"].tolist(), one.columns["values"].tolist(), strict=True)) for one in (with_history, alone))
    words = encoder.vocabulary
    rows = [Term(words[number], weights.get(number, 0.0), before.get(number, 0.0)) for number in {**weights, **before}]
    changed = sorted((row for row in rows if row.weight != row.alone), key=lambda row: (-abs(row.weight - row.alone), row.term))
    both = [np.array([row.weight for row in rows]), np.array([row.alone for row in rows])]
    return Contributions("terms", tuple(changed[:most]), _moved(*both))


def _words(encoder: Any, query: Query, hits: Sequence[Hit], most: int) -> Contributions:
    """The words of the history with the largest share of the results' scores."""
    text = reader_of(encoder).text(query).text
    vectors, places = token_places(encoder.model, text)
    documents = encoder.encode_documents([hit.document for hit in hits])
    shares = np.zeros(len(vectors))
    for start, end in zip(documents.offsets[:-1], documents.offsets[1:], strict=True):
        if end > start:
            best = (vectors @ documents.columns["vectors"][start:end].astype(np.float32).T).max(axis=1)  # [Lq]
            shares += best / best.sum() / len(hits)
    first = reader_of(encoder).reading in UTTERANCE_FIRST
    own = range(len(query.text)) if first else range(len(text) - len(query.text), len(text))
    found: dict[str, float] = {}
    for word in re.finditer(r"\S+", text):
        tokens = [number for number, place in enumerate(places) if place is not None and word.start() <= place[0] < word.end()]
        if tokens and word.start() not in own:
            found[word[0]] = found.get(word[0], 0.0) + float(shares[tokens].sum())
    rows = [Word(word, share) for word, share in found.items()]
    return Contributions("words", tuple(sorted(rows, key=lambda row: (-row.share, row.word))[:most]), sum(row.share for row in rows))


def _left_out(encoder: Any, query: Query, with_history: NDArray[np.float32], alone: NDArray[np.float32], search: Search) -> Contributions:
    """What each earlier turn does to the vector and the results, by leaving it out."""
    others = [dataclasses.replace(query, turns=(*query.turns[:place], *query.turns[place + 1 :])) for place in range(len(query.turns))]
    vectors = encoder.encode_queries(others) if others else []
    found = [hit.document.doc_id for hit in search(query)]
    rows = []
    for number, (other, vector, turn) in enumerate(zip(others, vectors, query.turns, strict=True), 1):
        instead = [hit.document.doc_id for hit in search(other)]
        gone, come = (tuple(doc_id for doc_id in one if doc_id not in two) for one, two in ((found, instead), (instead, found)))
        rows.append(LeftOut(number, turn.text, _moved(with_history, vector), gone, come))
    return Contributions("turns", tuple(rows), _moved(with_history, alone))


def _moved(one: NDArray[Any], other: NDArray[Any]) -> float:
    """1 - cosine of two vectors; 0 where both are zero, 1 where one is."""
    lengths = np.linalg.norm(one), np.linalg.norm(other)
    if not all(lengths):
        return float(any(lengths))
    return max(0.0, 1.0 - float(one @ other / np.prod(lengths)))


def token_places(model: Any, text: str, task: Literal["query", "document"] = "query") -> tuple[NDArray[np.float32], list[tuple[int, int] | None]]:
    """The vectors [L, D] of a text of late interaction, and from where to where in the text each token stands; None for special ones and [MASK]."""
    prompt = (model.prompts or {}).get(task) or ""
    encode = model.encode_query if task == "query" else model.encode_document
    features = encode([text], output_value=None, show_progress_bar=False)[0]
    counts = features["attention_mask"].bool().cpu().numpy()
    vectors = features["token_embeddings"].float().cpu().numpy()[counts]
    ids = features["input_ids"].tolist()
    read = model.tokenizer(prompt + text, return_offsets_mapping=True, verbose=False)
    places: list[tuple[int, int] | None] = [None] * len(ids)
    for place, (own, there, (start, end)) in enumerate(zip(ids, read["input_ids"], read["offset_mapping"], strict=False)):
        if own != there:
            break  # a text that was cut ends with a special token
        if end > start >= len(prompt) and own not in model.tokenizer.all_special_ids:
            places[place] = start - len(prompt), end - len(prompt)
    return vectors, [place for place, count in zip(places, counts.tolist(), strict=True) if count]
