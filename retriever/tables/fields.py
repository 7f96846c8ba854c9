"""Fields of documents beside their text, such as a year or a language: kept in columns, so that a filter reads nothing else.

A value is a number, true or false, a text, or a list of texts (a set, such as topics). Missing values are allowed and match no condition.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retriever.errors import DataError
from retriever.files import write_atomic

FILE = "fields.arrow"

Kind = Literal["number", "truth", "text", "texts"]
_LARGEST = 2**1023
"""From about there on a whole number is beyond what a column of numbers can hold."""

Value = float | bool | str | tuple[str, ...]


def kind_of(value: object) -> Kind | None:
    """What a value is; None for what no field can hold."""
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, int):
        return "number" if abs(value) < _LARGEST else None
    if isinstance(value, float):
        return "number" if math.isfinite(value) else None
    if isinstance(value, str):
        return "text"
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return "texts"
    return None


def as_json(where: str, fields: Mapping[str, Any]) -> str:
    """The fields as JSON with sorted keys, "" where there are none.

    Raises:
        DataError: a name or a value is none that can be kept; the message begins with `where`.
    """
    for name, value in fields.items():
        if not isinstance(name, str) or not name or kind_of(value) is None:
            raise DataError(f'{where}: the field "{name}" is {value!r:.60}; a field holds a finite number, true or false, a text or a list of texts')
    return json.dumps(dict(fields), sort_keys=True, ensure_ascii=False) if fields else ""


class FieldWriter:
    """Collects the fields of documents, 4 to 8 bytes for each document and field, and writes their columns."""

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}
        self._documents = 0

    def add(self, where: str, fields: Mapping[str, Any]) -> None:
        """Takes those of the next document.

        Raises:
            DataError: a field had a value of another kind before; the message begins with `where`.
        """
        for name, value in fields.items():
            column = self._columns.setdefault(name, _Column(kind_of(value) or "text"))
            if column.kind != kind_of(value):
                raise DataError(f'{where}: the field "{name}" is a {kind_of(value)} here and a {column.kind} in documents before. Give all of them the same')
            column.fill(self._documents)
            column.add(value)
        self._documents += 1

    def write(self, path: Path) -> None:
        """Writes the columns, or nothing where no document has a field."""
        for column in self._columns.values():
            column.fill(self._documents)
        if not self._columns:
            return
        batch = pa.record_batch([column.arrow() for column in self._columns.values()], names=list(self._columns))

        def write(temporary: Path) -> None:
            with pa.ipc.new_file(str(temporary), batch.schema) as stream:
                stream.write_batch(batch)

        write_atomic(path, write)


class _Column:
    """One field's values so far."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._numbers = array("d")  # of a number or truth: NaN where there is none
        self._codes = array("i")  # of texts: places in the vocabulary, -1 where there is none
        self._ends = array("q")  # of lists of texts
        self._vocabulary: dict[str, int] = {}

    def __len__(self) -> int:
        return len({"text": self._codes, "texts": self._ends}.get(self.kind, self._numbers))

    def add(self, value: Any) -> None:
        if self.kind in ("number", "truth"):
            self._numbers.append(float(value))
            return
        texts = [value] if self.kind == "text" else value
        self._codes.extend(self._vocabulary.setdefault(text, len(self._vocabulary)) for text in texts)
        self._ends.append(len(self._codes))

    def fill(self, documents: int) -> None:
        """Missing values up to so many documents."""
        missing = documents - len(self)
        if self.kind in ("number", "truth"):
            self._numbers.extend([math.nan] * missing)
        elif self.kind == "text":
            self._codes.extend([-1] * missing)
        else:
            self._ends.extend([len(self._codes)] * missing)

    def arrow(self) -> pa.Array:
        if self.kind in ("number", "truth"):
            numbers = np.frombuffer(self._numbers, dtype=np.float64)
            column = pa.array(numbers, mask=np.isnan(numbers))
            return column.cast(pa.bool_()) if self.kind == "truth" else column
        codes = np.frombuffer(self._codes, dtype=np.int32)
        texts = pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), pa.array(list(self._vocabulary), type=pa.string()))
        if self.kind == "text":
            return texts
        return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.frombuffer(self._ends, dtype=np.int64)]).astype(np.int32)), texts)


class FieldColumns:
    """The fields of N documents, memory-mapped."""

    def __init__(self, folder: Path, n_documents: int) -> None:
        """Opens the columns in a folder of documents; there may be none.

        Raises:
            DataError: they are cut, damaged or of another number of documents.
        """
        path = folder / FILE
        self.n_documents = n_documents
        self._columns: dict[str, pa.Array] = {}
        if not path.exists():
            return
        try:
            batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise DataError(f"{path}: the documents' fields are cut or damaged ({error})") from error
        if batch.num_rows != n_documents:
            raise DataError(f"{path}: has the fields of {batch.num_rows} documents, there are {n_documents}")
        self._columns = dict(zip(batch.schema.names, batch.columns, strict=True))

    @property
    def kinds(self) -> dict[str, Kind]:
        """What the values of each field are."""
        return {name: _kind_of_column(column) for name, column in self._columns.items()}

    def numbers(self, name: str) -> NDArray[np.float64]:
        """[N], of a field of the kind number or truth, NaN where there is none."""
        column = self._columns[name]
        whole = column.cast(pa.float64()) if pa.types.is_boolean(column.type) else column
        return np.asarray(whole.to_numpy(zero_copy_only=False))

    def texts(self, name: str) -> tuple[NDArray[np.int64], list[str], NDArray[np.int64]]:
        """Of a field of the kind text or texts: the code of each entry, the vocabulary that it counts in, and the row of each entry."""
        column = self._columns[name]
        if pa.types.is_list(column.type):
            entries, counts = column.flatten(), np.diff(column.offsets.to_numpy())
        else:
            entries, counts = column, np.ones(len(column), dtype=np.int64)
        codes = entries.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return codes.astype(np.int64), entries.dictionary.to_pylist(), np.repeat(np.arange(self.n_documents), counts)


def _kind_of_column(column: pa.Array) -> Kind:
    if pa.types.is_list(column.type):
        return "texts"
    if pa.types.is_dictionary(column.type):
        return "text"
    return "truth" if pa.types.is_boolean(column.type) else "number"
