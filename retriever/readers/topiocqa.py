"""TopiOCQA (Adlakha et al. 2022, arXiv:2110.00768): turns whose topic may switch, with the passage that answers, in JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from retriever.readers import Judgement, Source, _numbered, _rewrites, _topics
from retriever.types import Query

LAYOUT = "JSON lists of {Conversation_no, Turn_no, Question, Context, Topic, Gold_passage, ...} named by train or dev, and documents as another format has them"

documents = _topics.documents


def recognises(path: Path) -> bool:
    """Whether a JSON file begins with a turn that has a topic."""
    return bool(_turn_files(path))


def files(source: Source) -> list[Path]:
    """The turns, the documents, the qrels and the rewrites."""
    return [*_topics.expected(_turn_files(source.path), source, LAYOUT), *_topics.files_beside(source)]


def queries(source: Source) -> Iterator[tuple[str, Query]]:
    """The turns, as SPLIT_CONVERSATION_TURN, with their topic and whether it is another than that of the turn before."""
    return _rewrites.added(source.path, _queries(source))


def splits(source: Source) -> tuple[str, ...]:
    """The names of the qrels files, and the splits whose turns have a gold passage."""
    return _numbered.splits(source, _by_split(source), _gold)


def qrels(source: Source, split: str) -> Iterator[Judgement]:
    """The judgements of a qrels file; without one, the gold passages."""
    return _numbered.qrels(source, split, _by_split(source), _gold)


def _queries(source: Source) -> Iterator[tuple[str, Query]]:
    for split, path in _by_split(source).items():
        topics: dict[str, str] = {}  # by turn
        for turn in _numbered.turns(split, path, ("Answer",)):
            topic = topics[turn.query_id] = str(turn.record.get("Topic") or "")
            earlier = topics.get(f"{turn.conversation}_{turn.number - 1}")
            fields: dict[str, Any] = {"topic": topic} if topic else {}
            fields |= {"topic_switch": topic != earlier} if topic and earlier else {}
            yield turn.where, Query(turn.query_id, turn.question, turn.before, None, turn.conversation, {}, fields)


def _gold(record: Mapping[str, Any]) -> list[str]:
    passage = record.get("Gold_passage")
    return [str(passage["id"])] if isinstance(passage, Mapping) and passage.get("id") else []


def _by_split(source: Source) -> dict[str, Path]:
    return _numbered.by_split(_turn_files(source.path))


def _turn_files(path: Path) -> list[Path]:
    return _topics.files_with(path, rb'"Conversation_no"\s*:', rb'"Question"\s*:', rb'"(Topic|Gold_passage)"\s*:')
