"""Tables with a column of images, as the library datasets writes them: Parquet and Arrow files, read a few rows at a time by pyarrow alone.

Pages of Parquet are compressed and a row group holds up to 100 MB, so that an image cannot be read where it stands without reading its
neighbours. Its bytes are therefore copied once into a tar file beside the prepared collection, which reads like any other shard of images.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retriever.errors import DataError
from retriever.files import fingerprint, mark_of, write_atomic
from retriever.images.files import MAX_BYTES

_ROWS = 256
_IMAGES = 8
"""Rows whose images are in memory at the same time."""

_ENDINGS = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"RIFF", ".webp"),
)
"""First bytes -> how a member's name ends."""


def schema_of(file: Path) -> pa.Schema:
    """The columns of a file.

    Raises:
        DataError: it is neither Parquet nor an Arrow stream, or it is cut off.
    """
    with _told(file):
        if file.suffix == ".parquet":
            return pq.read_schema(file)
        with pa.memory_map(str(file)) as stream, _arrow(stream) as reader:
            return reader.schema


def image_columns(schema: pa.Schema) -> list[str]:
    """The columns of encoded images: those of bytes and a path, unless the library says that they hold something else, such as sound."""
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        others = {name for name, feature in told.items() if feature.get("_type") != "Image"}
    except (ValueError, KeyError, TypeError, AttributeError):
        others = set()
    return [field.name for field in schema if _holds_images(field.type) and field.name not in others]


def rows_of(file: Path, image: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 1) and values of each row; of the image its path alone, or None."""
    names = [name for name in schema_of(file).names if name != image]
    number = 0
    for batch in _batches(file, [*names, f"{image}.path"], _ROWS):
        paths = _child(batch.column(image), "path").to_pylist()
        for record, path in zip(batch.select(names).to_pylist() if names else [{}] * len(paths), paths, strict=True):
            number += 1
            yield number, {**record, image: path}


def unpacked(file: Path, image: str, folder: Path) -> Path:
    """The tar file in `folder` that holds a file's images, each named by the number of its row (00000001.jpg); made unless it is there.

    Of rows with the same path that follow each other it has the first one's image.

    Raises:
        DataError: the file is cut off, or a row has no image in it.
    """
    name = "-".join((*([file.parent.name] if file.parent.name else []), file.name))
    tar = folder / f"{name}.{fingerprint([str(file), image, *mark_of(file)])[:8]}.tar"
    if not tar.is_file():
        for left in folder.glob(f".{name}.*.tmp") if folder.is_dir() else ():
            left.unlink()  # of a process that was killed: who prepares a collection is alone
        write_atomic(tar, lambda temporary: _write_tar(temporary, file, image))
        for old in folder.glob(f"{name}.*.tar"):
            if old != tar:
                old.unlink()  # of the file as it was
    return tar


def _write_tar(tar: Path, file: Path, image: str) -> None:
    number, before = 0, None
    with tarfile.open(tar, "w") as archive:
        for batch in _batches(file, [image], _IMAGES):
            for encoded, path in zip(_child(batch.column(image), "bytes"), _child(batch.column(image), "path").to_pylist(), strict=True):
                number, before, repeated = number + 1, path, bool(path) and path == before
                if repeated:  # of a data set with a row for each caption
                    continue
                data = encoded.as_py()
                if data is None:
                    raise DataError(f"{file}: row {number}: holds no bytes of an image, only its path or nothing. Save the data set with its images inside")
                if len(data) > MAX_BYTES:
                    raise DataError(f"{file}: row {number}: the image has {len(data):,} bytes; {MAX_BYTES:,} are allowed at most. Save it smaller")
                member = tarfile.TarInfo(f"{number:08d}{_ending(data)}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def _ending(data: bytes) -> str:
    return next((ending for start, ending in _ENDINGS if data.startswith(start)), ".bin")


def _batches(file: Path, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of a file with some of their columns, a few at a time; of an Arrow file all columns, for they are not read before they are asked for."""
    with _told(file):
        if file.suffix == ".parquet":
            with pq.ParquetFile(file) as table:
                yield from table.iter_batches(batch_size=rows, columns=list(columns))
            return
        with pa.memory_map(str(file)) as stream, _arrow(stream) as reader:
            for batch in reader:
                for start in range(0, batch.num_rows, rows):
                    yield batch.slice(start, rows)


def _child(column: pa.StructArray, name: str) -> pa.Array:
    """The bytes or the paths of a column of images; null where there is no image."""
    names = [column.type.field(number).name for number in range(column.type.num_fields)]
    return column.flatten()[names.index(name)]


def _holds_images(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return False
    inner = {kind.field(number).name: kind.field(number).type for number in range(kind.num_fields)}
    return set(inner) == {"bytes", "path"} and (pa.types.is_binary(inner["bytes"]) or pa.types.is_large_binary(inner["bytes"]))


@contextlib.contextmanager
def _arrow(stream: pa.NativeFile) -> Iterator[Any]:
    """A reader of the stream that the library writes."""
    with pa.ipc.open_stream(stream) as reader:
        yield reader


@contextlib.contextmanager
def _told(file: Path) -> Iterator[None]:
    """Turns what pyarrow says of a file into one line that names it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        what = " ".join(str(error).split())[:200]
        raise DataError(f"{file}: cannot be read as {file.suffix[1:]} ({what}). The file may be cut off: fetch or write it again") from error
