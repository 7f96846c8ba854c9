"""The fields of a record, of the type that they must have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retriever.errors import DataError

_KINDS = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", type(None): "null"}


def has(record: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    """Whether one of the named fields is there and not null."""
    return any(record.get(name) is not None for name in names)


def field(where: str, record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of the names that the record has.

    Raises:
        DataError: it has none.
    """
    name = next((name for name in names if name in record), None)
    if name is None:
        raise DataError(f"{where}: there is no field {' or '.join(names)}; the record has {', '.join(map(str, record)) or 'none'}")
    return name


def identifier(where: str, record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The id in a field, which may be a whole number.

    Raises:
        DataError: there is none, or it is of another type.
    """
    name = field(where, record, names)
    value = record[name]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f'{where}: the field "{name}" is {kind(value)}; an id must be a string')
    return value


def string(where: str, record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The text in a field.

    Raises:
        DataError: there is none, or it is of another type.
    """
    name = field(where, record, names)
    value = record[name]
    if not isinstance(value, str):
        raise DataError(f'{where}: the field "{name}" is {kind(value)}; it must be a string')
    return value


def optional_string(where: str, record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The same, or "" where the fields are missing or null."""
    name = next((name for name in names if record.get(name) is not None), None)
    return "" if name is None else string(where, record, (name,))


def whole_number(where: str, record: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """The whole number in a field, written as one or as a string.

    Raises:
        DataError: there is none.
    """
    name = field(where, record, names)
    value = record[name]
    try:
        return int(value if isinstance(value, str | int) and not isinstance(value, bool) else "")
    except ValueError as error:
        raise DataError(f'{where}: the field "{name}" is {value!r}; it must be a whole number') from error


def objects(where: str, record: Mapping[str, Any], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The list of objects in a field.

    Raises:
        DataError: there is none, or it is of another type.
    """
    name = field(where, record, names)
    value = record[name]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f'{where}: the field "{name}" must be a list of objects')
    return value


def kind(value: object) -> str:
    """What a value is, as JSON calls it."""
    return _KINDS.get(type(value), type(value).__name__)
