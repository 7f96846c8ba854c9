"""A folder of images with captions.jsonl: on each line an image, its captions, its split, and whatever else is known of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from retriever.errors import DataError
from retriever.images.files import is_image_file
from retriever.readers import Judgement, Source, _pictures, _text
from retriever.readers._pictures import Picture
from retriever.types import Document, Query

LAYOUT = 'captions.jsonl with lines such as {"image": "a.jpg", "captions": ["a boat"], "split": "train"}, and the images beside it or in a folder images'

NAME = "captions.jsonl"
IMAGES = "images"
"""The folder in which an image is looked for that does not lie beside captions.jsonl."""


def recognises(path: Path) -> bool:
    """Whether there is a captions.jsonl."""
    return path.is_dir() and _text.existing(path, NAME) is not None


def files(source: Source) -> list[Path]:
    """The captions; images are not looked at."""
    return [_file(source)]


def documents(source: Source) -> Iterator[tuple[str, Document]]:
    """Each image and after it its captions."""
    return _pictures.documents(_found(source), source.fields)


def queries(source: Source) -> Iterator[tuple[str, Query]]:
    """Each image and after it its captions."""
    return _pictures.queries(_found(source))


def splits(source: Source) -> tuple[str, ...]:
    """Those that the lines name, and each in one direction."""
    return _pictures.with_directions(picture.split for picture in _listed(source))


def qrels(source: Source, split: str) -> Iterator[Judgement]:
    """The judgements of a split, of both directions or of one."""
    return _pictures.qrels(_listed(source), split)


def _listed(source: Source) -> Iterator[Picture]:
    """What the lines say; whether the images are there is not looked at."""
    for where, record in _text.json_lines(_file(source)):
        name = _name(where, record)
        captions = _pictures.checked_captions(where, record.get("captions", []))
        yield Picture(where, name, source.path / name, captions, _pictures.checked_split(where, record, "train"), record)


def _found(source: Source) -> Iterator[Picture]:
    """The same with the images' files.

    Raises:
        DataError: one is missing, or leads out of the folder.
    """
    home = source.path.resolve()
    for picture in _listed(source):
        places = (source.path / picture.name, source.path / IMAGES / picture.name)
        image = next((place for place in places if is_image_file(place)), None)
        if image is None:
            raise DataError(f'{picture.where}: the image {picture.name} is not there, neither in {source.path} nor in its folder "{IMAGES}"')
        if not image.resolve().is_relative_to(home):
            raise DataError(f"{picture.where}: the image {picture.name} is a link that leads out of {source.path}. Copy the file into the folder")
        yield Picture(picture.where, picture.name, image, picture.captions, picture.split, picture.record)


def _name(where: str, record: dict[str, Any]) -> str:
    """The image's path below the folder.

    Raises:
        DataError: there is none, or it would lead out of the folder.
    """
    written = record.get("image")
    if not isinstance(written, str) or not written.strip():
        found = "there is none" if written is None else f"found {written!r:.40}"
        raise DataError(f'{where}: "image" must be the path of an image below the folder; {found}')
    name = PurePosixPath(written)
    if name.is_absolute() or ".." in name.parts or "\0" in written or not name.parts:
        raise DataError(f"{where}: the image {written!r} leads out of the folder. Give its path below the folder of {NAME}")
    return name.as_posix()


def _file(source: Source) -> Path:
    path = _text.existing(source.path, NAME)
    if path is None:
        raise DataError(f"{source.path}: there is no {NAME}; images with captions are {LAYOUT}")
    return path
