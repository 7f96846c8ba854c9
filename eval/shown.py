"""What the page shows of queries whose answers are images: the image or caption asked with, and what was found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

MOST_THUMBNAILS = 60
"""In one report: each is some 2 kB of its page."""

FOUND_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class ShownDocument:
    """A document under a query.

    Attributes:
        doc_id: its id.
        rank: where the subject has it, from 1; None for a relevant one that it has not at all.
        relevant: whether it answers the query.
        text: of a caption; "" for an image.
        thumbnail: the image's key among the thumbnails; "" for a caption, or where there is no room for more images.
    """

    doc_id: str
    rank: int | None
    relevant: bool
    text: str = ""
    thumbnail: str = ""


@dataclasses.dataclass(frozen=True)
class Shown:
    """The queries that changed most, with what the subject found for them.

    Attributes:
        queries: id of a query that is an image -> its key among the thumbnails.
        found: query id -> its documents, best first; the first relevant one is always among them.
        thumbnails: key -> the image as a data URI.
    """

    queries: Mapping[str, str]
    found: Mapping[str, Sequence[ShownDocument]]
    thumbnails: Mapping[str, str]


def shown_from_json(values: Mapping[str, Any]) -> Shown:
    """What `dataclasses.asdict` made of it, after a way through JSON."""
    found = {query_id: [ShownDocument(**document) for document in documents] for query_id, documents in values["found"].items()}
    return Shown(values["queries"], found, values["thumbnails"])
