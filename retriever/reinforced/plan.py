"""What a reinforced dataset is to hold: the images of the train split, each with its captions and those a captioner wrote."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from retriever.collection import Collection
from retriever.errors import DataError
from retriever.files import fingerprint
from retriever.images.files import image_sha256
from retriever.reinforced.records import as_line, uid_of
from retriever.types import Qrels, Query


@dataclasses.dataclass(frozen=True)
class WantedImage:
    """An image of the train split.

    Attributes:
        doc_id: its id in the collection.
        image: its file.
        captions: written by people; each once, in the order of the collection.
        synthetic: written by a captioner.
        made_from: changes with the id, the file's bytes and the captions.
    """

    doc_id: str
    image: Path
    captions: tuple[str, ...]
    synthetic: tuple[str, ...]
    made_from: str

    @property
    def uid(self) -> str:
        """The name of its files in a dataset."""
        return uid_of(self.doc_id)


def wanted_images(
    collection: Collection,
    queries: Mapping[str, Query],
    qrels: Qrels,
    synthetic: Path | None,
    advance: Callable[[int], None] = lambda count: None,
    captioned: Mapping[str, Sequence[str]] | None = None,
) -> list[WantedImage]:
    """The images that belong to the queries of a split, with their captions; in the order of the collection.

    A caption belongs to an image when one is a query and the other a relevant document of it, whichever way round.

    Args:
        collection: where images and captions are documents.
        queries: of the split.
        qrels: their grades.
        synthetic: a file of captions by a captioner.
        advance: called with 1 for each image whose file was read.
        captioned: image id -> captions by the experiment's captioners, which follow those of the file.

    Raises:
        DataError: there are none, an image cannot be read, or the file of captions is not in order.
    """
    relevant = {query_id: [doc_id for doc_id, grade in qrels.get(query_id, {}).items() if grade > 0] for query_id in queries}
    doc_ids = sorted({doc_id for listed in relevant.values() for doc_id in listed} | {query_id for query_id, query in queries.items() if query.image})
    rows = np.sort(collection.rows_of(doc_ids))
    documents = {document.doc_id: document for document in collection.documents_by_row(rows[rows >= 0])}
    captions: dict[str, dict[str, None]] = {doc_id: {} for doc_id, document in documents.items() if document.image}
    for query_id, query in queries.items():
        for doc_id in relevant[query_id]:
            image, text = (query_id, documents[doc_id].full_text) if query.image else (doc_id, query.text)
            if image in captions and as_line(text):
                captions[image][as_line(text)] = None
    written = read_synthetic(synthetic, collection) if synthetic else {}
    found = []
    for doc_id, texts in captions.items():
        path = documents[doc_id].image
        if texts and path:
            theirs = (*written.get(doc_id, ()), *(as_line(text) for text in (captioned or {}).get(doc_id, ())))
            made_from = fingerprint([doc_id, image_sha256(path), list(texts), list(theirs)])
            found.append(WantedImage(doc_id, path, tuple(texts), theirs, made_from))
            advance(1)
    if not found:
        raise DataError("reinforce: the train split has no image with a caption. A reinforced dataset is made of a collection of images and captions")
    return found


def read_synthetic(path: Path, collection: Collection) -> dict[str, list[str]]:
    """Image id -> captions, from JSON lines {"image": "0001.jpg", "captions": ["...", ...]}; several lines of an image follow each other.

    Raises:
        DataError: it cannot be read, a line is no such object, or it names an image that the collection does not have.
    """
    found: dict[str, list[str]] = {}
    named: dict[str, str] = {}
    for where, line in _lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: is no JSON ({error})") from error
        image, texts = (record.get("image"), record.get("captions")) if isinstance(record, dict) else (None, None)
        if not isinstance(image, str) or not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(f'{where}: must be {{"image": "...", "captions": ["...", ...]}}, with captions that are not empty')
        doc_id = "_".join(image.split())  # as ids of images are made of their paths
        named.setdefault(doc_id, where)
        found.setdefault(doc_id, []).extend(as_line(text) for text in texts)
    for doc_id, row in zip(found, collection.rows_of(list(found)).tolist(), strict=True):
        if row < 0:
            raise DataError(f'{named[doc_id]}: the collection {collection.name} has no image "{doc_id}". Name it as captions.jsonl does')
    return found


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(file and line number, line), blank ones left out."""
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield f"{path}:{number}", line
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). It is named by reinforce.synthetic_captions") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason})") from error


def in_parts(images: Sequence[WantedImage], size: int) -> list[tuple[WantedImage, ...]]:
    """The images in tuples of `size`, the last one smaller."""
    return [tuple(images[start : start + size]) for start in range(0, len(images), size)]
