"""Shards of images with captions, as the library webdataset writes them: tar files that are read in place and never unpacked."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retriever.errors import DataError
from retriever.images.files import EXTENSIONS, image_bytes, tar_members
from retriever.readers import Judgement, Source, _pictures, captions
from retriever.readers._pictures import Picture
from retriever.types import Document, Query

LAYOUT = "files that end in .tar (train-000.tar), or one of them, with NAME.jpg, .png or .webp and beside it NAME.txt (captions, one a line) or NAME.json"

_SPLIT = re.compile(r"train|test|validation|valid|val|dev", re.IGNORECASE)
"""With what a shard's name begins that tells its split; any other is of "train"."""


@dataclasses.dataclass
class _Sample:
    """The members of a shard that share a name up to its first dot."""

    image: str | None = None
    captions: str | None = None
    record: str | None = None


def recognises(path: Path) -> bool:
    """Whether there are shards with images, and no captions.jsonl that names images in them."""
    shards = _shards(path)
    return bool(shards) and not captions.recognises(path) and _has_images(shards[0])


def files(source: Source) -> list[Path]:
    """The shards.

    Raises:
        DataError: there are none.
    """
    shards = _shards(source.path)
    if not shards:
        raise DataError(f"{source.path}: there is no file that ends in .tar; shards are {LAYOUT}")
    return shards


def documents(source: Source) -> Iterator[tuple[str, Document]]:
    """Each image and after it its captions, shard by shard."""
    return _pictures.documents(_all(source), source.fields)


def queries(source: Source) -> Iterator[tuple[str, Query]]:
    """Each image and after it its captions."""
    return _pictures.queries(_all(source))


def splits(source: Source) -> tuple[str, ...]:
    """Those of the shards' names and of their records, and each in one direction."""
    return _pictures.with_directions(picture.split for picture in _all(source))


def qrels(source: Source, split: str) -> Iterator[Judgement]:
    """The judgements of a split, of both directions or of one."""
    return _pictures.qrels(_all(source), split)


def _all(source: Source) -> Iterator[Picture]:
    home = source.path if source.path.is_dir() else source.path.parent
    for shard in files(source):
        found = _SPLIT.match(shard.name)
        split = found[0].lower() if found else "train"
        for sample in _samples(shard).values():
            yield _picture(shard, sample, split, home)


def _samples(shard: Path) -> dict[str, _Sample]:
    """Name -> members; other members, such as NAME.npz, are left alone.

    Raises:
        DataError: two images have the same name, or captions have no image.
    """
    samples: dict[str, _Sample] = {}
    for member in tar_members(shard):
        folder, _, file = member.rpartition("/")
        stem, _, ending = file.partition(".")
        ending = f".{ending.lower()}"
        part = "image" if ending in EXTENSIONS else {".txt": "captions", ".json": "record"}.get(ending)
        if part is None:
            continue
        sample = samples.setdefault(f"{folder}/{stem}", _Sample())
        if (before := getattr(sample, part)) is not None:
            raise DataError(f"{shard}: {before} and {member} share a name. Keep one of them")
        setattr(sample, part, member)
    for sample in samples.values():
        if sample.image is None:
            raise DataError(f"{shard}: {sample.captions or sample.record} has no image of its name beside it. Add the image, or take it out")
    return samples


def _picture(shard: Path, sample: _Sample, split: str, home: Path) -> Picture:
    """One sample, read: its captions are the lines of NAME.txt, or what NAME.json says."""
    image = shard / str(sample.image)
    where = f"{shard}: {sample.image}"
    record = _record(shard, sample.record) if sample.record else {}
    if sample.captions:
        listed: object = [line.strip() for line in _text(shard, sample.captions).splitlines() if line.strip()]
    else:
        alone = record.get("caption")
        listed = record.get("captions", [] if alone is None else [alone])
    checked = _pictures.checked_captions(where, listed)
    return Picture(where, image.relative_to(home).as_posix(), image, checked, _pictures.checked_split(where, record, split), record)


def _record(shard: Path, member: str) -> dict[str, Any]:
    try:
        record = json.loads(_text(shard, member))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shard}: {member}: malformed JSON ({error}); it must hold one whole object") from error
    if not isinstance(record, dict):
        raise DataError(f'{shard}: {member}: must hold an object such as {{"caption": "a boat"}}, found {record!r:.40}')
    return record


def _text(shard: Path, member: str) -> str:
    try:
        return image_bytes(shard / member).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{shard}: {member}: byte {error.start + 1} is not UTF-8. Write the shard anew with UTF-8 texts") from error


def _shards(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(shard for shard in path.glob("*.tar") if shard.is_file())
    return [path] if path.suffix == ".tar" and path.is_file() else []


def _has_images(shard: Path) -> bool:
    """Whether a shard holds an image; one that cannot be read counts, so that the reading says why."""
    try:
        return any(member.lower().endswith(EXTENSIONS) for member in tar_members(shard))
    except DataError:
        return True
