"""Conditions on documents' fields, all of which a found document must meet: equality, ranges and sets."""

from __future__ import annotations

import dataclasses
import difflib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from retriever.errors import ConfigError
from retriever.tables.fields import FieldColumns, Kind, Value, kind_of

Comparison = Literal["=", "!=", "<", "<=", ">", ">=", "in"]

_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_WRITTEN = re.compile(r"^\s*(?P<field>[^\s=!<>]+)\s*(?:(?P<comparison><=|>=|!=|=|<|>)|\s(?P<set>in)\s)\s*(?P<value>.*?)\s*$", re.DOTALL)
_ADVICE = "write it like 'year>=2020', 'language=de' or 'language in de,fr'"


@dataclasses.dataclass(frozen=True)
class Condition:
    """What a field of a document must be. A document without the field never meets it.

    Attributes:
        field: its name.
        comparison: of the document's value with the wanted one; with several for "in". Texts are compared letter by letter, so that dates
            written as 2024-05-31 are in order. A field that holds a list meets it when one of its texts does; for "!=" all of them must.
        value: the wanted one, or a tuple of them.
    """

    field: str
    comparison: Comparison
    value: Value | tuple[Value, ...]


def parse_condition(text: str) -> Condition:
    """The condition that a command line gives, such as "year>=2020", "language=de" or "language in de,fr".

    Raises:
        ConfigError: it is none.
    """
    found = _WRITTEN.match(text)
    if not found or not found["value"]:
        raise ConfigError(f"--filter {text!r}: is no condition; {_ADVICE}")
    if found["set"]:
        return Condition(found["field"], "in", tuple(value.strip() for value in found["value"].split(",")))
    return Condition(found["field"], cast(Comparison, found["comparison"]), found["value"])


def conditions_from(values: Mapping[str, Any]) -> list[Condition]:
    """The conditions of a JSON object: {"language": "de"}, {"language": ["de", "fr"]}, {"year": {">=": 2020, "<": 2024}}.

    Raises:
        ConfigError: a value is none that a field can have, or a comparison is unknown.
    """
    conditions = []
    for field, wanted in values.items():
        compared = wanted.items() if isinstance(wanted, Mapping) else [("in" if isinstance(wanted, list | tuple) else "=", wanted)]
        for comparison, value in compared:
            if comparison not in get_args(Comparison):
                raise ConfigError(f'filter: "{comparison}" is no comparison; allowed are {" ".join(get_args(Comparison))}')
            listed = list(value) if isinstance(value, list | tuple) else [value]
            if (comparison == "in") != isinstance(value, list | tuple) or not all(kind_of(one) in ("number", "truth", "text") for one in listed):
                raise ConfigError(f"filter: {field} {comparison} {value!r:.60}: expected a number, true, false or a text; a list of them with in")
            conditions.append(Condition(str(field), cast(Comparison, comparison), tuple(listed) if comparison == "in" else listed[0]))
    return conditions


def check_conditions(kinds: Mapping[str, Kind], conditions: Sequence[Condition], where: str) -> None:
    """Refuses what the documents' fields cannot answer.

    Raises:
        ConfigError: no document has the field, or the value is of another kind; the message begins with `where`.
    """
    for condition in conditions:
        if condition.field not in kinds:
            near = difflib.get_close_matches(condition.field, kinds, n=1)
            advice = f'did you mean "{near[0]}"?' if near else f"known are {', '.join(sorted(kinds)) or 'none: the documents were indexed without fields'}"
            raise ConfigError(f'{where}: no document has a field "{condition.field}"; {advice}')
        for value in condition.value if isinstance(condition.value, tuple) else (condition.value,):
            try:
                _as_kind(kinds[condition.field], value)
            except ValueError as error:
                raise ConfigError(f'{where}: the field "{condition.field}" {error}') from error


def met(fields: FieldColumns, conditions: Sequence[Condition]) -> NDArray[np.bool_]:
    """[N], whether each document meets all conditions; those that `check_conditions` lets through."""
    allowed = np.ones(fields.n_documents, dtype=np.bool_)
    for condition in conditions:
        allowed &= _met(fields, condition)
    return allowed


def _met(fields: FieldColumns, condition: Condition) -> NDArray[np.bool_]:
    kind = fields.kinds.get(condition.field)
    if kind is None:
        return np.zeros(fields.n_documents, dtype=np.bool_)
    if kind in ("number", "truth"):
        numbers = fields.numbers(condition.field)
        return np.asarray(_holds(numbers, condition, kind), dtype=np.bool_) & ~np.isnan(numbers)
    codes, vocabulary, rows = fields.texts(condition.field)
    right: NDArray[np.bool_] = np.array([bool(_holds(text, condition, kind)) for text in vocabulary], dtype=np.bool_)
    answers = np.append(right, False)[codes]  # the code -1 of a missing text comes last
    if condition.comparison == "!=":
        there, wrong = (np.bincount(rows[which], minlength=fields.n_documents) for which in (codes >= 0, (codes >= 0) & ~answers))
        return np.asarray((there > 0) & (wrong == 0))
    return np.asarray(np.bincount(rows[answers], minlength=fields.n_documents) > 0)


def _holds(found: Any, condition: Condition, kind: Kind) -> Any:
    """Of one value, or of an array of numbers."""
    if condition.comparison == "in":
        values = [_as_kind(kind, value) for value in cast("tuple[Value, ...]", condition.value)]
        return np.isin(found, values) if isinstance(found, np.ndarray) else found in values
    return _COMPARE[condition.comparison](found, _as_kind(kind, condition.value))


def _as_kind(kind: Kind, value: Any) -> float | str:
    """A wanted value as the field has it; what a command line gives is text.

    Raises:
        ValueError: it cannot be one; the message continues "the field X".
    """
    if kind in ("text", "texts"):
        if not isinstance(value, str):
            raise ValueError(f"holds texts, found {value!r}")
        return value
    if kind == "truth":
        truth = {"true": 1.0, "false": 0.0}.get(value.lower()) if isinstance(value, str) else float(value) if isinstance(value, bool) else None
        if truth is None:
            raise ValueError(f"is true or false, found {value!r}")
        return truth
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"holds numbers, found {value!r}") from error
