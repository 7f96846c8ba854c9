"""Vectors of a collection's documents on disk: made once per encoder, continued after a stop, read memory-mapped."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retriever.collection import Collection
from retriever.errors import DataError
from retriever.files import write_atomic, write_json
from retriever.ragged import Ragged
from retriever.types import Document, Query, Unit
from retriever.workers.tasks import Engine, here

BLOCK = 1024
"""Documents a file holds: what a stop at the worst instant costs."""


Encoding = NDArray[np.float32] | Ragged
"""What an encoder makes of n texts: vectors [n, D], or a ragged array of token vectors or sparse entries. Both are indexed by text numbers."""


class Encoder(Protocol):
    """A model that encodes queries and documents apart, and scores a pair by what it made of both; see `document_identity` too."""

    @property
    def identity(self) -> str:
        """Changes with anything that changes the encodings: weights, lengths, prompts."""
        ...

    @property
    def dimensions(self) -> int:
        """D of a vector, the vocabulary's size for sparse entries."""
        ...

    @property
    def unit(self) -> Unit:
        """What its scores are."""
        ...

    def encode_queries(self, queries: Sequence[Query]) -> Encoding:
        """The encodings of n queries."""
        ...

    def encode_documents(self, documents: Sequence[Document]) -> Encoding:
        """The encodings of n documents."""
        ...

    def score(self, queries: Encoding, documents: Encoding) -> NDArray[np.float32]:
        """[n], the score of each query with the document at the same place: what an index ranks by."""
        ...


class DocumentEncodings(Protocol):
    """The encodings of a collection's N documents on disk, in the collection's order."""

    @property
    def folder(self) -> Path:
        """Where they lie."""
        ...

    @property
    def encoder(self) -> str:
        """What decides them: the `document_identity` of the encoder that made them."""
        ...

    @property
    def dimensions(self) -> int:
        """As the encoder's."""
        ...

    def __len__(self) -> int:
        """N."""
        ...

    def blocks(self) -> Iterator[Any]:
        """The encodings of at most `BLOCK` documents at a time, all N in the end."""
        ...

    def rows(self, rows: NDArray[np.int64]) -> Any:
        """The encodings of the documents with these numbers."""
        ...


def score_rows(
    encoder: Encoder, queries: Encoding, numbers: NDArray[np.int64], documents: DocumentEncodings, rows: NDArray[np.int64], chunk: int = 2048
) -> NDArray[np.float32]:
    """[n], the encoder's scores of n pairs.

    Args:
        encoder: what made both.
        queries: encodings of some queries.
        numbers: [n], which of them.
        documents: of a collection.
        rows: [n], which of its documents.
        chunk: pairs whose encodings are in memory at a time.
    """
    parts = [encoder.score(queries[numbers[start : start + chunk]], documents.rows(rows[start : start + chunk])) for start in range(0, len(rows), chunk)]
    return np.concatenate([np.zeros(0, dtype=np.float32), *parts])


class DocumentEncoder(Protocol):
    """What encodes documents; that is all that is asked of it here."""

    @property
    def identity(self) -> str:
        """As an `Encoder`'s."""
        ...

    def encode_documents(self, documents: Sequence[Document]) -> Encoding:
        """The encodings of n documents."""
        ...


class VectorEncoder(DocumentEncoder, Protocol):
    """An encoder whose encodings are vectors [n, D]."""

    @property
    def dimensions(self) -> int:
        """D."""
        ...

    def encode_documents(self, documents: Sequence[Document]) -> NDArray[np.float32]:
        """[n, D]."""
        ...


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Vectors of N documents, in the collection's order.

    Attributes:
        folder: holds one file for every `BLOCK` documents.
        n_documents: N.
        dimensions: D.
        encoder: the `document_identity` of the encoder that made them.
    """

    folder: Path
    n_documents: int
    dimensions: int
    encoder: str

    def __len__(self) -> int:
        return self.n_documents

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """[<= BLOCK, D] at a time, all N in the end."""
        for number in range(-(-self.n_documents // BLOCK)):
            yield self._block(number)

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """[len(rows), D], the vectors of the documents with these numbers."""
        found = np.empty((len(rows), self.dimensions), dtype=np.float32)
        for number in np.unique(rows // BLOCK):
            here = rows // BLOCK == number
            found[here] = self._block(int(number))[rows[here] % BLOCK]
        return found

    def _block(self, number: int) -> NDArray[np.float32]:
        return np.asarray(np.load(_block_path(self.folder, number), mmap_mode="r", allow_pickle=False))


def document_identity(encoder: DocumentEncoder) -> str:
    """What decides an encoder's encodings of documents: its attribute of that name; of one without it, which encodes queries alike, its identity."""
    return str(getattr(encoder, "document_identity", encoder.identity))


