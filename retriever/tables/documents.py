"""Documents in a folder: written once in a stream, then memory-mapped, found by row or by id.

Texts are compressed, a hundred or so documents together: one that is looked up costs a fraction of a millisecond. Ids lie open beside them.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retriever.errors import DataError
from retriever.files import link_or_copy, text_hash
from retriever.filters import Condition, check_conditions, met
from retriever.images.files import image_sha256
from retriever.runs import Strings
from retriever.tables.fields import FILE as FIELDS
from retriever.tables.fields import FieldColumns, FieldWriter, as_json
from retriever.types import Document, check_id

_TOGETHER = 128
"""Documents whose texts are compressed together."""

_READ = 64
"""Of those, how many are kept as they were read last."""

_SINGLE = 8
"""From so many documents wanted of those that lie together, reading all of them is the sooner."""

_MASKS = 32
"""Conditions whose documents are remembered, a byte for each document of the table."""

_IDS = 65_536
"""Ids in a batch."""

_TEXTS = pa.schema([(name, pa.string()) for name in ("title", "text", "image", "fields")])
_NAMES = pa.schema([("doc_id", pa.string())])
_FILES = ("documents.arrow", "ids.arrow", "ids.npy", "variants.npy")


def framed(where: str, **fields: str) -> bytes:
    """The fields in UTF-8, each after its length, so that different fields never give equal bytes.

    Raises:
        DataError: a field is no string or holds half of a surrogate pair; the message begins with `where`.
    """
    parts = []
    for name, value in fields.items():
        if not isinstance(value, str):
            raise DataError(f"{where}: the {name} is {type(value).__name__} {value!r:.40}; it must be a string")
        try:
            encoded = value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: the {name} has the lone surrogate {value[error.start]!r} at character {error.start + 1}, which UTF-8 cannot carry. Remove it"
            ) from error
        parts += [len(encoded).to_bytes(8, "big"), encoded]
    return b"".join(parts)


def image_hash(where: str, image: Path | None) -> str:
    """The SHA-256 of an image's bytes, or "" without one.

    Raises:
        DataError: the file is not there.
    """
    try:
        return "" if image is None else image_sha256(image)
    except DataError as error:
        raise DataError(f"{where}: the image {error}") from error


def document_variant(text: str, image: str) -> int:
    """64 bits of what a document says: the hash of its title and text, and of its image where it has one.

    Args:
        text: title and text.
        image: the SHA-256 of its image, or "".
    """
    return text_hash(json.dumps([text, image]) if image else text)


class DocumentWriter:
    """Writes documents.arrow, ids.arrow, ids.npy, variants.npy and, where documents have fields, fields.arrow.

    It holds a batch of documents, and 16 bytes for each one before and 4 to 8 for each of its fields.

    Attributes:
        empty_texts: how many documents so far have no title, no text and no image.
        images: how many are an image without title and text.
    """

    def __init__(self, folder: Path) -> None:
        self.empty_texts = self.images = 0
        self._folder = folder
        self._digest = hashlib.sha256()
        self._variants, self._hashes = array("Q"), array("Q")
        self._ids: list[str] = []
        self._texts: list[tuple[str, str, str | None, str]] = []
        self._fields = FieldWriter()
        compressed = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
        self._text_file = pa.ipc.new_file(str(folder / "documents.arrow"), _TEXTS, options=compressed)
        self._id_file = pa.ipc.new_file(str(folder / "ids.arrow"), _NAMES)

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            self._flush_texts()
            self._flush_ids()
        self._text_file.close()
        self._id_file.close()
        if error is None:
            self._fields.write(self._folder / FIELDS)
            self._write_hashes()

    def __len__(self) -> int:
        return len(self._hashes)

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of all ids, titles, texts, images and fields so far, in their order."""
        return self._digest.hexdigest()[:16]

    def add(self, where: str, document: Document) -> None:
        """Takes the next document.

        Raises:
            DataError: it breaks a rule; the message begins with `where`.
        """
        check_id(document.doc_id, where)
        fields = as_json(where, document.fields)
        image = image_hash(where, document.image)
        hashed = {"id": document.doc_id, "title": document.title, "text": document.text, "image": image}
        self._digest.update(framed(where, **hashed, **({"fields": fields} if fields else {})))
        self._fields.add(where, document.fields)
        self._hashes.append(text_hash(document.doc_id))
        self._variants.append(document_variant(document.full_text, image))
        self.empty_texts += not (document.title or document.text or document.image)
        self.images += bool(image) and not document.full_text
        self._ids.append(document.doc_id)
        self._texts.append((document.title, document.text, None if document.image is None else str(document.image), fields))
        if len(self._texts) == _TOGETHER:
            self._flush_texts()
        if len(self._ids) == _IDS:
            self._flush_ids()

    def _flush_texts(self) -> None:
        if self._texts:
            columns = [pa.array(column, type=pa.string()) for column in zip(*self._texts, strict=True)]
            self._text_file.write_batch(pa.record_batch(columns, schema=_TEXTS))
            self._texts = []

    def _flush_ids(self) -> None:
        if self._ids:
            self._id_file.write_batch(pa.record_batch([pa.array(self._ids, type=pa.string())], schema=_NAMES))
            self._ids = []

    def _write_hashes(self) -> None:
        variants, hashes = (np.frombuffer(values, dtype=np.uint64) for values in (self._variants, self._hashes))
        rows = np.argsort(hashes, kind="stable")
        _save(self._folder / "variants.npy", variants.shape, variants)
        _save(self._folder / "ids.npy", (2, len(hashes)), hashes[rows], rows.astype(np.uint64))


