"""Vectors that are not one of a fixed length for each document: token vectors, or the entries of sparse ones. On disk, made once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retriever import encodings
from retriever.collection import Collection
from retriever.encodings import EncodingEngine, claim, document_identity, encode_blocks, encode_here, refuse_infinite, write_array
from retriever.ragged import Ragged
from retriever.types import Document


class RaggedEncoder(Protocol):
    """A model that turns documents into as many entries as each of them needs."""

    @property
    def identity(self) -> str:
        """Changes with anything that changes the vectors."""
        ...

    @property
    def columns(self) -> Sequence[str]:
        """The names of what an entry holds."""
        ...

    def encode_documents(self, documents: Sequence[Document]) -> Ragged:
        """The entries of each document."""
        ...


@dataclasses.dataclass(frozen=True)
class RaggedVectors:
    """The entries of a collection's documents, in files of `encodings.BLOCK` documents.

    Attributes:
        folder: where they lie.
        n_documents: N.
        names: of what an entry holds.
        encoder: the `document_identity` of the encoder that made them.
        dimensions: D of a token's vector, the vocabulary's size for sparse entries.
    """

    folder: Path
    n_documents: int
    names: tuple[str, ...]
    encoder: str
    dimensions: int

    def __len__(self) -> int:
        return self.n_documents

    def blocks(self) -> Iterator[Ragged]:
        """The entries of at most `encodings.BLOCK` documents at a time, all of them in the end."""
        for number in range(-(-self.n_documents // encodings.BLOCK)):
            yield self._block(number)

    def rows(self, rows: NDArray[np.int64]) -> Ragged:
        """The entries of the documents with these numbers, in their order."""
        numbers = rows // encodings.BLOCK
        blocks = [self._block(number)[rows[numbers == number] % encodings.BLOCK] for number in np.unique(numbers).tolist()]
        if not blocks:
            return Ragged(np.zeros(1, dtype=np.int64), {name: np.empty(0, dtype=np.float32) for name in self.names})
        order = np.argsort(numbers, kind="stable")  # the rows as the blocks have them
        return Ragged.together(blocks)[np.argsort(order)]

    def _block(self, number: int) -> Ragged:
        columns = {name: _load(_path(self.folder, number, name)) for name in self.names}
        return Ragged(np.asarray(_load(_path(self.folder, number, "offsets"))), columns)


def encode_ragged(
    encoder: RaggedEncoder, collection: Collection, folder: Path, progress: Callable[[int], None] | None = None, engine: EncodingEngine = encode_here
) -> RaggedVectors:
    """The entries of all documents, read from `folder` where they are there already; a stop loses at most the blocks on their way.

    Args:
        encoder: what makes them.
        collection: whose documents.
        folder: belongs to this encoder and collection alone.
        progress: called with the number of documents just done (those found on disk included).
        engine: who asks the encoder, here or on other machines; writing is done here.

    Raises:
        DataError: an entry is not finite, or the folder belongs to another encoder or collection.
    """
    claim(folder, {"encoder": document_identity(encoder), "collection": collection.fingerprint, "documents": len(collection), "block": encodings.BLOCK})
    names = tuple(encoder.columns)

    def write(number: int, made: Ragged) -> None:
        def row_of(entry: int) -> int:
            return number * encodings.BLOCK + int(np.searchsorted(made.offsets, entry, side="right")) - 1

        for name in names:
            refuse_infinite(made.columns[name], collection, row_of)
            write_array(_path(folder, number, name), made.columns[name])
        write_array(_path(folder, number, "offsets"), made.offsets)  # the last: with it the block is whole

    encode_blocks(encoder, collection, lambda number, size: _is_whole(folder, number, size, names), write, progress, engine)
    return RaggedVectors(folder, len(collection), names, document_identity(encoder), getattr(encoder, "dimensions", 0))


def _is_whole(folder: Path, number: int, size: int, names: Sequence[str]) -> bool:
    try:
        offsets = _load(_path(folder, number, "offsets"))
        entries = {len(_load(_path(folder, number, name))) for name in names}
        return offsets.shape == (size + 1,) and entries == {int(offsets[-1])}
    except (OSError, EOFError, ValueError):
        return False


def _load(path: Path) -> NDArray[Any]:
    """A file's array, memory-mapped; one without entries cannot be mapped."""
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except ValueError:
        return np.asarray(np.load(path, allow_pickle=False))


def _path(folder: Path, number: int, name: str) -> Path:
    return folder / f"{number:06d}.{name}.npy"
