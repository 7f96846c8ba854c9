"""The entries of one large JSON object, one at a time: a run of a gigabyte never lies in memory as a whole."""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retriever.errors import DataError
from retriever.readers import _text

CHUNK = 1 << 20
"""Characters read at a time."""

_BLANKS = re.compile(r"[ \t\r\n]*")


def entries(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Place, key and value of the entries of the object that a file holds, plain or gzip.

    Raises:
        DataError: the file cannot be read or holds something else; the message names the line.
    """
    try:
        with io.TextIOWrapper(_text.open_bytes(path), encoding="utf-8-sig") as stream:
            yield from _Parser(path, stream).entries()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


class _Parser:
    """A stretch of the text, how far it is parsed, and the line of that place."""

    def __init__(self, path: Path, stream: io.TextIOWrapper) -> None:
        self.path = path
        self.stream = stream
        self.decoder = json.JSONDecoder()
        self.buffer = ""
        self.place = 0
        self.line = 1
        self.ended = False

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"

    def entries(self) -> Iterator[tuple[str, str, Any]]:
        self._take("{")
        separator = self._take("}") if self._next() == "}" else ","
        while separator == ",":
            self._next()
            where, key = self.where, self._value()
            if not isinstance(key, str):
                raise DataError(f"{where}: {json.dumps(key)[:60]} is no key; a key is a string")
            self._take(":")
            yield where, key, self._value()
            separator = self._take(",", "}")
        if self._next():
            raise DataError(f"{self.where}: something follows the object; the file must hold one object")

    def _value(self) -> Any:
        """The next value, whole: a number at the end of the stretch may go on in the rest."""
        self._next()
        size = CHUNK
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.place)
                if end < len(self.buffer) or self.ended:
                    self._move(end)
                    return value
            except (ValueError, RecursionError) as error:
                if self.ended:
                    raise DataError(f"{self.where}: malformed JSON ({error})") from error
            self._read(size)
            size *= 2  # a value that is longer than expected is not parsed anew for each chunk

    def _take(self, *allowed: str) -> str:
        found = self._next()
        if found not in allowed:
            raise DataError(f"{self.where}: malformed JSON: found {found or 'the end'!r} where {' or '.join(allowed)} must stand")
        self._move(self.place + 1)
        return found

    def _next(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            blanks = _BLANKS.match(self.buffer, self.place)
            self._move(blanks.end() if blanks else self.place)
            if self.place < len(self.buffer) or self.ended:
                return self.buffer[self.place : self.place + 1]
            self._read(CHUNK)

    def _move(self, place: int) -> None:
        self.line += self.buffer.count("\n", self.place, place)
        self.place = place

    def _read(self, characters: int) -> None:
        chunk = self.stream.read(characters)
        self.buffer = self.buffer[self.place :] + chunk
        self.place = 0
        self.ended = not chunk