class DocumentTable:
    """N documents, memory-mapped: what is not looked at takes no memory.

    Attributes:
        folder: where the files of a `DocumentWriter` lie.
        variants: uint64 [N], the `document_variant` of each document: documents that say the same have the same.
        fields: what documents can be filtered by.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the files.

        Raises:
            DataError: one is missing, cut off or of another length than the others.
        """
        self.folder = folder
        try:
            alone = pa.ipc.IpcReadOptions(use_threads=False)  # a hundred texts are read sooner than threads have met
            self._texts, ids = (pa.ipc.open_file(pa.memory_map(str(folder / name)), options=alone) for name in _FILES[:2])
            self._ids = [ids.get_batch(number).column(0) for number in range(ids.num_record_batches)]
            self._hashes, self._rows = np.asarray(np.load(folder / "ids.npy", mmap_mode="r"))
            self.variants: NDArray[np.uint64] = np.load(folder / "variants.npy", mmap_mode="r")
            lengths = {sum(map(len, self._ids)), len(self._hashes), len(self.variants)}
            whole = self._texts.num_record_batches == -(-len(self.variants) // _TOGETHER)
            self.fields = FieldColumns(folder, len(self))
        except (OSError, ValueError, pa.ArrowException, DataError) as error:
            raise DataError(f"{folder}: the prepared documents are damaged ({error}). Delete this folder and run the same command again") from error
        if len(lengths) > 1 or not whole:
            found = f"files of {sorted(lengths)} documents"
            raise DataError(f"{folder}: the prepared documents are damaged ({found}). Delete this folder and run the same command again")
        self._batch = lru_cache(_READ)(self._decompressed)
        self._allowed = lru_cache(_MASKS)(self._meeting)

    def __len__(self) -> int:
        """N, the number of documents."""
        return len(self.variants)

    def link_to(self, folder: Path) -> None:
        """Gives the files of the documents second names in another folder."""
        for name in (*_FILES, FIELDS):
            if (self.folder / name).exists():
                link_or_copy(self.folder / name, folder / name)

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of all ids, full texts and images in their order."""
        return hashlib.sha256(np.ascontiguousarray(self.variants).tobytes() + self._hashes.tobytes() + self._rows.tobytes()).hexdigest()[:16]

    def allowed(self, conditions: Sequence[Condition]) -> NDArray[np.bool_]:
        """Bool [N], the documents that meet all conditions; found once for each of the last few.

        Raises:
            ConfigError: the documents' fields cannot answer a condition.
        """
        return self._allowed(tuple(conditions))

    def documents(self, start: int = 0) -> Iterator[Document]:
        """All documents in their order, from row `start` on."""
        for number in range(start // _TOGETHER, self._texts.num_record_batches):
            first = number * _TOGETHER
            rows = _rows(self._decompressed(number))
            ids = self.ids_of(np.arange(first, first + len(rows)))
            yield from (_document(doc_id, *row) for doc_id, row in list(zip(ids, rows, strict=True))[max(start - first, 0) :])

    def document(self, doc_id: str) -> Document:
        """The document of an id.

        Raises:
            DataError: there is none.
        """
        row = int(self.rows_of([doc_id])[0])
        if row < 0:
            raise DataError(f"{self.folder}: there is no document {doc_id}")
        return self.documents_by_row([row])[0]

    def documents_by_row(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Document]:
        """The documents of rows, in the order of `rows`."""
        wanted = self._checked(rows)
        numbers, counts = np.unique(wanted // _TOGETHER, return_counts=True)
        whole = {number: _rows(self._batch(number)) for number in numbers[counts >= _SINGLE].tolist()}

        def texts(number: int, place: int) -> Sequence[Any]:
            return whole[number][place] if number in whole else tuple(column[place].as_py() for column in self._batch(number).columns)

        return [_document(doc_id, *texts(*divmod(row, _TOGETHER))) for doc_id, row in zip(self.ids_of(wanted), wanted.tolist(), strict=True)]

    def ids_of(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The ids of rows, in the order of `rows`."""
        wanted = self._checked(rows)
        ids = np.empty(len(wanted), dtype=np.object_)
        for batch in np.unique(wanted // _IDS).tolist():
            here = np.flatnonzero(wanted // _IDS == batch)
            ids[here] = self._ids[batch].take(pa.array(wanted[here] % _IDS)).to_pylist()
        return list(ids)

    def rows_of(self, doc_ids: Sequence[str] | Strings) -> NDArray[np.int64]:
        """The rows of document ids, int64 in their order; -1 for an id that the collection lacks."""
        wanted = list(doc_ids)
        hashes = np.array([text_hash(doc_id) for doc_id in wanted], dtype=np.uint64)
        rows = np.full(len(hashes), -1, dtype=np.int64)
        missing, places = np.arange(len(hashes)), np.searchsorted(self._hashes, hashes)
        while len(missing):  # once, but for different ids that share a hash: then the next place of the hash is looked at
            inside = places < len(self._hashes)
            missing, places = missing[inside], places[inside]
            here = self._hashes[places] == hashes[missing]
            missing, places = missing[here], places[here]
            found = np.asarray(self._rows[places]).astype(np.int64)
            same = np.array([doc_id == wanted[place] for doc_id, place in zip(self.ids_of(found), missing.tolist(), strict=True)], dtype=np.bool_)
            rows[missing[same]] = found[same]
            missing, places = missing[~same], places[~same] + 1
        return rows

    @cached_property
    def doc_ids(self) -> Strings:
        """[N], all document ids in their order. Made when first asked for: 16 bytes for each id of up to 15 bytes."""
        doc_ids = np.empty(len(self), dtype=np.dtypes.StringDType())
        for number, batch in enumerate(self._ids):
            doc_ids[number * _IDS : number * _IDS + len(batch)] = batch.to_pylist()
        return doc_ids

    def repeated_ids(self) -> list[tuple[int, int]]:
        """The rows of documents whose id an earlier one has: (earlier row, later row), by the later row."""
        suspects = np.sort(self._rows[1:][self._hashes[1:] == self._hashes[:-1]]).astype(np.int64)
        first = self.rows_of(self.ids_of(suspects))
        return [(earlier, later) for earlier, later in zip(first.tolist(), suspects.tolist(), strict=True) if earlier < later]

    def _meeting(self, conditions: tuple[Condition, ...]) -> NDArray[np.bool_]:
        check_conditions(self.fields.kinds, conditions, f"{self.folder}: among")
        return met(self.fields, conditions)

    def _decompressed(self, number: int) -> pa.RecordBatch:
        """Title, text, image and fields of the documents that were compressed together."""
        try:
            return self._texts.get_batch(number)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.folder / _FILES[0]}: the documents from row {number * _TOGETHER} on are damaged ({error})") from error

    def _checked(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of a collection of {len(self)} documents")
        return wanted


def _save(path: Path, shape: tuple[int, ...], *parts: NDArray[np.uint64]) -> None:
    """Writes parts as one .npy file. On a full disk numpy's own writing gives an error without its number, and a memory map a bus error."""
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": np.lib.format.dtype_to_descr(parts[0].dtype), "fortran_order": False, "shape": shape})
        for part in parts:
            stream.write(part.data)


def _rows(batch: pa.RecordBatch) -> list[tuple[str, str, str | None, str]]:
    """Title, text, image and fields of each document."""
    return list(zip(*batch.to_pydict().values(), strict=True))


def _document(doc_id: str, title: str, text: str, image: str | None, fields: str) -> Document:
    return Document(doc_id, text, title, None if image is None else Path(image), json.loads(fields) if fields else {})
