"""What a report on images and captions needs beside its numbers: which queries belong together, and small pictures."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path

from retriever.collection import Collection
from retriever.conversations.facets import clusters_of, relevant_to
from retriever.eval.changes import changes_of
from retriever.eval.directions import direction_of_query
from retriever.eval.report import ReportData
from retriever.eval.shown import FOUND_SHOWN, MOST_THUMBNAILS, Shown, ShownDocument
from retriever.images.reading import read_image
from retriever.queries import captioned_images
from retriever.runs import Run, read_run
from retriever.types import Document, Qrels, Query

THUMBNAIL_PIXELS = 64
_JPEG_QUALITY = 85


def shows_images(queries: Mapping[str, Query]) -> bool:
    """Whether a report is on images and texts."""
    return any(query.image is not None or direction_of_query(query) for query in queries.values())


def wholes_of(queries: Mapping[str, Query], qrels: Qrels) -> dict[str, str] | None:
    """What tests and intervals take as wholes: conversations, or images with all their captions; None where queries stand alone."""
    return clusters_of(queries) or image_clusters(queries, qrels) or None


def image_clusters(queries: Mapping[str, Query], qrels: Qrels) -> dict[str, str]:
    """Caption -> the images that it is a caption of: captions of one image are alike, and tests take them together. Empty where each image has one."""
    clusters = captioned_images(queries, qrels)
    return clusters if len(set(clusters.values())) < len(clusters) else {}


def thumbnail(path: Path) -> str:
    """An image as a data URI: JPEG, at most 64 pixels wide and high.

    Raises:
        DataError: the image cannot be read; the message names it.
    """
    small = read_image(path)
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    stream = io.BytesIO()
    small.save(stream, format="JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def with_images(report: ReportData, queries: Mapping[str, Query], collection: Collection, qrels: Qrels, runs: Path) -> ReportData:
    """The report with the images and captions that the subject found for the queries that changed most; as it is where there are no images.

    Args:
        report: with its runs.
        queries: of the test split.
        collection: whose documents were found.
        qrels: which of them are right.
        runs: folder of the runs in TREC form.

    Raises:
        DataError: an image cannot be read.
    """
    if not shows_images(queries):
        return report
    thumbnails = _Thumbnails()
    found: dict[str, list[ShownDocument]] = {}
    for changes in changes_of(report):
        run = read_run(runs / f"{changes.subject}.trec")
        for change in (*changes.improved, *changes.hurt):
            query = queries[change.query_id]
            if query.image is not None:
                thumbnails.queries[query.query_id] = thumbnails.key_of(query.image)
            found[query.query_id] = _found(run, query.query_id, collection, sorted(relevant_to(qrels, query.query_id)), thumbnails)
    return dataclasses.replace(report, shown=Shown(thumbnails.queries, found, thumbnails.made))


class _Thumbnails:
    """Makes each image small once, and no more of them than a report may have."""

    def __init__(self) -> None:
        self.made: dict[str, str] = {}
        self.queries: dict[str, str] = {}
        self._keys: dict[Path, str] = {}

    def key_of(self, path: Path) -> str:
        """Under which key an image is; "" where there is no room for it."""
        if path not in self._keys:
            if len(self._keys) == MOST_THUMBNAILS:
                return ""
            self._keys[path] = str(len(self._keys))
            self.made[self._keys[path]] = thumbnail(path)
        return self._keys[path]


def _found(run: Run, query_id: str, collection: Collection, relevant: list[str], thumbnails: _Thumbnails) -> list[ShownDocument]:
    """The first documents of a query, and the first relevant one."""
    ranks = {doc_id: rank for rank, (doc_id, _) in enumerate(run[query_id], 1)}
    first = min(relevant, key=lambda doc_id: ranks.get(doc_id, len(ranks) + 1), default=None)
    listed = list(ranks)[:FOUND_SHOWN]
    listed += [first] if first is not None and first not in listed else []
    rows = collection.rows_of(listed)
    documents = collection.documents_by_row(rows[rows >= 0])  # the index may hold documents of its own
    return [_shown(document, ranks.get(document.doc_id), document.doc_id in relevant, thumbnails) for document in documents]


def _shown(document: Document, rank: int | None, relevant: bool, thumbnails: _Thumbnails) -> ShownDocument:
    if document.image is None:
        return ShownDocument(document.doc_id, rank, relevant, text=document.full_text)
    return ShownDocument(document.doc_id, rank, relevant, thumbnail=thumbnails.key_of(document.image))