def encode_block(encoder: DocumentEncoder, collection: Collection, rows: range) -> Any:
    """What an encoder makes of the documents of some rows, one after the other."""
    return encoder.encode_documents(list(islice(collection.documents(rows.start), len(rows))))


EncodingEngine = Engine[DocumentEncoder, Collection, range, Any]
"""Has an encoder encode blocks of a collection's documents, given by their rows, and yields the encodings in their order."""

encode_here: EncodingEngine = here(encode_block)
"""Encodes in this process, one block after the other."""


def encode_collection(
    encoder: VectorEncoder, collection: Collection, folder: Path, progress: Callable[[int], None] | None = None, engine: EncodingEngine = encode_here
) -> Vectors:
    """The vectors of all documents, read from `folder` where they are there already; a stop loses at most the blocks on their way.

    Args:
        encoder: what makes them.
        collection: whose documents.
        folder: belongs to this encoder and collection alone; another's vectors in it are an error.
        progress: called with the number of documents just done (those found on disk included).
        engine: who asks the encoder, here or on other machines; writing is done here.

    Raises:
        DataError: the encoder gave a vector that is not finite, or the folder belongs to another encoder or collection.
    """
    claim(folder, {"encoder": document_identity(encoder), "collection": collection.fingerprint, "documents": len(collection), "block": BLOCK})

    def write(number: int, vectors: NDArray[np.float32]) -> None:
        refuse_infinite(vectors, collection, lambda place: number * BLOCK + place)
        write_array(_block_path(folder, number), vectors.astype(np.float32, copy=False))

    encode_blocks(encoder, collection, lambda number, size: _is_block(_block_path(folder, number), size, encoder.dimensions), write, progress, engine)
    return Vectors(folder, len(collection), encoder.dimensions, document_identity(encoder))


def encode_blocks(
    encoder: DocumentEncoder,
    collection: Collection,
    is_whole: Callable[[int, int], bool],
    write: Callable[[int, Any], None],
    progress: Callable[[int], None] | None = None,
    engine: EncodingEngine = encode_here,
) -> None:
    """Encodes the blocks of documents that are not there yet.

    Args:
        encoder: what makes them.
        collection: whose documents.
        is_whole: whether the block of a number, with so many documents, lies on the disk whole.
        write: writes the block of a number.
        progress: called with the number of documents just done (those found on disk included).
        engine: who asks the encoder.
    """
    blocks = [range(start, min(start + BLOCK, len(collection))) for start in range(0, len(collection), BLOCK)]
    missing = {number: rows for number, rows in enumerate(blocks) if not is_whole(number, len(rows))}
    made = engine(encoder, collection, list(missing.values()))
    for number, rows in enumerate(blocks):
        if number in missing:
            write(number, next(made))
        if progress:
            progress(len(rows))


def claim(folder: Path, owner: dict[str, str | int]) -> None:
    """Writes whose vectors a folder holds.

    Raises:
        DataError: it holds another's.
    """
    path = folder / "encodings.json"
    if not path.exists():
        write_json(path, owner)
    elif json.loads(path.read_text(encoding="utf-8")) != owner:
        raise DataError(f"{folder}: holds the vectors of another encoder or collection. Remove it, or give another folder")


def refuse_infinite(entries: NDArray[Any], collection: Collection, row_of: Callable[[int], int]) -> None:
    """Sees to it that all of the entries [n, ...] are finite numbers.

    Raises:
        DataError: one is not; `row_of` gives the row of its document, which is named.
    """
    wrong = np.flatnonzero(~np.isfinite(entries).reshape(len(entries), -1).all(axis=1)) if len(entries) else np.zeros(0, dtype=np.int64)
    if len(wrong):
        (doc_id,) = collection.ids_of([row_of(int(wrong[0]))])
        raise DataError(f"document {doc_id}: the encoder gave a vector that is not finite")


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Writes an array as a .npy file, whole or not at all."""

    def write(temporary: Path) -> None:
        whole = io.BytesIO()
        np.save(whole, array, allow_pickle=False)
        temporary.write_bytes(whole.getbuffer())  # numpy writing to a full disk raises an error that does not say so

    write_atomic(path, write)


def _is_block(path: Path, size: int, dimensions: int) -> bool:
    """Whether a whole block lies there; a cut file is encoded again."""
    try:
        return bool(np.load(path, mmap_mode="r", allow_pickle=False).shape == (size, dimensions))
    except (OSError, EOFError, ValueError):
        return False


def _block_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npy"
