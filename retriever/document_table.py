"""Documents in a folder: written once in a stream, then memory-mapped, found by row or by id."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retriever.errors import DataError
from retriever.files import sha256_file, text_hash
from retriever.runs import Strings
from retriever.types import Document, check_id

_BATCH_ROWS = 10_000
_BATCH_BYTES = 32 << 20
_SCHEMA = pa.schema([(name, pa.string()) for name in ("doc_id", "title", "text", "image")])


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
    if image is None:
        return ""
    try:
        return sha256_file(image)
    except OSError as error:
        raise DataError(f"{where}: the image {image} cannot be read ({error.strerror})") from error


class DocumentWriter:
    """Writes documents.arrow, ids.npy and variants.npy. It holds one batch of documents and 16 bytes for each one before.

    Attributes:
        empty_texts: how many documents so far have no title, no text and no image.
    """

    def __init__(self, folder: Path) -> None:
        self.empty_texts = 0
        self._folder = folder
        self._digest = hashlib.sha256()
        self._variants, self._ids = array("Q"), array("Q")
        self._batch: list[tuple[str, str, str, str | None]] = []
        self._batch_bytes = 0
        self._writer = pa.ipc.new_file(str(folder / "documents.arrow"), _SCHEMA)

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            self._flush()
        self._writer.close()
        if error is None:
            self._write_hashes()

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of all ids, titles, texts and images so far, in their order."""
        return self._digest.hexdigest()[:16]

    def add(self, where: str, document: Document) -> None:
        """Takes the next document.

        Raises:
            DataError: it breaks a rule; the message begins with `where`.
        """
        check_id(document.doc_id, where)
        encoded = framed(where, id=document.doc_id, title=document.title, text=document.text, image=image_hash(where, document.image))
        self._digest.update(encoded)
        self._ids.append(text_hash(document.doc_id))
        self._variants.append(text_hash(document.full_text))
        self.empty_texts += not (document.title or document.text or document.image)
        self._batch.append((document.doc_id, document.title, document.text, None if document.image is None else str(document.image)))
        self._batch_bytes += len(encoded)
        if len(self._batch) == _BATCH_ROWS or self._batch_bytes > _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._batch:
            columns = [pa.array(column, type=pa.string()) for column in zip(*self._batch, strict=True)]
            self._writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
            self._batch, self._batch_bytes = [], 0

    def _write_hashes(self) -> None:
        variants, hashes = (np.frombuffer(values, dtype=np.uint64) for values in (self._variants, self._ids))
        rows = np.argsort(hashes, kind="stable")
        _save(self._folder / "variants.npy", variants.shape, variants)
        _save(self._folder / "ids.npy", (2, len(hashes)), hashes[rows], rows.astype(np.uint64))


class DocumentTable:
    """N documents, memory-mapped: what is not looked at takes no memory.

    Attributes:
        folder: where the files of a `DocumentWriter` lie.
        variants: uint64 [N], the `text_hash` of each document's full text.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the files.

        Raises:
            DataError: one is missing, cut off or of another length than the others.
        """
        self.folder = folder
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(folder / "documents.arrow")))
            self._hashes, self._rows = np.asarray(np.load(folder / "ids.npy", mmap_mode="r"))
            self.variants: NDArray[np.uint64] = np.load(folder / "variants.npy", mmap_mode="r")
            lengths = {len(self), len(self._hashes), len(self.variants)}
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{folder}: the prepared documents are damaged ({error}). Delete this folder and run the same command again") from error
        if len(lengths) > 1:
            found = f"files of {sorted(lengths)} documents"
            raise DataError(f"{folder}: the prepared documents are damaged ({found}). Delete this folder and run the same command again")

    def __len__(self) -> int:
        """N, the number of documents."""
        return int(self._offsets[-1])

    def documents(self, start: int = 0) -> Iterator[Document]:
        """All documents in their order, from row `start` on."""
        for first, batch in zip(self._offsets.tolist(), self._batches, strict=False):
            if start < first + batch.num_rows:
                columns = batch.slice(max(start - first, 0)).to_pydict().values()
                yield from (_document(*row) for row in zip(*columns, strict=True))

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
        return [_document(*(column[place].as_py() for column in self._columns[batch])) for batch, place in self._places(rows)]

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
            same = np.array([doc_id == wanted[place] for doc_id, place in zip(self._ids_of(found), missing.tolist(), strict=True)], dtype=np.bool_)
            rows[missing[same]] = found[same]
            missing, places = missing[~same], places[~same] + 1
        return rows

    @cached_property
    def doc_ids(self) -> Strings:
        """[N], all document ids in their order. Made when first asked for: 16 bytes for each id of up to 15 bytes."""
        doc_ids = np.empty(len(self), dtype=np.dtypes.StringDType())
        for first, batch in zip(self._offsets.tolist(), self._batches, strict=False):
            doc_ids[first : first + batch.num_rows] = batch.column(0).to_pylist()
        return doc_ids

    def repeated_ids(self) -> list[tuple[int, int]]:
        """The rows of documents whose id an earlier one has: (earlier row, later row), by the later row."""
        suspects = np.sort(self._rows[1:][self._hashes[1:] == self._hashes[:-1]]).astype(np.int64)
        first = self.rows_of(self._ids_of(suspects))
        return [(earlier, later) for earlier, later in zip(first.tolist(), suspects.tolist(), strict=True) if earlier < later]

    @cached_property
    def _batches(self) -> list[pa.RecordBatch]:
        return [self._table.get_batch(number) for number in range(self._table.num_record_batches)]

    @cached_property
    def _columns(self) -> list[list[pa.Array]]:
        return [batch.columns for batch in self._batches]

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(batch.num_rows for batch in self._batches)], dtype=np.int64)

    def _places(self, rows: Sequence[int] | NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """The batch of each row, and its place there."""
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of a collection of {len(self)} documents")
        batches = np.searchsorted(self._offsets, wanted, side="right") - 1
        return zip(batches.tolist(), (wanted - self._offsets[batches]).tolist(), strict=True)

    def _ids_of(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The ids of rows, those of a batch in one go."""
        wanted = np.asarray(rows, dtype=np.int64)
        batches = np.searchsorted(self._offsets, wanted, side="right") - 1
        ids = np.empty(len(wanted), dtype=np.object_)
        for batch in np.unique(batches).tolist():
            here = np.flatnonzero(batches == batch)
            ids[here] = self._columns[batch][0].take(pa.array(wanted[here] - self._offsets[batch])).to_pylist()
        return list(ids)


def _save(path: Path, shape: tuple[int, ...], *parts: NDArray[np.uint64]) -> None:
    """Writes parts as one .npy file. On a full disk numpy's own writing gives an error without its number, and a memory map a bus error."""
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": np.lib.format.dtype_to_descr(parts[0].dtype), "fortran_order": False, "shape": shape})
        for part in parts:
            stream.write(part.data)


def _document(doc_id: str, title: str, text: str, image: str | None) -> Document:
    return Document(doc_id, text, title, None if image is None else Path(image))
