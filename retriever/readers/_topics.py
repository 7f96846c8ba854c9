"""What formats of conversations share: JSON files known by what they begin with, and documents beside them in another format."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from retriever.errors import DataError
from retriever.readers import Source, _rewrites, _text, documents_reader
from retriever.types import Document

_HEAD = 1 << 16
_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


def files_with(path: Path, *patterns: bytes) -> list[Path]:
    """The JSON files in a folder whose first 64 KiB have a match of each pattern."""
    if not path.is_dir():
        return []
    heads = ((file, _head(file)) for file in sorted(path.iterdir()) if file.name.endswith(_ENDINGS) and file.is_file())
    return [file for file, head in heads if all(re.search(pattern, head) for pattern in patterns)]


def expected(found: list[Path], source: Source, layout: str) -> list[Path]:
    """The files themselves.

    Raises:
        DataError: there is none.
    """
    if not found:
        raise DataError(f"{source.path}: there are no topics; they are {layout}")
    return found


def documents(source: Source) -> Iterator[tuple[str, Document]]:
    """The documents beside the topics, as the format that has them reads them."""
    return documents_reader(source.path).documents(source)


def files_beside(source: Source) -> list[Path]:
    """The documents, the qrels and the rewrites beside the topics."""
    others = [*documents_reader(source.path).files(source), *_text.qrels_files(source.path).values(), *_rewrites.files(source.path)]
    return list(dict.fromkeys(others))


def _head(path: Path) -> bytes:
    try:
        with _text.open_bytes(path) as stream:
            return stream.read(_HEAD)
    except (OSError, EOFError, zlib.error):
        return b""
