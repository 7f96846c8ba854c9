"""The lists of an inverted file (IVF), made part by part: a stop loses one part, and no more than a part is in memory."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import DocumentEncodings
from retriever.files import write_atomic
from retriever.indexing._faiss import library, on_gpus
from retriever.indexing._vector_files import chunks

PART_BYTES = 1 << 27
"""Of the codes of a part."""

ROW_BYTES = 8
"""FAISS keeps a document's row beside its code."""

_EMPTY = 32
"""Bytes of the lists of an empty index: name, number of lists, bytes of a code, and a list of no sizes."""


@dataclasses.dataclass(frozen=True)
class Part:
    """The codes of some documents, list by list.

    Attributes:
        sizes: int64 [lists].
        codes: uint8 [n, bytes], memory-mapped.
        rows: int64 [n], memory-mapped.
    """

    sizes: NDArray[np.int64]
    codes: NDArray[np.uint8]
    rows: NDArray[np.int64]


def write_lists(trained: Any, vectors: DocumentEncodings, folder: Path, path: Path) -> None:
    """Writes a trained index with the vectors of all documents, as a file that stock FAISS opens.

    Args:
        trained: an empty IVF index.
        vectors: to put in.
        folder: of the parts, which belongs to this index alone; parts that lie there whole are not made again.
        path: of the file.
    """
    step = max(1, PART_BYTES // trained.code_size)
    assigning = on_gpus(library().downcast_index(trained.quantizer))
    parts = []
    for start in range(0, len(vectors), step):
        end, part = min(start + step, len(vectors)), folder / f"{start:012d}.part"
        if not part.exists() or part.stat().st_size != ROW_BYTES * trained.nlist + (end - start) * (ROW_BYTES + trained.code_size):
            write_atomic(part, lambda path, start=start, end=end: _write_part(trained, assigning, vectors, start, end, path))  # type: ignore[misc]
        parts.append(_open_part(part, trained.nlist, trained.code_size, end - start))
    write_atomic(path, lambda temporary: _merge(trained, parts, len(vectors), temporary))


def remove_parts(folder: Path) -> None:
    """Removes what `write_lists` left to continue with."""
    shutil.rmtree(folder, ignore_errors=True)


def _write_part(trained: Any, assigning: Any, vectors: DocumentEncodings, start: int, end: int, path: Path) -> None:
    faiss = library()
    lists, codes, done = np.empty(end - start, dtype=np.int64), np.empty((end - start, trained.code_size), dtype=np.uint8), 0
    for chunk in chunks(vectors, start, end):
        here = slice(done, done + len(chunk))
        lists[here] = assigning.search(chunk, 1)[1][:, 0]
        trained.encode_vectors(len(chunk), faiss.swig_ptr(chunk), faiss.swig_ptr(lists[here]), faiss.swig_ptr(codes[here]))
        done += len(chunk)
    order = np.argsort(lists, kind="stable")
    with path.open("wb") as stream:
        for array in (np.bincount(lists, minlength=trained.nlist).astype(np.int64), codes[order], order + start):
            stream.write(array.data)


def _open_part(path: Path, lists: int, code_size: int, documents: int) -> Part:
    sizes = np.fromfile(path, np.int64, lists)
    codes = np.asarray(np.memmap(path, np.uint8, "r", ROW_BYTES * lists, (documents, code_size)))
    rows = np.asarray(np.memmap(path, np.int64, "r", ROW_BYTES * lists + documents * code_size, (documents,)))
    return Part(sizes, codes, rows)


def _merge(trained: Any, parts: list[Part], documents: int, path: Path) -> None:
    """What FAISS would write of the whole index, which is never in memory: the head of the empty one, the lists' sizes, then each list's codes and rows."""
    faiss = library()
    trained.ntotal = documents
    head = faiss.serialize_index(trained).tobytes()
    trained.ntotal = 0
    ends = [np.concatenate([[0], np.cumsum(part.sizes)]) for part in parts]
    with path.open("wb") as stream:
        stream.write(head[: len(head) - _EMPTY])
        stream.write(b"ilar" + np.array([trained.nlist, trained.code_size], dtype=np.uint64).tobytes() + b"full")
        stream.write(np.array([trained.nlist, *np.sum([part.sizes for part in parts], axis=0)], dtype=np.uint64).tobytes())
        for number in range(trained.nlist):
            _write_list(stream, parts, [slice(end[number], end[number + 1]) for end in ends])


def _write_list(stream: BinaryIO, parts: list[Part], places: list[slice]) -> None:
    for part, place in zip(parts, places, strict=True):
        stream.write(part.codes[place].data)
    for part, place in zip(parts, places, strict=True):
        stream.write(part.rows[place].data)
