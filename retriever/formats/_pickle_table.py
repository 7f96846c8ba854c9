"""Tables of numbers in a pickle, read as data: the instructions are looked at one by one, and none of them can run anything.

Python's own reader of pickles calls whatever function the file names. Here there are numbers, texts, tuples and tables
of them, and the constructors that numpy's scalars are made with, which are replaced by code of ours; any other
instruction is refused.
"""

from __future__ import annotations

import pickletools
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retriever.errors import DataError
from retriever.readers import _text

_CONSTRUCTORS = {
    "numpy.core.multiarray scalar": "scalar",
    "numpy._core.multiarray scalar": "scalar",
    "numpy dtype": "dtype",
    "_codecs encode": "bytes",  # how protocol 2 writes them
}
_DTYPES = frozenset({"f2", "f4", "f8", "i4", "i8"})
_VALUES = frozenset(
    [
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
    ]
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()
_INNER = object()
"""Stands for a table in the memory of the pickle: nothing may refer to one twice, so that tables can be forgotten."""


def entries(path: Path) -> Iterator[tuple[Any, Any]]:
    """Key and value of the entries of the table that a pickle holds, plain or gzip, one after the other.

    Raises:
        DataError: the file cannot be read, is damaged, or holds anything else than tables of numbers.
    """
    reader = _Reader(path)
    try:
        with _text.open_bytes(path) as stream:
            for opcode, argument, _ in pickletools.genops(stream):
                yield from reader.step(opcode.name, argument)
    except (OSError, EOFError, zlib.error, ValueError, IndexError, TypeError, struct.error) as error:
        raise DataError(f"{path}: is no whole pickle of scores ({error}). Fetch the file again") from error


class _Reader:
    """The stack and the memory of a pickle's instructions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> Iterator[tuple[Any, Any]]:
        """Does one instruction; gives what it puts into the outermost table."""
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name == "EMPTY_DICT":
            self.stack.append({})
        elif name == "MARK":
            self.stack.append(_MARK)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if name == "SETITEM" else self._pop_to_mark()
            yield from self._fill(list(zip(items[::2], items[1::2], strict=True)))
        elif name == "TUPLE":
            self.stack.append(tuple(self._pop_to_mark()))
        elif name in _TUPLES:
            self.stack.append(tuple(self._pop(_TUPLES[name])))
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "BINGET", "LONG_BINGET", "GET"):
            self._remember(name, argument)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self._name(argument if name == "GLOBAL" else " ".join(map(str, self._pop(2))))
        elif name in ("REDUCE", "BUILD"):
            self._make(name, *self._pop(2))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise self._refusal(f"the instruction {name}")

    def _fill(self, items: list[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        if not isinstance(self.stack[-1], dict):
            raise self._refusal("entries outside a table")
        if len(self.stack) == 1:
            yield from items
        else:
            self.stack[-1].update(items)

    def _remember(self, name: str, argument: Any) -> None:
        if name.endswith("GET"):
            if (value := self.memory[int(argument)]) is _INNER:
                raise self._refusal("the same table twice")
            self.stack.append(value)
            return
        value = self.stack[-1]
        self.memory[len(self.memory) if argument is None else int(argument)] = _INNER if isinstance(value, dict) else value

    def _name(self, name: str) -> None:
        if name not in _CONSTRUCTORS:
            raise self._refusal(f'the name "{name}"')
        self.stack.append(_CONSTRUCTORS[name])

    def _make(self, name: str, made: Any, arguments: Any) -> None:
        """A dtype of numpy, a scalar of it as a number, and bytes; each made here, whatever the file calls."""
        if name == "BUILD" and isinstance(made, np.dtype) and isinstance(arguments, tuple) and arguments[1:2] in (("<",), (">",)):
            self.stack.append(made.newbyteorder(arguments[1]))
        elif name == "REDUCE" and made == "dtype" and arguments[0] in _DTYPES:
            self.stack.append(np.dtype(arguments[0]))
        elif name == "REDUCE" and made == "scalar" and isinstance(arguments[0], np.dtype) and isinstance(arguments[1], bytes):
            self.stack.append(np.frombuffer(arguments[1], dtype=arguments[0], count=1)[0].item())
        elif name == "REDUCE" and made == "bytes" and isinstance(arguments[0], str) and arguments[1:] == ("latin1",):
            self.stack.append(arguments[0].encode("latin1"))
        else:
            raise self._refusal(f"the instruction {name}")

    def _pop(self, count: int) -> list[Any]:
        found = self.stack[len(self.stack) - count :] if count <= len(self.stack) else []
        if len(found) != count or any(value is _MARK for value in found):
            raise ValueError("an instruction lacks its values")
        del self.stack[len(self.stack) - count :]
        return found

    def _pop_to_mark(self) -> list[Any]:
        mark = max(place for place, value in enumerate(self.stack) if value is _MARK)
        found = self.stack[mark + 1 :]
        del self.stack[mark:]
        return found

    def _refusal(self, found: str) -> DataError:
        return DataError(
            f"{self.path}: this pickle holds more than a table of scores ({found}), which could run code. Write its scores as a TREC run where you trust it"
        )
