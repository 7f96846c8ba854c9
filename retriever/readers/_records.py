"""Documents, queries and judgements from records with named fields, whatever the format calls the fields."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from retriever.conversations.reading import HUMAN, is_user
from retriever.errors import DataError
from retriever.readers import Judgement, _fields
from retriever.readers._turns import Histories, exchange
from retriever.types import Document, Query, Turn

DOCUMENT_ID = ("_id", "id", "doc_id", "docid")
DOCUMENT_TEXT = ("text", "contents", "body")
QUERY_ID = ("_id", "id", "query_id", "qid")
QUERY_TEXT = ("text", "query", "utterance")
TURNS = ("turns", "history")
CONVERSATION = ("conversation_id", "conversation", "conv_id")
TURN_NUMBER = ("turn", "turn_number", "turn_no")
SPEAKER = ("speaker", "utterance_speaker")
ANSWER = ("response", "answer")
REWRITE = ("rewrite", "text")
JUDGED_QUERY = ("query-id", "query_id", "qid")
JUDGED_DOCUMENT = ("corpus-id", "corpus_id", "doc_id", "docid", "doc-id", "pid")
GRADE = ("score", "grade", "relevance", "label")

_NO_FACTS = frozenset(
    [*QUERY_ID, *QUERY_TEXT, *TURNS, *CONVERSATION, *TURN_NUMBER, *SPEAKER, *ANSWER, "rewrite", "rewrites", "image", "split", "relevant", "metadata", "among"]
)


def document(where: str, record: Mapping[str, Any], folder: Path, fields: Sequence[str] = ()) -> Document:
    """The document in a record: id and text, and a title, an image's path (relative to `folder`) and wanted fields where it has them.

    Raises:
        DataError: id or text is missing, or a field is of a wrong type.
    """
    image = _fields.optional_string(where, record, ("image",))
    text = _fields.optional_string(where, record, DOCUMENT_TEXT) if image else _fields.string(where, record, DOCUMENT_TEXT)
    title = _fields.optional_string(where, record, ("title",))
    return Document(_fields.identifier(where, record, DOCUMENT_ID), text, title, folder / image if image else None, kept_fields(record, fields))


def kept_fields(record: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The values of wanted fields, of the record or else of its metadata; a missing one is left out."""
    inner = record.get("metadata")
    values = {**(inner if isinstance(inner, Mapping) else {}), **record}
    return {name: values[name] for name in names if values.get(name) is not None}


def queries(records: Iterable[tuple[str, Mapping[str, Any]]], folder: Path) -> Iterator[tuple[str, Query]]:
    """The queries in the records of a file, in its order.

    A record that has the number of a turn and a conversation, but no history, has the turns of the conversation that stand
    before it. There a record whose speaker is not the user is such a turn and no query, and the user's turn may bring what was
    answered.

    Raises:
        DataError: as `query` and `Histories.before` do, or a turn names no conversation or says nothing.
    """
    histories = Histories()
    for where, record in records:
        if not _is_turn_alone(record):
            yield where, query(where, record, folder)
            continue
        conversation, number = _conversation(where, record), _fields.whole_number(where, record, TURN_NUMBER)
        if not conversation:
            raise DataError(f"{where}: turn {number} names no conversation in the field {' or '.join(CONVERSATION)}")
        before = histories.before(where, conversation, number)
        turn = Turn(_fields.optional_string(where, record, SPEAKER) or "user", _fields.string(where, record, QUERY_TEXT))
        if not turn.text.strip():
            raise DataError(f"{where}: turn {number} of the conversation {conversation} is empty. Give it a text, or leave it out")
        if is_user(turn):
            histories.add(conversation, *exchange(turn.text, _fields.optional_string(where, record, ANSWER)))
            named = record if _fields.has(record, QUERY_ID) else {**record, QUERY_ID[0]: f"{conversation}_{number}"}
            yield where, dataclasses.replace(query(where, named, folder), turns=before)
        else:
            histories.add(conversation, turn)


def query(where: str, record: Mapping[str, Any], folder: Path) -> Query:
    """The query in a record: id and text; earlier turns, conversation, rewrites, an image's path (relative to `folder`) and facts where it has them.

    Raises:
        DataError: id or text is missing, or a field is of a wrong type.
    """
    image = _fields.optional_string(where, record, ("image",))
    return Query(
        _fields.identifier(where, record, QUERY_ID),
        _fields.optional_string(where, record, QUERY_TEXT) if image else _fields.string(where, record, QUERY_TEXT),
        tuple(_turns(where, record)),
        folder / image if image else None,
        _conversation(where, record),
        _rewrites(where, record),
        facts(record, _NO_FACTS),
        _among(where, record),
    )


