"""The small nouns of the field: query, document, teacher. Everything else is made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from retriever.errors import DataError
from retriever.files import fingerprint

Qrels = Mapping[str, Mapping[str, int]]
"""Query id -> document id -> grade. A missing pair is unjudged, which is not the same as grade 0."""

RawUnit = Literal["logit", "log_odds", "log_likelihood", "probability", "cosine", "dot", "maxsim", "bm25", "rank"]
ViewUnit = Literal["z_score", "standardised", "min_max", "reciprocal_rank", "log_probability"]
Unit = Literal[RawUnit, ViewUnit]
"""What a teacher's number means. Scores of different units are never mixed without a normalisation; "rank" is minus the rank."""

ViewName = Literal["none", "z_score", "standardised", "min_max", "rank", "reciprocal_rank", "calibration", "temperature"]
"""How a teacher's scores are made comparable with another's: `retriever.scores.views` has a function for each."""


def check_id(identifier: object, where: str) -> str:
    """The identifier itself, when it can stand in a TREC file: a non-empty string without white space.

    Raises:
        DataError: it is not one; the message begins with `where`.
    """
    if not isinstance(identifier, str) or not identifier:
        raise DataError(f"{where}: the id {identifier!r} is not a non-empty string")
    if identifier.split() != [identifier]:
        raise DataError(f"{where}: the id {identifier!r} contains white space, which TREC files cannot carry. Replace it, for example by _")
    return identifier


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One earlier turn of a conversation."""

    speaker: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """What a user asks: a text or an image; as a turn of a conversation, with what was said before.

    Attributes:
        query_id: unique in its collection.
        text: the utterance; of a query that was read (`retriever.conversations.reading`), all that its reader sees.
        turns: of the conversation before it, oldest first.
        image: asked instead of, or beside the text.
        conversation: the id of the conversation; "" for a query that stands alone.
        rewrites: rewriter -> the utterance rewritten so that it stands alone, such as {"human": "..."}.
        fields: what else is known of the turn, such as {"domain": "cloud"}; results are told apart by it.
        among: conditions on documents' fields, as `retriever.filters.conditions_from` reads them, that limit what the query may find,
            such as {"kind": "image"}; {} for all documents.
    """

    query_id: str
    text: str
    turns: tuple[Turn, ...] = ()
    image: Path | None = None
    conversation: str = ""
    rewrites: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    among: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def shown(self) -> str:
        """What people are shown of it: its text, or the name of an image without one."""
        return self.text or (self.image.name if self.image else "")


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """What is retrieved: a title and a text, or an image; and fields to filter by, such as {"year": 2021, "topics": ["law", "tax"]}."""

    doc_id: str
    text: str
    title: str = ""
    image: Path | None = None
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def full_text(self) -> str:
        """Title and text as encoders, teachers and BM25 read them: joined by a space."""
        return f"{self.title} {self.text}".strip()

    @property
    def shown(self) -> str:
        """What people are shown of it: title and text, or the name of an image without them."""
        return self.full_text or (self.image.name if self.image else "")


@dataclasses.dataclass(frozen=True)
class TeacherIdentity:
    """Everything that decides a teacher's scores; two teachers with equal identities give equal scores.

    Attributes:
        name: what the user calls it; not part of the fingerprint.
        kind: the file under teachers/ that scores.
        model: its weights: folder content hash or hub id with revision; "" for one without.
        unit: what its numbers mean.
        settings: whatever else decides the numbers: prompt, lengths, dtype, parameters.
    """

    name: str
    kind: str
    model: str
    unit: Unit
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with anything that changes the scores."""
        return fingerprint({"kind": self.kind, "model": self.model, "unit": self.unit, "settings": dict(self.settings)})

    @property
    def orders_lists(self) -> bool:
        """Whether the teacher is a `ListTeacher`: its unit is the rank, which means nothing outside the list."""
        return self.unit == "rank"


@dataclasses.dataclass(frozen=True)
class ScoredPairs:
    """What a teacher says of n pairs.

    Attributes:
        scores: float32 [n], raw, in the teacher's unit.
        n_tokens: int32 [n], tokens read (0 where the teacher does not count).
        truncated: bool [n], whether the pair was longer than the teacher reads.
    """

    scores: NDArray[np.float32]
    n_tokens: NDArray[np.int32]
    truncated: NDArray[np.bool_]

    @classmethod
    def without_tokens(cls, scores: NDArray[np.float32]) -> ScoredPairs:
        """Of a teacher that reads no tokens pair by pair, and so cuts none."""
        return cls(scores, np.zeros(len(scores), dtype=np.int32), np.zeros(len(scores), dtype=np.bool_))


class Teacher(Protocol):
    """A ranker that scores query-document pairs offline."""

    @property
    def identity(self) -> TeacherIdentity:
        """What decides the scores."""
        ...

    @property
    def shard_pairs(self) -> int:
        """How many pairs to score before they are written: what a stop at the worst instant costs."""
        ...

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
        """Raw scores of the pairs, in their order."""
        ...


@dataclasses.dataclass(frozen=True)
class OrderedList:
    """What a teacher that reads whole lists says of the n documents of one query.

    Attributes:
        ranks: int32 [n], 1 for the best: each of 1 to n once.
        passes: how many orders were aggregated into this one.
        n_tokens: int32 [n], each document's share of the tokens read (0 where the teacher does not count).
        truncated: bool [n], whether the document was longer than the teacher reads.
        status: "ok", or what had to be mended.
    """

    ranks: NDArray[np.int32]
    passes: int
    n_tokens: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    status: str = "ok"


class ListTeacher(Protocol):
    """A ranker that orders whole lists offline; its identity's unit is "rank"."""

    @property
    def identity(self) -> TeacherIdentity:
        """What decides the order."""
        ...

    @property
    def shard_pairs(self) -> int:
        """From how many pairs on lists are written: what a stop at the worst instant costs."""
        ...

    def order(self, lists: Sequence[tuple[Query, Sequence[Document]]]) -> Sequence[OrderedList]:
        """The order of each list; its documents, no two of the same text, come in the order of the candidates."""
        ...


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a language model was asked for: requests or prompts, tokens read and written, and their price (0.0 for a model of one's own)."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(mine + its for mine, its in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def __sub__(self, other: Usage) -> Usage:
        return Usage(*(mine - its for mine, its in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def __str__(self) -> str:
        """As a progress bar shows it."""
        tokens = f"{self.prompt_tokens + self.completion_tokens:,} tokens"
        return f"{tokens}, cost {self.cost:.4f}" if self.cost else tokens


def usage_of(teacher: object) -> Usage:
    """What a teacher's language model was asked for since it was loaded; nothing for a teacher without one."""
    usage = getattr(teacher, "usage", None)
    return usage if isinstance(usage, Usage) else Usage()
