"""Documents, queries and judgements from records with named fields, whatever the format calls the fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from retriever.errors import DataError
from retriever.readers import Judgement
from retriever.types import Document, Query, Turn

DOCUMENT_ID = ("_id", "id", "doc_id", "docid")
DOCUMENT_TEXT = ("text", "contents", "body")
QUERY_ID = ("_id", "id", "query_id", "qid")
QUERY_TEXT = ("text", "query", "utterance")
TURNS = ("turns", "history")
JUDGED_QUERY = ("query-id", "query_id", "qid")
JUDGED_DOCUMENT = ("corpus-id", "corpus_id", "doc_id", "docid", "doc-id", "pid")
GRADE = ("score", "grade", "relevance", "label")

_KINDS = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", type(None): "null"}


def document(where: str, record: Mapping[str, Any], folder: Path, fields: Sequence[str] = ()) -> Document:
    """The document in a record: id and text, and a title, an image's path (relative to `folder`) and wanted fields where it has them.

    Raises:
        DataError: id or text is missing, or a field is of a wrong type.
    """
    image = _optional_string(where, record, ("image",))
    text = _optional_string(where, record, DOCUMENT_TEXT) if image else _string(where, record, DOCUMENT_TEXT)
    title = _optional_string(where, record, ("title",))
    return Document(_identifier(where, record, DOCUMENT_ID), text, title, folder / image if image else None, kept_fields(record, fields))


def kept_fields(record: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The values of wanted fields, of the record or else of its metadata; a missing one is left out."""
    inner = record.get("metadata")
    values = {**(inner if isinstance(inner, Mapping) else {}), **record}
    return {name: values[name] for name in names if values.get(name) is not None}


def query(where: str, record: Mapping[str, Any], folder: Path) -> Query:
    """The query in a record: id and text, and earlier turns and an image's path (relative to `folder`) where it has them.

    Raises:
        DataError: id or text is missing, or a field is of a wrong type.
    """
    image = _optional_string(where, record, ("image",))
    text = _optional_string(where, record, QUERY_TEXT) if image else _string(where, record, QUERY_TEXT)
    return Query(_identifier(where, record, QUERY_ID), text, tuple(_turns(where, record)), folder / image if image else None)


def judgement(where: str, record: Mapping[str, Any]) -> Judgement:
    """The judgement in a record.

    Raises:
        DataError: a field is missing or of a wrong type, or the grade is no whole number.
    """
    value = record[_field(where, record, GRADE)]
    try:
        grade = int(value)
        whole = grade == float(value)
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise DataError(f"{where}: the grade {value!r} is not a whole number")
    return Judgement(where, _identifier(where, record, JUDGED_QUERY), _identifier(where, record, JUDGED_DOCUMENT), grade)


def _turns(where: str, record: Mapping[str, Any]) -> Iterator[Turn]:
    name = next((name for name in TURNS if record.get(name) is not None), None)
    if name is None:
        return
    if not isinstance(record[name], list):
        raise DataError(f'{where}: the field "{name}" is {_kind(record[name])}; it must be a list of turns, oldest first')
    for turn in record[name]:
        if not (isinstance(turn, dict) and isinstance(turn.get("speaker"), str) and isinstance(turn.get("text"), str)):
            raise DataError(f'{where}: a turn in the field "{name}" is not an object with a speaker and a text')
        yield Turn(turn["speaker"], turn["text"])


def _identifier(where: str, record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    name = _field(where, record, names)
    value = record[name]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f'{where}: the field "{name}" is {_kind(value)}; an id must be a string')
    return value


def _string(where: str, record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    name = _field(where, record, names)
    value = record[name]
    if not isinstance(value, str):
        raise DataError(f'{where}: the field "{name}" is {_kind(value)}; it must be a string')
    return value


def _optional_string(where: str, record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return _string(where, record, names) if any(record.get(name) is not None for name in names) else ""


def _field(where: str, record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    name = next((name for name in names if name in record), None)
    if name is None:
        raise DataError(f"{where}: there is no field {' or '.join(names)}; the record has {', '.join(map(str, record)) or 'none'}")
    return name


def _kind(value: object) -> str:
    return _KINDS.get(type(value), type(value).__name__)
