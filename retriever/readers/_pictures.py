"""Images with captions as a collection: both are documents, both are queries, and each finds those of the other kind in its own split."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from retriever.errors import DataError
from retriever.readers import Judgement, _records
from retriever.types import Document, Query

DIRECTIONS = ("text_to_image", "image_to_text")
"""What is asked, and what is found; a split has qrels of both together, and as SPLIT.DIRECTION of one."""

_OWN = ("image", "caption", "captions", "split", "kind", "direction", "metadata")
"""Names in a record that are no facts about its image."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """One image with its captions.

    Attributes:
        where: it stands, such as "captions.jsonl:17".
        name: its path as the source has it.
        image: the file.
        captions: one at least, none empty.
        split: of the image and its captions.
        record: whatever else is said of it.
    """

    where: str
    name: str
    image: Path
    captions: tuple[str, ...]
    split: str
    record: Mapping[str, Any]

    @property
    def doc_id(self) -> str:
        """The image's id, as a document and as a query: its path, white space replaced."""
        return "_".join(self.name.split())

    @property
    def caption_ids(self) -> list[str]:
        """The captions' ids, in their order."""
        return [f"{self.doc_id}#{number}" for number in range(len(self.captions))]


def documents(pictures: Iterable[Picture], fields: tuple[str, ...]) -> Iterator[tuple[str, Document]]:
    """Each image and after it its captions, with the fields "kind", "split" and those that are wanted.

    Raises:
        DataError: an image stands twice, or two have the same id.
    """
    places: dict[str, tuple[str, str]] = {}
    for picture in pictures:
        if before := places.get(picture.doc_id):
            name, where = before
            same = f"the image {name} stands already" if name == picture.name else f"the image {name} has the same id, {picture.doc_id},"
            raise DataError(f"{picture.where}: {same} at {where}. Give each image one entry with all its captions, and a path of its own")
        places[picture.doc_id] = picture.name, picture.where
        kept = {**_records.kept_fields(picture.record, fields), "split": picture.split}
        yield picture.where, Document(picture.doc_id, "", image=picture.image, fields={**kept, "kind": "image"})
        for doc_id, caption in zip(picture.caption_ids, picture.captions, strict=True):
            yield picture.where, Document(doc_id, caption, fields={**kept, "kind": "caption"})


def queries(pictures: Iterable[Picture]) -> Iterator[tuple[str, Query]]:
    """Each image, which looks for captions, and after it its captions, which look for images; all among those of their split."""
    for picture in pictures:
        facts = {name: value for name, value in _records.facts(picture.record, _OWN).items() if not isinstance(value, list)}
        to_text, to_image = ({"kind": kind, "split": picture.split} for kind in ("caption", "image"))
        yield picture.where, Query(picture.doc_id, "", image=picture.image, fields={"direction": DIRECTIONS[1], **facts}, among=to_text)
        for query_id, caption in zip(picture.caption_ids, picture.captions, strict=True):
            yield picture.where, Query(query_id, caption, fields={"direction": DIRECTIONS[0], **facts}, among=to_image)


def with_directions(splits: Iterable[str]) -> tuple[str, ...]:
    """The splits, each once, and then each in one direction."""
    once = tuple(dict.fromkeys(splits))
    return (*once, *(f"{split}.{direction}" for split in once for direction in DIRECTIONS))


def _split_of(name: str) -> tuple[str, tuple[str, ...]]:
    """The split of pictures that a split of qrels is made of, and its directions."""
    for direction in DIRECTIONS:
        if name.endswith(f".{direction}"):
            return name.removesuffix(f".{direction}"), (direction,)
    return name, DIRECTIONS


def qrels(pictures: Iterable[Picture], split: str) -> Iterator[Judgement]:
    """The judgements of a split, of both directions or of one: grade 1 for a caption with its image, and for an image with each of its captions."""
    own, directions = _split_of(split)
    for picture in pictures:
        for caption_id in picture.caption_ids if picture.split == own else ():
            if "text_to_image" in directions:
                yield Judgement(picture.where, caption_id, picture.doc_id, 1)
            if "image_to_text" in directions:
                yield Judgement(picture.where, picture.doc_id, caption_id, 1)


def checked_captions(where: str, captions: object) -> tuple[str, ...]:
    """The captions of a record's list.

    Raises:
        DataError: it is none, there is none in it, or one is no text or an empty one; the message begins with `where`.
    """
    if not isinstance(captions, list):
        raise DataError(f'{where}: "captions" must be a list of texts, found {captions!r:.40}')
    if not captions:
        raise DataError(f"{where}: there are no captions. Give one at least, or leave the image out")
    for number, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise DataError(f"{where}: caption {number} must be a text, found {caption!r:.40}")
        if not caption.strip():
            raise DataError(f"{where}: caption {number} is empty. Give it words, or leave it out")
    return tuple(captions)


def checked_split(where: str, record: Mapping[str, Any], default: str) -> str:
    """The split that a record names.

    Raises:
        DataError: it is no name; the message begins with `where`.
    """
    split = record.get("split")
    if split is None:
        return default
    if not isinstance(split, str) or split.split() != [split]:
        raise DataError(f'{where}: "split" must be a name without white space, such as "train" or "test", found {split!r:.40}')
    return split
