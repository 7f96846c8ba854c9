"""How a turn of a conversation becomes the one text that a system reads: its reading."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Protocol

from pydantic import AfterValidator

from retriever.errors import DataError
from retriever.types import Query, Turn

READINGS = {
    "last": "the last turn alone; prompts of language models show the turns before it",
    "user": "all turns of the user, oldest first",
    "all": "all turns, oldest first",
    "latest_first": "all turns, the last one first, so that a limit cuts the oldest (DiSCo, arXiv:2410.14609)",
    "user_latest_first": "all turns of the user, the last one first",
    "last_and_answer": "the last turn and the answer before it",
}
"""Name -> what is read; beside them "rewrite" and "rewrite:NAME", the rewrite of a person or of the rewriter NAME."""

UTTERANCE_FIRST = frozenset({"latest_first", "user_latest_first", "last_and_answer"})
"""The readings under which the last turn stands before the history, and a tokenizer's separator between turns."""

READER = "conversation.json"
"""What a student's folder says of its reader: reading and room; stock sentence-transformers leaves it alone."""

HUMAN = "human"
"""The rewriter of rewrites that came with the collection without a name."""


def check_reading(reading: str) -> str:
    """The reading itself, when it is known.

    Raises:
        ValueError: it is not.
    """
    if reading not in READINGS and rewriter_of(reading) is None:
        raise ValueError(f'unknown reading "{reading}"; it is one of {", ".join(READINGS)}, rewrite, or rewrite:NAME')
    return reading


Reading = Annotated[str, AfterValidator(check_reading)]
"""A key of `READINGS`, "rewrite" or "rewrite:NAME"."""


def rewriter_of(reading: str) -> str | None:
    """The rewriter whose rewrites a reading reads; None for one that reads what was said."""
    kind, _, name = reading.partition(":")
    return (name or HUMAN) if kind == "rewrite" else None


def said(query: Query, reading: Reading) -> list[str]:
    """The texts that a reading reads, in its order; the utterance is the last one, or the first (`UTTERANCE_FIRST`).

    Raises:
        DataError: the turn has no such rewrite.
    """
    rewriter = rewriter_of(reading)
    if rewriter is not None:
        return [_rewrite(query, rewriter)]
    if reading == "user":
        return [*(turn.text for turn in query.turns if is_user(turn)), query.text]
    if reading == "all":
        return [*(turn.text for turn in query.turns), query.text]
    if reading in ("latest_first", "user_latest_first"):
        return [query.text, *(turn.text for turn in reversed(query.turns) if reading == "latest_first" or is_user(turn))]
    if reading == "last_and_answer":
        answers = [turn.text for turn in query.turns if not is_user(turn)]
        return [query.text, *answers[-1:]]
    return [query.text]


def can_read(reading: Reading, queries: Iterable[Query]) -> bool:
    """Whether every turn has what a reading reads."""
    rewriter = rewriter_of(reading)
    return rewriter is None or all(rewriter in query.rewrites for query in queries if query.turns)


def is_user(turn: Turn) -> bool:
    """Whether a turn is the user's, not the agent's."""
    return turn.speaker.casefold() == "user"


def _rewrite(query: Query, rewriter: str) -> str:
    """A turn's rewrite; a first turn stands alone and needs none."""
    rewrite = query.rewrites.get(rewriter)
    if rewrite is None and query.turns:
        known = ", ".join(query.rewrites) or "none"
        raise DataError(f'query {query.query_id}: has no rewrite by "{rewriter}"; its rewrites: {known}. Name another one, or write it with: retriever rewrite')
    return query.text if rewrite is None else rewrite


class Tokenizer(Protocol):
    """What a reader needs of a tokenizer of transformers."""

    sep_token: str | None

    def __call__(self, text: list[str], **settings: Any) -> Any:
        """Token ids, and with `return_offsets_mapping` where in the text they stand."""
        ...


