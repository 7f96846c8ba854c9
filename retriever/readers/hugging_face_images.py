"""Hugging Face data sets of images with captions, as Parquet or saved to disk, without the library datasets.

The texts are read where they stand. Images are copied once into tar files beside the prepared collection: see `_image_tables`. Where
rows that follow each other have the same image, by its path, each with a caption of it, they are one image with all these captions.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from retriever.errors import DataError
from retriever.images.files import tar_members
from retriever.readers import Judgement, Source, _image_tables, _pictures, captions
from retriever.readers._pictures import Picture
from retriever.types import Document, Query

LAYOUT = "train-00000-of-00001.parquet and the like with a column of images and one of captions, or a folder written by save_to_disk with such columns"

CAPTIONS = ("captions", "caption", "sentences", "sentences_raw", "texts", "text")
"""Columns of captions, a text or a list of texts; else caption_0, caption_1 and so on together."""

_NUMBERED = re.compile(r"captions?_?\d+")
_PART = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}")
_SPLIT = re.compile(r"(train|test|validation|valid|val|dev)(?![^\W\d_])", re.IGNORECASE)
_OTHERS = ("documents", "corpus", "queries", "qrels")
"""With what files and folders begin that are tables of texts."""


def recognises(path: Path) -> bool:
    """Whether there are tables with a column of images, in a folder that no captions.jsonl describes.

    One that cannot be read counts, so that the reading says why.
    """
    found = _files(path)
    if not found or not path.is_dir() or captions.recognises(path):
        return False
    try:
        return bool(_image_tables.image_columns(_image_tables.schema_of(found[0])))
    except DataError:
        return True


def files(source: Source) -> list[Path]:
    """The tables.

    Raises:
        DataError: there are none.
    """
    found = _files(source.path)
    if not found:
        raise DataError(f"{source.path}: there is no table of images; they are {LAYOUT}")
    return found


def documents(source: Source) -> Iterator[tuple[str, Document]]:
    """Each image and after it its captions, file by file."""
    return _pictures.documents(_with_images(source), source.fields)


def queries(source: Source) -> Iterator[tuple[str, Query]]:
    """Each image and after it its captions."""
    return _pictures.queries(_with_images(source))


def splits(source: Source) -> tuple[str, ...]:
    """Those that names of files, their folders and a column "split" tell, and each in one direction."""
    return _pictures.with_directions(picture.split for picture in _all(source))


def qrels(source: Source, split: str) -> Iterator[Judgement]:
    """The judgements of a split, of both directions or of one."""
    return _pictures.qrels(_all(source), split)


def _all(source: Source) -> Iterator[Picture]:
    """Every row, its image being called by where it stands; no image is looked at."""
    home = source.path if source.path.is_dir() else source.path.parent
    for file in files(source):
        for picture, _ in _rows(file, home):
            yield picture


def _with_images(source: Source) -> Iterator[Picture]:
    """The same with the images' files."""
    home = source.path if source.path.is_dir() else source.path.parent
    if source.kept is None:
        raise DataError(f"{source.path}: images in tables are read by way of a prepared collection. Open it as the collection of an experiment")
    for file in files(source):
        image = _image_column(file)
        tar = _image_tables.unpacked(file, image, source.kept)
        members = {int(name.partition(".")[0]): tar / name for name in tar_members(tar)}
        for picture, number in _rows(file, home):
            yield dataclasses.replace(picture, image=members[number])


def _rows(file: Path, home: Path) -> Iterator[tuple[Picture, int]]:
    """Each image of a file with the number of its first row, of which it has the facts.

    Raises:
        DataError: rows of one image are in different splits.
    """
    image, split = _image_column(file), _split_of(file, home)
    for _, rows in itertools.groupby(_image_tables.rows_of(file, image), key=lambda row: row[1][image] or row[0]):
        numbers, pictures = zip(*((number, _picture(file, home, number, record, image, split)) for number, record in rows), strict=True)
        first, *others = pictures
        for other in others:
            if other.split != first.split:
                found = f'is of the split "{other.split}", and the same image in row {numbers[0]} of "{first.split}"'
                raise DataError(f"{other.where}: {found}. Keep an image in one")
        if others:
            first = dataclasses.replace(first, captions=tuple(dict.fromkeys(caption for one in pictures for caption in one.captions)))
        yield first, numbers[0]


def _picture(file: Path, home: Path, number: int, record: dict[str, Any], image: str, split: str) -> Picture:
    """A row of a file; its number names an image that has no path."""
    where = f"{file}: row {number}"
    written = record.pop(image)
    name = PurePosixPath(str(written).replace("\\", "/")).name if written else ""
    texts, rest = _captions(where, record)
    place = f"{file.relative_to(home).as_posix()}/{name or number}"
    return Picture(where, place, home / place, texts, _pictures.checked_split(where, rest, split), rest)


def _captions(where: str, record: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The captions of a row, and its other columns.

    Raises:
        DataError: there is no column of captions, or it holds none.
    """
    named = next(([name] for name in CAPTIONS if name in record), None) or sorted((name for name in record if _NUMBERED.fullmatch(name)), key=_by_number)
    if not named:
        columns = ", ".join(record) or "none but the image"
        raise DataError(f"{where}: there is no column of captions; known are {', '.join(CAPTIONS)} and caption_0, caption_1, ..., found {columns}. Rename it")
    values = [record[name] for name in named]
    listed = values[0] if len(named) == 1 and isinstance(values[0], list) else [value for value in values if value is not None]
    return _pictures.checked_captions(where, listed), {name: value for name, value in record.items() if name not in named}


def _by_number(name: str) -> int:
    return int("".join(filter(str.isdigit, name)))


def _image_column(file: Path) -> str:
    """The one column of images of a file.

    Raises:
        DataError: there is none, or several of which none is called "image".
    """
    schema = _image_tables.schema_of(file)
    found = _image_tables.image_columns(schema)
    if "image" in found or len(found) == 1:
        return "image" if "image" in found else found[0]
    if found:
        raise DataError(f'{file}: has several columns of images: {", ".join(found)}. Call the one that is meant "image"')
    raise DataError(f"{file}: has no column of images (bytes and path); its columns are {', '.join(schema.names)}")


def _split_of(file: Path, home: Path) -> str:
    """The split that the name of a file or of its folder tells; "train" where neither does."""
    part = _PART.fullmatch(file.stem)
    if part and part["split"] != "data":
        return str(part["split"]).rsplit("-", 1)[-1]
    names: list[str] = [file.stem, *(() if file.parent == home or file.parent.name == "data" else (file.parent.name,))]
    if len(names) > 1 and (home / "dataset_dict.json").is_file():
        return names[1]
    return next((found[0].lower() for name in names if (found := _SPLIT.match(name))), "train")


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix in (".parquet", ".arrow") else []
    found: Iterable[Path] = (file for pattern in ("*.parquet", "*/*.parquet", "*.arrow", "*/*.arrow") for file in sorted(path.glob(pattern)))
    return [file for file in found if file.is_file() and not _is_other(file, path)]


def _is_other(file: Path, home: Path) -> bool:
    """Whether a file is a table of texts, or one that the library keeps for itself."""
    names = file.relative_to(home).parts
    return file.name.startswith("cache-") or any(name.startswith((".", *_OTHERS)) for name in names)
