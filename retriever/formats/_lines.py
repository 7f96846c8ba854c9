"""What the formats' files have in common: ids, numbers, JSON lines, and lists of a query that are written one after the other."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import numpy as np

from retriever.errors import DataError
from retriever.files import text_hash, write_atomic
from retriever.formats import Pair
from retriever.readers import _text

lines = _text.lines
"""The lines of a file that are not blank, plain or gzip, each with "file:line"."""


def fields(path: Path, layouts: Mapping[int, str], separator: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """The fields of every line, parted by the separator or by white space.

    Args:
        path: the file.
        layouts: the numbers of fields that a line may have, and what they are.
        separator: None for any white space.

    Raises:
        DataError: a line has another number of fields.
    """
    for where, line in lines(path):
        found = line.split(separator)
        if len(found) not in layouts:
            allowed = " or ".join(f"{number} ({names})" for number, names in layouts.items())
            raise DataError(f"{where}: the line has {len(found)} fields; allowed: {allowed}")
        yield where, found


def json_values(path: Path) -> Iterator[tuple[str, Any]]:
    """The JSON value of every line.

    Raises:
        DataError: a line holds none.
    """
    for where, line in lines(path):
        try:
            yield where, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: malformed JSON ({error}); a line must hold one whole value") from error


def records(path: Path, keys: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON object of every line.

    Raises:
        DataError: a line holds none, or it lacks one of the keys.
    """
    for where, value in json_values(path):
        if not isinstance(value, dict):
            raise DataError(f"{where}: the line holds {type(value).__name__}, not an object with {', '.join(keys)}")
        if absent := [key for key in keys if key not in value]:
            raise DataError(f'{where}: the key "{absent[0]}" is missing; the object has {", ".join(value) or "none"}')
        yield where, value


def listed(where: str, record: Mapping[str, Any], key: str) -> list[Any]:
    """The list under a key; an empty one where the key is absent or null.

    Raises:
        DataError: something else stands there.
    """
    value = record.get(key)
    if value is not None and not isinstance(value, list):
        raise DataError(f'{where}: "{key}" is {type(value).__name__}; it must be a list')
    return value or []


def scores_of(where: str, record: Mapping[str, Any], key: str, of: Sequence[Any]) -> list[float | None]:
    """The scores under a key, one for each of some documents; None for each where there are no scores.

    Raises:
        DataError: there are more or fewer scores than documents, or one is no number.
    """
    scores = listed(where, record, key)
    if not scores:
        return [None] * len(of)
    if len(scores) != len(of):
        raise DataError(f'{where}: "{key}" has {len(scores)} scores for {len(of)} documents; there must be one for each')
    return [number(where, score) for score in scores]


def identifier(where: str, value: object) -> str:
    """An id as a string; whole numbers are ids too.

    Raises:
        DataError: it is something else.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{where}: the id {json.dumps(value)[:60]} is neither a string nor a whole number")


def number(where: str, value: object) -> float:
    """A score: a finite number, or its digits.

    Raises:
        DataError: it is something else.
    """
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            score = float(value)
        except (ValueError, OverflowError):
            score = math.nan
        if math.isfinite(score):
            return score
    raise DataError(f"{where}: the score {json.dumps(value)[:60]} is not a finite number")


def whole_number(where: str, value: object) -> int:
    """A grade or a rank.

    Raises:
        DataError: it is no whole number.
    """
    score = number(where, value)
    if score != int(score):
        raise DataError(f"{where}: {value} is not a whole number")
    return int(score)


def text(where: str, value: object, what: str) -> str:
    """A text that is one.

    Raises:
        DataError: it is not, or it is empty.
    """
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: the {what} is {json.dumps(value)[:60]}; it must be a text")
    return value


def id_of(text: str) -> str:
    """The id of a text that has none: sixteen hexadecimal digits of its hash, so that equal texts are one item."""
    return f"{text_hash(text):016x}"


# Writing


def lists(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """The pairs of each query."""
    return (list(group) for _, group in groupby(pairs, key=lambda pair: pair.query_id))


def positives(pairs: Sequence[Pair]) -> list[Pair]:
    """The relevant ones of a list."""
    return [pair for pair in pairs if (pair.grade or 0) > 0]


def negatives(pairs: Sequence[Pair]) -> list[Pair]:
    """The others of a list, unjudged ones too."""
    return [pair for pair in pairs if (pair.grade or 0) <= 0]


def bare(identifier: str) -> str | int:
    """An id as those write it who number their queries and documents: a number where it is one."""
    return int(identifier) if identifier.isascii() and identifier.isdigit() and str(int(identifier)) == identifier else identifier


def short(score: float | None) -> float:
    """A score with the fewest digits that give the same float32 again."""
    return float(str(np.float32(0.0 if score is None else score)))


def one_line(text: str) -> str:
    """A text in which nothing parts fields or lines."""
    return " ".join(text.replace("\t", " ").splitlines())


def json_line(value: Any) -> str:
    """A value as one line of JSON."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def write_json_lines(path: Path, records: Iterable[Any]) -> None:
    """Writes values as JSON lines, whole or not at all."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.writelines(map(json_line, records))

    write_atomic(path, write)


def write_lists(path: Path, pairs: Iterable[Pair], as_text: Callable[[list[Pair]], str], opening: str = "", between: str = "", closing: str = "") -> int:
    """Writes the text of each query's list, and gives the number of lists that had one.

    Args:
        path: whole or absent afterwards; compressed when its name ends with .gz.
        pairs: query by query.
        as_text: what the file says of a list; empty for one that is left out.
        opening: before the first.
        between: between two.
        closing: after the last.

    Raises:
        DataError: the file would be empty.
    """
    written = 0

    def put(stream: TextIO) -> None:
        nonlocal written
        for content in filter(None, map(as_text, lists(pairs))):
            stream.write((between if written else opening) + content)
            written += 1
        if not written:
            raise DataError(f"{path}: nothing can be written: this format needs relevant documents, and no query has one beside another document")
        stream.write(closing)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as raw, _maybe_zipped(raw, path) as binary, io.TextIOWrapper(binary, encoding="utf-8", newline="\n") as stream:
            put(stream)

    write_atomic(path, write)
    return written


def _maybe_zipped(raw: BinaryIO, path: Path) -> contextlib.AbstractContextManager[BinaryIO]:
    """The stream itself, or one that compresses when the name ends with .gz; without a time, so that equal pairs give equal bytes."""
    return cast(BinaryIO, gzip.GzipFile("", "wb", fileobj=raw, mtime=0)) if path.suffix == ".gz" else contextlib.nullcontext(raw)
