"""What an engine that keeps a collection must do, and what is written into it beside the documents."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import Encoding
from retriever.errors import ConfigError, SearchIndexError
from retriever.filters import Condition, check_conditions
from retriever.ragged import Ragged
from retriever.settings.index import EXACT
from retriever.tables.fields import Kind
from retriever.types import Document

FACTS, FIELDS = "retriever_facts", "retriever_fields"
"""Notes that a collection in an engine carries: whose it is, and, when it is whole, the kinds of the documents' fields."""

LAYOUT = 1

EXACT_DOCUMENTS = 20_000
"""Collections of at most so many are searched exactly: comparing all of them takes milliseconds."""

_FIELD = re.compile(r"[A-Za-z0-9_-]+")


@dataclasses.dataclass(frozen=True)
class Facts:
    """Whose encodings a collection in an engine holds.

    Attributes:
        encoder: the `document_identity` of the student.
        student_kind: "dense", "static", "sparse" or "late_interaction".
        documents: N.
        dimensions: D of a vector or of a token's vector, the vocabulary's size for sparse entries.
        collection: changes with the documents: their fingerprint.
        layout: of what is written.
    """

    encoder: str
    student_kind: str
    documents: int
    dimensions: int
    collection: str = ""
    layout: int = LAYOUT

    def __post_init__(self) -> None:
        if self.student_kind not in EXACT:
            raise ConfigError(f'a student of kind "{self.student_kind}" has no encodings that an engine could keep; those of {", ".join(EXACT)} have')


class Point(NamedTuple):
    """A document that an engine found."""

    row: int
    score: float
    document: Document


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A condition whose values are of the field's kind.

    Attributes:
        field: its name, of letters, digits, _ and - alone.
        kind: of the field's values.
        comparison: as in `Condition`.
        values: several for "in", else one.
    """

    field: str
    kind: Kind
    comparison: str
    values: tuple[float | bool | str, ...]


class Engine(Protocol):
    """A collection in an engine, which may not be there yet. Every method raises SearchIndexError in one line where the engine fails."""

    @property
    def workers(self) -> int:
        """How many may write at a time."""
        ...

    def notes(self) -> dict[str, Any] | None:
        """What `create` and `note` wrote; None where there is no such collection."""
        ...

    def create(self, facts: Facts) -> None:
        """Makes the empty collection, which notes the facts."""
        ...

    def note(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes one more note."""
        ...

    def count(self) -> int:
        """Documents in it."""
        ...

    def present(self, start: int, end: int) -> set[int]:
        """Which of the rows start to end are in it."""
        ...

    def write(self, rows: Sequence[int], documents: Sequence[Document], encodings: Encoding) -> None:
        """Writes documents under their rows; a row that is there is written over."""
        ...

    def settle(self) -> None:
        """Returns when all that was written can be found."""
        ...

    def search(self, queries: Encoding, k: int, wanted: Sequence[Wanted], exact: bool) -> list[list[Point]]:
        """The best k documents of each query by inner product or MaxSim.

        Args:
            queries: of B queries, none of them empty.
            k: documents a query at most.
            wanted: all of which a document must meet.
            exact: all documents are compared, the last written ones too, where the engine can do that.
        """
        ...

    def close(self) -> None:
        """Ends the connection."""
        ...


def check_encodings(where: str, encodings: Encoding, facts: Facts, whose: str) -> None:
    """Refuses encodings of another kind or dimension, or that are not finite.

    Raises:
        SearchIndexError: they are; the message begins with `where`.
    """
    wanted, kind = facts.dimensions, EXACT[facts.student_kind]
    values: NDArray[Any]
    wrong: str | None = "encodings of another kind"
    if not isinstance(encodings, Ragged):
        values = encodings
        if kind == "flat":
            wrong = None if encodings.shape[1] == wanted else f"{encodings.shape[1]} dimensions"
    elif "values" in encodings.columns:
        values, dimensions = encodings.columns["values"], encodings.columns["dimensions"]
        if kind == "inverted":
            outside = dimensions[(dimensions < 0) | (dimensions >= wanted)]
            wrong = f"the dimension {outside[0]}" if len(outside) else None
    else:
        values = encodings.columns["vectors"]
        if kind == "multivector":
            wrong = None if values.shape[1] == wanted else f"{values.shape[1]} dimensions"
    if wrong:
        raise SearchIndexError(f"{where}: holds {facts.student_kind} encodings of {wanted} dimensions, {whose} has {wrong}. Use the student {facts.encoder}")
    if not np.isfinite(values).all():
        raise SearchIndexError(f"{where}: {whose} has an encoding that is not finite")


def wanted_of(conditions: Sequence[Condition], kinds: Mapping[str, Kind], where: str) -> list[Wanted]:
    """The conditions with values of the fields' kinds.

    Raises:
        ConfigError: the fields cannot answer one; the message begins with `where`.
    """
    check_conditions(kinds, conditions, where)
    found = []
    for condition in conditions:
        kind = kinds[condition.field]
        values = condition.value if isinstance(condition.value, tuple) else (condition.value,)
        if not _FIELD.fullmatch(condition.field):
            raise ConfigError(f'{where}: the field "{condition.field}" cannot be asked for in an engine; only letters, digits, _ and - are safe in a name')
        if kind == "texts" and condition.comparison not in ("=", "!=", "in"):
            raise ConfigError(f'{where}: the field "{condition.field}" holds lists of texts, which are asked for by =, != and in')
        found.append(Wanted(condition.field, kind, condition.comparison, tuple(_of_kind(kind, value, where) for value in values)))
    return found


def _of_kind(kind: Kind, value: Any, where: str) -> float | bool | str:
    if kind == "truth":
        return value if isinstance(value, bool) else str(value).lower() == "true"
    if kind == "number":
        if not math.isfinite(number := float(value)):
            raise ConfigError(f"{where}: {value} is no number to compare with")
        return number
    return str(value)