def facts(record: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """What else a record and its metadata say of a query: every string, number, boolean and list of strings that is not known by its name, nor empty."""
    inner = record.get("metadata")
    own = {name: value for name, value in record.items() if name not in known}
    return {name: value for name, value in {**(inner if isinstance(inner, Mapping) else {}), **own}.items() if _is_fact(value)}


def stated_rewrites(where: str, record: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    """Rewriter -> rewrite, from the field that has the rewriter's; a missing or empty one is none.

    Raises:
        DataError: a rewrite is no string.
    """
    texts = {rewriter: _fields.optional_string(where, record, (name,)) for rewriter, name in names.items()}
    return {rewriter: text for rewriter, text in texts.items() if text.strip()}


def rewrite(where: str, record: Mapping[str, Any]) -> tuple[str, str]:
    """The id of a query and its rewrite in a record; null is "".

    Raises:
        DataError: one of the two is missing or of a wrong type.
    """
    value = record[_fields.field(where, record, REWRITE)]
    return _fields.identifier(where, record, QUERY_ID), "" if value is None else _fields.string(where, record, REWRITE)


def judgement(where: str, record: Mapping[str, Any]) -> Judgement:
    """The judgement in a record.

    Raises:
        DataError: a field is missing or of a wrong type, or the grade is no whole number.
    """
    value = record[_fields.field(where, record, GRADE)]
    try:
        grade = int(value)
        whole = grade == float(value)
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise DataError(f"{where}: the grade {value!r} is not a whole number")
    return Judgement(where, _fields.identifier(where, record, JUDGED_QUERY), _fields.identifier(where, record, JUDGED_DOCUMENT), grade)


def _is_turn_alone(record: Mapping[str, Any]) -> bool:
    """Whether a record is a turn whose history must be gathered."""
    return _fields.has(record, TURN_NUMBER) and any(name in record for name in CONVERSATION) and not _fields.has(record, TURNS)


def _conversation(where: str, record: Mapping[str, Any]) -> str:
    return _fields.identifier(where, record, CONVERSATION) if _fields.has(record, CONVERSATION) else ""


def _rewrites(where: str, record: Mapping[str, Any]) -> dict[str, str]:
    """Rewriter -> rewrite; a null or empty one is none."""
    several = record.get("rewrites") or {}
    if not isinstance(several, Mapping):
        raise DataError(f'{where}: the field "rewrites" is {_fields.kind(several)}; it must be an object such as {{"{HUMAN}": "..."}}')
    every = {HUMAN: record.get("rewrite"), **several}
    for rewriter, text in every.items():
        if text is not None and not isinstance(text, str):
            raise DataError(f'{where}: the rewrite by "{rewriter}" is {_fields.kind(text)}; it must be a string')
    return {rewriter: text for rewriter, text in every.items() if text and text.strip()}


def _among(where: str, record: Mapping[str, Any]) -> dict[str, Any]:
    among = record.get("among") or {}
    if not isinstance(among, dict):
        raise DataError(f'{where}: the field "among" is {_fields.kind(among)}; it must be an object of conditions such as {{"kind": "image"}}')
    return among


def _turns(where: str, record: Mapping[str, Any]) -> Iterator[Turn]:
    name = next((name for name in TURNS if record.get(name) is not None), None)
    if name is None:
        return
    if not isinstance(record[name], list):
        raise DataError(f'{where}: the field "{name}" is {_fields.kind(record[name])}; it must be a list of turns, oldest first')
    for number, turn in enumerate(record[name], 1):
        if not (isinstance(turn, dict) and isinstance(turn.get("speaker"), str) and isinstance(turn.get("text"), str)):
            raise DataError(f'{where}: a turn in the field "{name}" is not an object with a speaker and a text: turn {number}')
        if not turn["text"].strip():
            raise DataError(f'{where}: turn {number} in the field "{name}" is empty. Give it a text, or leave it out')
        yield Turn(turn["speaker"], turn["text"])


def _is_fact(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, str) for item in value)
    return isinstance(value, bool | int) or (isinstance(value, str) and bool(value))