@dataclasses.dataclass(frozen=True)
class ReadText:
    """What was read of one turn.

    Attributes:
        text: what the system sees.
        left_out: earlier turns of which nothing is in it for want of room.
        cut: whether a turn stands in it only in part.
        tokens: how many of the conversation's tokens are not in it.
    """

    text: str
    left_out: int = 0
    cut: bool = False
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class ConversationReader:
    """Reads turns for one system: what, and how much of it.

    The utterance always stays. Earlier turns come in as long as there is room, the latest first; the one that does not fit is
    cut to its first words, and those before it are left out.

    Attributes:
        reading: what is read.
        tokens: room for the text without special tokens; None for as much as there is.
        tokenizer: of the system, which counts its tokens and whose separator stands between the turns where the utterance is first;
            None for a system without one, whose turns are joined by spaces.
    """

    reading: Reading = "last"
    tokens: int | None = None
    tokenizer: Tokenizer | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def separator(self) -> str:
        """What stands between two turns."""
        sep = self.tokenizer.sep_token if self.tokenizer and self.reading in UTTERANCE_FIRST else None
        return f" {sep} " if sep else " "

    def settings(self) -> dict[str, Any]:
        """What decides the texts, beside the tokenizer."""
        return {"reading": self.reading, "tokens": self.tokens}

    def text(self, query: Query) -> ReadText:
        """What is read of one query; one without turns and rewrites is read as it is.

        Raises:
            DataError: the reading is a rewrite that the turn has not.
        """
        texts = said(query, self.reading)
        if self.tokens is None or self.tokenizer is None or len(texts) == 1:
            return ReadText(self.separator.join(texts))
        return self._fitted(texts, self.tokens)

    def read(self, query: Query) -> Query:
        """The query as one text without turns: read again it stays the same."""
        return dataclasses.replace(query, text=self.text(query).text, turns=(), rewrites={})

    def read_all(self, queries: Mapping[str, Query]) -> dict[str, Query]:
        """The same for queries by id."""
        return {query_id: self.read(query) for query_id, query in queries.items()}

    def texts(self, queries: Iterable[Query]) -> list[str]:
        """What is read of each query."""
        return [self.text(query).text for query in queries]

    def _fitted(self, texts: Sequence[str], room: int) -> ReadText:
        latest_first = self.reading in UTTERANCE_FIRST
        ordered = list(texts) if latest_first else list(reversed(texts))  # the utterance first
        ends = self._token_ends(ordered)
        between = len(self._token_ends([self.separator])[0])
        kept, used = [ordered[0]], len(ends[0])
        for place, (text, own) in enumerate(zip(ordered[1:], ends[1:], strict=True), 1):
            free = room - used - between
            if len(own) > free:
                part = text[: own[free - 1]] if free > 0 else ""
                kept += [part] if part else []
                lost = sum(map(len, ends[place:])) - (free if part else 0)
                return ReadText(self._joined(kept, latest_first), len(ordered) - place - bool(part), bool(part), lost)
            kept.append(text)
            used += between + len(own)
        return ReadText(self._joined(kept, latest_first))

    def _joined(self, kept: Sequence[str], latest_first: bool) -> str:
        return self.separator.join(kept if latest_first else reversed(kept))

    def _token_ends(self, texts: list[str]) -> list[list[int]]:
        """For each text, the character behind each of its tokens."""
        if self.tokenizer is None:
            raise TypeError("a reader without a tokenizer counts no tokens")
        found = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
        return [[end for _, end in offsets] for offsets in found["offset_mapping"]]


def reads_more(encoder: Any, reading: Reading | None) -> bool:
    """Whether an encoder would read more than the last turn of queries that were read as "last": they keep their turns, and it has a reading of its own."""
    reader = getattr(encoder, "reader", None)
    return reading == "last" and isinstance(reader, ConversationReader) and reader.reading != "last"


def told_cuts(reader: ConversationReader, queries: Iterable[Query], what: str, say: Callable[[str], None]) -> None:
    """Says how many turns a reader had no room for; nothing where all fitted."""
    read = [reader.text(query) for query in queries if query.turns]
    shortened = [one for one in read if one.tokens]
    if shortened:
        tokens, turns, cut = sum(one.tokens for one in shortened), sum(one.left_out for one in shortened), sum(one.cut for one in shortened)
        say(
            f"{what}: {len(shortened):,} of {len(read):,} turns with a history are longer than {reader.tokens} tokens; "
            f"of the oldest turns {turns:,} were left out and {cut:,} cut short, {tokens:,} tokens in all"
        )
