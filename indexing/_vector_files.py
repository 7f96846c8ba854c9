"""The files of an index on FAISS: written in a stream, and checked before FAISS believes them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import DocumentEncodings
from retriever.files import write_atomic, write_json
from retriever.indexing._arrays import damaged, header, map_array
from retriever.indexing._faiss import DenseIndex, library

Opened = TypeVar("Opened", bound=DenseIndex)

FILE = "index.faiss"
VECTORS = "vectors.npy"
"""float32 [N, D], the vectors as they were encoded, beside an index that keeps less of them."""

CHUNK_BYTES = 1 << 26
"""Of the float32 vectors that are in memory at a time while an index is built."""

EDGE_BYTES = 1 << 20
"""Of both ends of a file, which are always checked when it is opened."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is written beside an index.

    Attributes:
        documents: N.
        dimensions: D.
        quantisation: how a vector is kept.
        effort: the probes or candidates of a query, under the name that they have in the settings.
        refine: so many times the wanted documents are scored again by their full vectors.
        codes: bytes of the codes, which `digest` passes over.
        told: what else is worth telling; opening does not need it.
    """

    documents: int
    dimensions: int
    quantisation: str
    effort: int
    refine: int
    codes: int
    told: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def full(self) -> bool:
        """Whether the full vectors lie beside the index."""
        return self.refine > 1


def write_facts(path: Path, facts: Facts, effort: str | None) -> dict[str, Any]:
    """Writes what is to be known of the index in a folder, whose other files are there already; returns what is worth telling of it.

    Args:
        path: of the file.
        facts: to write.
        effort: the name of `facts.effort` in the settings; None where there is nothing to choose.
    """
    told = {"quantisation": facts.quantisation, **({effort: facts.effort} if effort else {}), "refine": facts.refine, **facts.told}
    files = {FILE: digest(path.parent / FILE, facts.codes)}
    if facts.full:
        files[VECTORS] = digest(path.parent / VECTORS, 4 * facts.documents * facts.dimensions)
    sizes = {name: (path.parent / name).stat().st_size for name in files}
    kept = {"documents": facts.documents, "dimensions": facts.dimensions, "codes": facts.codes, "bytes": sizes, "blake2b": files}
    write_json(path, {**told, **kept})
    return told


def read_facts(path: Path, effort: str | None) -> Facts:
    """What is written beside an index, whose files are as long as they were, and in all that FAISS follows the same.

    Raises:
        SearchIndexError: a file is missing, cut or damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        numbers = [values[name] if name else 1 for name in ("documents", "dimensions", effort, "refine", "codes")]
        quantisation, sizes, digests = values["quantisation"], dict(values["bytes"]), dict(values["blake2b"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path) from error
    if not all(type(number) is int and number >= 0 for number in numbers) or quantisation not in ("none", "fp16", "int8", "rabitq", "pq"):
        raise damaged(path)
    documents, dimensions, cost, refine, codes = numbers
    facts = Facts(documents, dimensions, quantisation, cost, refine, codes)
    names = {FILE, VECTORS} if facts.full else {FILE}
    if min(documents, dimensions, cost, refine) < 1 or not sizes.keys() == digests.keys() == names:
        raise damaged(path)
    for name, passed_over in ((FILE, codes), (VECTORS, 4 * documents * dimensions)):
        file = path.parent / name
        if name in names and not (file.is_file() and file.stat().st_size == sizes[name] and digest(file, passed_over) == digests[name]):
            raise damaged(file)
    return facts


def read_index(path: Path) -> Any:
    """FAISS's index from a file that was checked, memory-mapped.

    Raises:
        SearchIndexError: FAISS cannot read it.
    """
    faiss = library()
    try:
        return faiss.read_index(str(path), getattr(faiss, "IO_FLAG_MMAP_IFC", 0))  # FAISS before 1.11 reads it into memory
    except RuntimeError as error:
        raise damaged(path) from error


def open_dense(kind: type[Opened], folder: Path, facts: str, effort: str | None) -> Opened:
    """The index of a kind in a folder, memory-mapped, with its full vectors where they were kept, and the effort that was chosen.

    Args:
        kind: its class.
        folder: where it lies.
        facts: the name of the file that was written beside it.
        effort: the name of the effort in it; None where there is nothing to choose.

    Raises:
        SearchIndexError: there is none, or a file of it is missing, cut or damaged.
    """
    found = read_facts(folder / facts, effort)
    full = open_full(folder, found.documents, found.dimensions) if found.full else None
    index = kind(read_index(folder / FILE), folder, found.quantisation, full, found.refine)
    index.effort = found.effort
    return index


def chunks(vectors: DocumentEncodings, start: int = 0, end: int | None = None) -> Iterator[NDArray[np.float32]]:
    """The vectors of the documents start to end, `CHUNK_BYTES` at a time."""
    end = len(vectors) if end is None else end
    step = max(1, CHUNK_BYTES // (4 * vectors.dimensions))
    for first in range(start, end, step):
        yield np.ascontiguousarray(vectors.rows(np.arange(first, min(first + step, end))), dtype=np.float32)


def write_full(vectors: DocumentEncodings, folder: Path) -> None:
    """Writes the vectors beside the index, in a stream."""

    def write(path: Path) -> None:
        with path.open("wb") as stream:
            stream.write(header("<f4", (len(vectors), vectors.dimensions)))
            for chunk in chunks(vectors):
                stream.write(chunk.data)

    write_atomic(folder / VECTORS, write)


def open_full(folder: Path, documents: int, dimensions: int) -> NDArray[np.float32]:
    """[N, D], the full vectors, memory-mapped.

    Raises:
        SearchIndexError: the file is missing, or not of that shape.
    """
    try:
        full = map_array(folder / VECTORS, "<f4")
    except (OSError, ValueError) as error:
        raise damaged(folder / VECTORS) from error
    if full.shape != (documents, dimensions):
        raise damaged(folder / VECTORS)
    return full


def digest(path: Path, codes: int) -> str:
    """The BLAKE2b of a file but for most of its codes: what FAISS follows, and both ends.

    A damaged code changes a score; all else, which FAISS believes, could lead it past the end of its memory.

    Args:
        path: of an index, whose codes are written last.
        codes: bytes at the end, or near it, that are codes.
    """
    size = path.stat().st_size
    head = min(max(size - codes, EDGE_BYTES), size)
    found = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        for start, end in ((0, head), (max(head, size - EDGE_BYTES), size)):
            stream.seek(start)
            for place in range(start, end, EDGE_BYTES):
                found.update(stream.read(min(EDGE_BYTES, end - place)))
    return found.hexdigest()
