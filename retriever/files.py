"""Files that are either whole or absent: atomic writes, checksums, fingerprints, locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from retriever.errors import LockedError, RetrieverError


def fingerprint(value: Any) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of a JSON-like value; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def text_hash(text: str) -> int:
    """The first 64 bits of the SHA-256 of a text, as an unsigned integer: the variant id of an item."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def mark_of(path: Path) -> tuple[int, int, int]:
    """Changes when a file is written or replaced; one stat, a few microseconds."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_folder(folder: Path) -> str:
    """The SHA-256 of the names and contents of all files below a folder, hidden ones left out."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turns "no space left", from whatever library it comes, into one clear line that names the place."""
    try:
        yield
    except Exception as error:
        if not _means_full_disk(error):
            raise
        raise RetrieverError(f"{path}: the disk is full; nothing half-written was kept. Free some space and run the same command again") from error


def _means_full_disk(error: Exception) -> bool:
    """Whether an error says that a disk is full: by its number, or by its words where a library in another language lost the number."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    torch = ("PytorchStreamWriter failed writing", ". unexpected pos ")  # keeps neither number nor reason
    return any(words in str(error) for words in (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), *torch))


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it; their names are on the disk when this returns, so that a power cut cannot take them back.

    Raises:
        RetrieverError: there is a file of that name.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise RetrieverError(f"{folder}: is a file, and a folder is needed in its place. Move it away, or name another folder") from error
    sync(folder.parent)


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Makes `path` by `write(temporary path)` and a rename: readers see the old file or the whole new one.

    The bytes are on the disk before the rename (a power cut cannot leave an empty file under the final name).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with explain_full_disk(path):
            make_folder(path.parent)
            write(temporary)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def replace_folder(new: Path, final: Path) -> None:
    """Puts the folder `new` in the place of `final`; a stop in between leaves one of the two whole.

    The old folder steps aside under a hidden name before the new one takes its place: `recover_folder` finishes
    or undoes a swap that was cut in the middle. All bytes are on the disk before the swap, so a power cut cannot
    leave empty files under the final name.
    """
    for path in (new, *new.rglob("*")):
        sync(path)
    aside = final.with_name(f".{final.name}.old")
    if aside.exists():
        shutil.rmtree(aside)
    if final.exists():
        os.replace(final, aside)
    os.replace(new, final)
    sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def recover_folder(final: Path) -> None:
    """Brings back the old folder when `replace_folder` was stopped between its two renames, or removes it when it was stopped after them."""
    aside = final.with_name(f".{final.name}.old")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
    elif aside.exists():
        os.replace(aside, final)


@contextlib.contextmanager
def hidden_folder(final: Path) -> Iterator[Path]:
    """An empty hidden folder beside `final`, which takes its place when the block ends well, and vanishes when it does not."""
    new = final.with_name(f".{final.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        with explain_full_disk(final):
            make_folder(new)
            yield new
            replace_folder(new, final)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def made_once(final: Path, what: str, make: Callable[[Path], object]) -> Path:
    """The folder `final`, made by `make(hidden folder)` at the first call; of processes that come at once one makes it and the others wait.

    Args:
        final: never changed once it is there.
        what: what this process is doing, in the words of a lock.
        make: fills an empty folder.
    """
    if not final.exists():
        with lock(final.with_name(f".{final.name}.lock"), what, wait=True):
            if not final.exists():
                with hidden_folder(final) as new:
                    make(new)
    return final


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A second name for a file that is never changed in place; a copy where the disk has no hard links."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)


@contextlib.contextmanager
def lock(path: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Holds a lock file for as long as the block runs; the operating system frees it when the process dies.

    Args:
        path: of the file.
        what: what this process does meanwhile.
        wait: for the process that holds it, instead of refusing.

    Raises:
        LockedError: another process holds it; the message names the process.
    """
    with explain_full_disk(path):
        make_folder(path.parent)
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise LockedError(f"{path.parent}: process {holder} is already {what} here. Wait for it, or stop it first") from error
        with explain_full_disk(path):
            stream.truncate(0)
            os.write(stream.fileno(), str(os.getpid()).encode())  # unbuffered: a full disk is not met a second time when the file is closed
        yield


def sync(path: Path) -> None:
    """Returns when the bytes of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
