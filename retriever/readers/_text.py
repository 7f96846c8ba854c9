"""Lines of plain or gzip-compressed text with their line numbers, and what the formats' lines have in common."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from retriever.errors import DataError
from retriever.readers import Judgement, Source

_GZIP = b"\x1f\x8b"
_QRELS = re.compile(r"qrels(?:[.\-_](?P<split>.+?))??(?:\.(?:tsv|txt|qrels|trec))?(?:\.gz)?")
_SPLIT = re.compile(r"(?P<split>[^.].*?)\.(?:tsv|txt|qrels|trec)(?:\.gz)?")


def is_gzip(path: Path) -> bool:
    """Whether a file begins as gzip does, whatever its name."""
    with path.open("rb") as stream:
        return stream.read(2) == _GZIP


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, without their ends, each with "file:line".

    Raises:
        DataError: the file cannot be read, is a truncated gzip, or has a line that is not UTF-8.
    """
    number = 0
    try:
        with open_bytes(path) as stream:
            for number, raw in enumerate(stream, 1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if line and not line.isspace():
                    yield f"{path}:{number}", line
    except UnicodeDecodeError as error:
        found = f"byte {error.start + 1} of the line is not UTF-8"
        raise DataError(f"{path}:{number}: {found}. Convert the file, for example with: iconv -f latin1 -t utf-8") from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path}:{number}: the gzip file is truncated or damaged after this line ({error}). Fetch or compress it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def open_bytes(path: Path) -> BinaryIO:
    """The bytes of a file or a pipe, decompressed when they are gzip."""
    stream = path.open("rb")
    if stream.peek(2)[:2] != _GZIP:  # not opened twice: what was read of a pipe is gone
        return stream
    if not path.is_file():
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    stream.close()
    return cast(BinaryIO, gzip.open(path, "rb"))


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file of JSON lines.

    Raises:
        DataError: a line is no JSON object; the message names file and line.
    """
    for where, line in lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: malformed JSON ({error}); a line must hold one whole object") from error
        if not isinstance(record, dict):
            raise DataError(f'{where}: the line holds {type(record).__name__}, not an object such as {{"_id": "1", "text": "..."}}')
        yield where, record


def json_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file that holds one JSON list of them, or JSON lines.

    Raises:
        DataError: the file cannot be read or holds something else; the message names the file and the record.
    """
    _, first = next(lines(path), ("", ""))
    if not first.lstrip().startswith("["):
        yield from json_lines(path)
        return
    try:
        with open_bytes(path) as stream:
            records = json.loads(stream.read())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: malformed JSON ({error}); the file must hold one whole list") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise DataError(f"{path}: record {number} of the list is {type(record).__name__}, not an object")
        yield f"{path}: record {number}", record


def columns(path: Path, allowed: dict[int, str]) -> Iterator[tuple[str, list[str]]]:
    """The tab-separated fields of every line.

    Args:
        path: the file.
        allowed: the numbers of fields that a line may have, and what they are.

    Raises:
        DataError: a line has another number of fields.
    """
    for where, line in lines(path):
        fields = line.split("\t")
        if len(fields) not in allowed:
            choices = " or ".join(f"{number} ({names})" for number, names in allowed.items())
            raise DataError(f"{where}: the line has {len(fields)} tab-separated fields; allowed: {choices}")
        yield where, fields


def existing(folder: Path, *names: str) -> Path | None:
    """The first of the named files that lies in a folder, plain or with .gz at its end."""
    paths = (folder / f"{name}{ending}" for name in names for ending in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def qrels_files(folder: Path) -> dict[str, Path]:
    """Split -> its file: qrels/SPLIT.tsv, qrels.SPLIT.tsv (.txt, .qrels, .trec, .gz or no ending), or qrels.tsv, which is split "test"."""
    found: dict[str, Path] = {}
    for path, pattern in [(path, _QRELS) for path in _files(folder)] + [(path, _SPLIT) for path in _files(folder / "qrels")]:
        match = pattern.fullmatch(path.name)
        if match and not path.name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
            found.setdefault(match["split"] or "test", path)
    return found


def splits(source: Source) -> tuple[str, ...]:
    """The names of the qrels files: what a reader gives whose judgements are all in such files."""
    return tuple(qrels_files(source.path))


def qrels(source: Source, split: str) -> Iterator[Judgement]:
    """The judgements of a qrels file."""
    return judgements(qrels_files(source.path)[split])


def judgements(path: Path) -> Iterator[Judgement]:
    """Qrels in TREC form (query 0 document grade) or BEIR form (query-id, corpus-id, score, with or without a header).

    Raises:
        DataError: a line has another number of fields or its grade is no integer; the message names file and line.
    """
    for number, (where, line) in enumerate(lines(path)):
        fields = line.split()
        if number == 0 and len(fields) in (3, 4) and fields[-1].lower() in ("score", "grade", "relevance", "label", "rel"):
            continue
        if len(fields) not in (3, 4):
            raise DataError(f"{where}: qrels have 3 fields (query document grade) or 4 (query 0 document grade), this line has {len(fields)}")
        try:
            yield Judgement(where, fields[0], fields[-2], int(fields[-1]))
        except ValueError as error:
            raise DataError(f'{where}: the grade "{fields[-1]}" is not a whole number') from error


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
