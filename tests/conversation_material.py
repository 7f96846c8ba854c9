"""Small files of conversations, and what is read of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from retriever.collection import Collection, open_collection
from retriever.settings.collection import CollectionSettings
from retriever.types import Query, Turn

FIRST = Turn("user", "who baked it")
ANSWER = Turn("agent", "Ada did")
UTTERANCE = "yes please"


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_jsonl(path: Path, *records: dict[str, Any]) -> None:
    write(path, *(json.dumps(record) for record in records))


def write_json(path: Path, value: object) -> None:
    write(path, json.dumps(value, indent=2))


def corpus(folder: Path, *ids: str) -> None:
    write_jsonl(folder / "corpus.jsonl", *({"_id": identifier, "text": f"text of {identifier}"} for identifier in ids or ("d1", "d2")))


def opened(source: Path) -> Collection:
    return open_collection(CollectionSettings(path=source), source.with_name(f"{source.name} prepared"))


def queries(source: Path) -> dict[str, Query]:
    return {query.query_id: query for query in opened(source).all_queries()}


def as_second_turns(folder: Path, together: int) -> Path:
    """A collection with its queries as second turns: all say the same, after the question was asked before; so many make a conversation."""
    records = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    (folder / "queries.jsonl").unlink()
    turns = [
        {
            "id": record["_id"],
            "conversation_id": f"c{number // together}",
            "history": [{"speaker": "user", "text": record["text"]}, {"speaker": "agent", "text": "is it that you ask?"}],
            "utterance": UTTERANCE,
            "rewrite": record["text"],
            "domain": ("animals", "tools")[number % 2],
        }
        for number, record in enumerate(records)
    ]
    write_jsonl(folder / "conversations.jsonl", *turns)
    return folder
