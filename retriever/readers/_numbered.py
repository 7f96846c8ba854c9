"""Files of turns that are numbered by Conversation_no and Turn_no, one file a split."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from retriever.errors import DataError
from retriever.readers import Judgement, Source, _fields, _text
from retriever.readers._turns import Histories, alternating, exchange
from retriever.types import Turn

_SPLITS = {"train": "train", "valid": "dev", "dev": "dev", "test": "test"}
_SPLIT = re.compile(r"(?<![a-z])(train|valid|dev|test)")


Gold = Callable[[Mapping[str, Any]], list[str]]
"""The ids of the passages that answer a turn, from its record."""


class NumberedTurn(NamedTuple):
    """A turn of such a file.

    Attributes:
        where: it stands.
        query_id: SPLIT_CONVERSATION_TURN, since the files number their conversations each for itself.
        conversation: SPLIT_CONVERSATION.
        number: of the turn.
        question: what is asked.
        before: what was said before, oldest first.
        record: all fields.
    """

    where: str
    query_id: str
    conversation: str
    number: int
    question: str
    before: tuple[Turn, ...]
    record: Mapping[str, Any]


def by_split(paths: list[Path]) -> dict[str, Path]:
    """Split -> its file, by the word train, dev, valid or test in the file's name; "test" without one.

    Raises:
        DataError: two files are of one split.
    """
    found: dict[str, Path] = {}
    for path in paths:
        match = _SPLIT.search(path.name.casefold())
        split = _SPLITS[match[1]] if match else "test"
        if split in found:
            raise DataError(f'{path}: is of the split "{split}", as {found[split].name} is. Name the files by their splits: train, dev or test')
        found[split] = path
    return found


def turns(split: str, path: Path, answer: tuple[str, ...]) -> Iterator[NumberedTurn]:
    """The turns of a file; one without a Context has the turns of its conversation that stand before it.

    Args:
        split: of the file.
        path: the file.
        answer: the names of the field that holds it.

    Raises:
        DataError: a field is missing or of a wrong type, a question is empty, or turns are out of order.
    """
    histories = Histories()
    for place, record in _text.json_records(path):
        conversation = f"{split}_{_fields.identifier(place, record, ('Conversation_no',))}"
        number = _fields.whole_number(place, record, ("Turn_no",))
        where = f"{place} (conversation {record['Conversation_no']}, turn {number})"
        question = _fields.string(where, record, ("Question",))
        context = _context(where, record)
        if context is None:
            before = histories.before(where, conversation, number)
            histories.add(conversation, *exchange(question, _fields.optional_string(where, record, answer)))
        else:
            histories.check(where, conversation, number)
            before = alternating(context)
        yield NumberedTurn(where, f"{conversation}_{number}", conversation, number, question, before, record)


def splits(source: Source, files: Mapping[str, Path], gold: Gold) -> tuple[str, ...]:
    """The names of the qrels files, and the splits whose files name the passages that answer."""
    own = (split for split, path in files.items() if any(gold(record) for _, record in _text.json_records(path)))
    return tuple(dict.fromkeys([*_text.qrels_files(source.path), *own]))


def qrels(source: Source, split: str, files: Mapping[str, Path], gold: Gold) -> Iterator[Judgement]:
    """The judgements of the split's qrels file; without one, grade 1 for the passages that its turns name."""
    path = _text.qrels_files(source.path).get(split)
    if path:
        return _text.judgements(path)
    found = turns(split, files[split], ())
    return (Judgement(turn.where, turn.query_id, doc_id, 1) for turn in found for doc_id in gold(turn.record))


def _context(where: str, record: Mapping[str, Any]) -> list[str] | None:
    context = record.get("Context")
    if context is None or (isinstance(context, list) and all(isinstance(text, str) for text in context)):
        return context
    raise DataError(f'{where}: the field "Context" must be a list of questions and answers by turns, oldest first')
