"""The bytes of image files, which lie in folders or in tar files; nothing here is decoded or unpacked."""

from __future__ import annotations

import functools
import hashlib
import os
import stat
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import NamedTuple

from retriever.errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""How names of images end where a file must be known by its name; else its bytes decide."""

MAX_BYTES = 1 << 29
"""Of an image file; decoders may read all of it into memory."""

_SHARDS = 256
"""Tar files whose members are remembered."""


_HASHES = 1 << 18
"""Files whose hashes are remembered."""


class _Place(NamedTuple):
    """The file that holds an image's bytes, its time of change, and where in it the bytes begin and how many they are."""

    file: Path
    changed_ns: int
    start: int
    size: int


def image_bytes(path: Path) -> bytes:
    """The bytes of an image file, or of a member of a tar file: shards/000.tar/0001.jpg is the member 0001.jpg of shards/000.tar.

    Raises:
        DataError: it is missing, no regular file, or larger than `MAX_BYTES`; the message begins with the path.
    """
    return _bytes(path, _place(path))


def image_sha256(path: Path) -> str:
    """The SHA-256 of an image file's bytes in hexadecimal digits; read once in a process while the file stays the same.

    Raises:
        DataError: as `image_bytes` says.
    """
    return _sha256(path, _place(path))


def is_image_file(path: Path) -> bool:
    """Whether there is a file that could be an image: a regular one, or a member of a tar file.

    Raises:
        DataError: the tar file that the path leads through cannot be read.
    """
    tar = tar_of(path)
    return path.is_file() if tar is None else path.relative_to(tar).as_posix() in tar_members(tar)


def tar_members(tar: Path) -> Mapping[str, tuple[int, int]]:
    """Name -> (offset, size in bytes) of the files in a tar file, in their order; read once in a process while the file stays the same.

    Raises:
        DataError: it is no uncompressed tar file, it is cut off, or a name in it is absolute, leads out by ".." or stands twice.
    """
    status = _status(tar)
    return _members(tar, status.st_size, status.st_mtime_ns)


def tar_of(path: Path) -> Path | None:
    """The tar file that a path leads through; None for a path of folders alone."""
    if ".tar/" not in path.as_posix():
        return None
    return next((parent for parent in path.parents if parent.suffix == ".tar" and parent.is_file()), None)


def _place(path: Path) -> _Place:
    tar = tar_of(path)
    if tar is None:
        status = _status(path)
        return _Place(path, status.st_mtime_ns, 0, status.st_size)
    members, name = tar_members(tar), path.relative_to(tar).as_posix()
    if name not in members:
        raise DataError(f"{path}: {tar.name} holds no file of the name {name} (it holds {len(members):,} files)")
    return _Place(tar, _status(tar).st_mtime_ns, *members[name])


def _status(path: Path) -> os.stat_result:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: is a {'folder' if stat.S_ISDIR(status.st_mode) else 'device or pipe'}; a file is needed there")
    return status


def _bytes(path: Path, place: _Place) -> bytes:
    if place.size > MAX_BYTES:
        raise DataError(f"{path}: has {place.size:,} bytes; an image file has {MAX_BYTES:,} at most. Save it smaller")
    try:
        with place.file.open("rb") as stream:
            stream.seek(place.start)
            found = stream.read(place.size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if len(found) < place.size:
        raise DataError(f"{path}: {place.file} ends in the middle of it ({len(found):,} of {place.size:,} bytes). Get that file again")
    return found


@functools.lru_cache(_HASHES)
def _sha256(path: Path, place: _Place) -> str:
    return hashlib.sha256(_bytes(path, place)).hexdigest()


@functools.lru_cache(_SHARDS)
def _members(tar: Path, size: int, _changed: int) -> Mapping[str, tuple[int, int]]:
    """The members of a tar file of that size and time of change."""
    found: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it remembers all that it has read
                if member.isdir():
                    continue
                name = _member_name(tar, member)
                if name in found:
                    raise DataError(f"{tar}: the file {name} stands in it twice. Keep one of them")
                if member.offset_data + member.size > size:
                    raise DataError(f"{tar}: ends in the middle of the file {name}. Get it again")
                found[name] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{tar}: cannot be read as a tar file without compression ({error})") from error
    return MappingProxyType(found)


def _member_name(tar: Path, member: tarfile.TarInfo) -> str:
    """Its name without a leading "./"."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise DataError(f"{tar}: holds the name {member.name!r}, which leads out of it. Make it anew with names below its top")
    if not member.isreg() or member.issparse():
        raise DataError(f"{tar}: {name} is a link, a device or a file with holes; only plain files are read. Make it anew with plain files")
    return name.as_posix()
