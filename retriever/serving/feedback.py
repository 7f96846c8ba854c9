"""Clicks and judgements: a log that is only ever added to, and what it teaches, as a collection that experiments read."""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from retriever.errors import DataError
from retriever.files import fingerprint, make_folder, sync, write_text
from retriever.types import Document, Turn

CLICK = 1
"""The grade of a click, where nobody judged the document."""

FILE = "feedback.jsonl"


def append(path: Path, events: Sequence[Mapping[str, Any]]) -> None:
    """Adds events with the time; they are on the disk when this returns, all or, after a crash in between, a half line that readers pass over."""
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    data = "".join(json.dumps({"time": made, **event}, ensure_ascii=False) + "\n" for event in events).encode()
    new = not path.exists()
    with os.fdopen(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "r+b", buffering=0) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # of several worker processes one at a time
        end = stream.seek(0, os.SEEK_END)
        if end and os.pread(stream.fileno(), 1, end - 1) != b"\n":
            data = b"\n" + data  # behind the half line of a crash
        while data:
            data = data[stream.write(data) :]
        os.fsync(stream.fileno())
    if new:
        sync(path.parent)


@dataclasses.dataclass(frozen=True)
class Learned:
    """What a log of feedback teaches.

    Attributes:
        queries: records as JSON lines hold them, by id.
        qrels: query id -> document id -> grade.
        damaged: lines that could not be read.
        absent: judged documents that are not there any more.
    """

    queries: Mapping[str, Mapping[str, Any]]
    qrels: Mapping[str, Mapping[str, int]]
    damaged: int = 0
    absent: int = 0


def to_qrels(path: Path, index: str | None = None) -> Learned:
    """The queries of a log with their grades: the last judgement of a document, or `CLICK` where it was clicked and never judged.

    A query is one text with the turns before it; its id is made of them.

    Args:
        path: of the log.
        index: takes the events of this index alone.

    Raises:
        DataError: the log cannot be read, or teaches nothing.
    """
    queries: dict[str, dict[str, Any]] = {}
    judged: dict[str, dict[str, int]] = {}
    clicked: dict[str, dict[str, int]] = {}
    damaged = 0
    for event in _events(path):
        if event is None:
            damaged += 1
        elif index in (None, event.get("index")):
            turns = [dataclasses.asdict(turn) for turn in event["turns"]]
            query_id = f"f{fingerprint([event['query'], turns])}"
            queries.setdefault(query_id, {"id": query_id, "text": event["query"], **({"history": turns} if turns else {})})
            grade = event.get("grade")
            (clicked if grade is None else judged).setdefault(query_id, {})[event["id"]] = CLICK if grade is None else grade
    if not queries:
        raise DataError(f"{path}: holds no feedback" + (f' on the index "{index}"' if index else "") + ". It is written by: retriever serve --state FOLDER")
    return Learned(queries, {query_id: {**clicked.get(query_id, {}), **judged.get(query_id, {})} for query_id in queries}, damaged)


def write_training(folder: Path, learned: Learned, documents: Iterable[Document], split: str = "train") -> Learned:
    """Writes a collection that `[collection] path` takes: documents.jsonl, queries.jsonl and qrels/SPLIT.tsv.

    Judgements of documents that are not among these are left out, and queries that have none left.

    Raises:
        DataError: none is left.
    """
    make_folder(folder / "qrels")
    known: set[str] = set()
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as stream:
        for document in documents:
            known.add(document.doc_id)
            image = {"image": str(document.image.absolute())} if document.image else {}
            record = {"id": document.doc_id, "title": document.title, "text": document.text, **image, "metadata": dict(document.fields)}
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
    qrels = {query_id: {doc_id: grade for doc_id, grade in grades.items() if doc_id in known} for query_id, grades in learned.qrels.items()}
    kept = {query_id: grades for query_id, grades in qrels.items() if grades}
    if not kept:
        raise DataError(f"{folder}: none of the judged documents is there any more")
    write_text(folder / "queries.jsonl", "".join(json.dumps(learned.queries[query_id], ensure_ascii=False) + "\n" for query_id in kept))
    lines = [f"{query_id}\t{doc_id}\t{grade}\n" for query_id, grades in kept.items() for doc_id, grade in grades.items()]
    write_text(folder / "qrels" / f"{split}.tsv", "query-id\tcorpus-id\tscore\n" + "".join(lines))
    absent = sum(map(len, learned.qrels.values())) - len(lines)
    return dataclasses.replace(learned, queries={query_id: learned.queries[query_id] for query_id in kept}, qrels=kept, absent=absent)


def _events(path: Path) -> Iterator[dict[str, Any] | None]:
    """The events in their order, with their turns as values; None for a damaged line."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    for line in lines:
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            grade = event.get("grade")
            if not isinstance(event["query"], str) or not isinstance(event["id"], str) or not (grade is None or isinstance(grade, int)):
                raise TypeError
            yield {**event, "turns": [Turn(turn["speaker"], turn["text"]) for turn in event.get("turns", [])]}
        except (ValueError, KeyError, TypeError, AttributeError):
            yield None
