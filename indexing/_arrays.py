"""Arrays in files of numpy's format, memory-mapped after their lengths were compared: numpy and FAISS believe damaged headers."""

from __future__ import annotations

import hashlib
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.errors import SearchIndexError

WHOLE = 2**20
"""Bytes of a file of which all is digested."""

PIECES, PIECE = 256, 4096
"""Of a longer file, so many pieces of so many bytes, from its beginning to its end."""

_SHAPE = re.compile(rb"'shape': \((\d+), ?(\d*)\)")


def header(kind: str, shape: tuple[int, ...]) -> bytes:
    """What a .npy file of an array begins with."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": kind, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def map_array(path: Path, kind: str) -> NDArray[Any]:
    """The array of a .npy file, memory-mapped, after its header and its length were compared with what is written of its shape.

    Raises:
        OSError: there is no such file.
        ValueError: they differ. numpy would read an array of another shape from a damaged header, and the beginning of too long a file.
    """
    with path.open("rb") as stream:
        start = stream.read(128)
    found = _SHAPE.search(start)
    shape = tuple(int(number) for number in found.groups() if number) if found else ()
    expected = header(kind, shape)
    entries = math.prod(shape)
    if not start.startswith(expected) or path.stat().st_size != len(expected) + entries * np.dtype(kind).itemsize:
        raise ValueError("not a whole array")
    if entries == 0:  # which cannot be mapped
        return np.empty(shape, dtype=kind)
    return np.asarray(np.memmap(path, dtype=kind, mode="c", offset=len(expected), shape=shape))  # "c": torch warns of arrays that are read-only


def quick_digest(path: Path) -> str:
    """The SHA-256 of a file's length and of `PIECES` pieces of it, evenly spread, first and last included; of all of a file up to `WHOLE` bytes.

    Milliseconds for a file of any length: it tells files of two indexes apart and finds one that is cut or overwritten, not every single bit.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        if size <= WHOLE:
            digest.update(stream.read())
        else:
            for number in range(PIECES):
                stream.seek(number * (size - PIECE) // (PIECES - 1))
                digest.update(stream.read(PIECE))
    return digest.hexdigest()


def damaged(path: Path) -> SearchIndexError:
    """The error of a file that is not there, or not whole."""
    reason = "cut or damaged" if path.exists() else "missing"
    return SearchIndexError(f"{path}: the index file is {reason}. Build it again with: retriever index")
