"""QReCC (Anantha et al. 2021, arXiv:2010.04898): turns with rewrites in JSON, as published and as in the SCAI 2021 challenge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from retriever.conversations.reading import HUMAN
from retriever.readers import Judgement, Source, _fields, _numbered, _rewrites, _topics
from retriever.types import Query

LAYOUT = "JSON lists of {Conversation_no, Turn_no, Question, Rewrite or Truth_rewrite, ...} named by train or test, and documents as another format has them"

documents = _topics.documents

_REWRITES = ("Rewrite", "Truth_rewrite")
_ANSWER = ("Answer", "Truth_answer")


def recognises(path: Path) -> bool:
    """Whether a JSON file begins with a turn that has a rewrite."""
    return bool(_turn_files(path))


def files(source: Source) -> list[Path]:
    """The turns, the documents, the qrels and the rewrites."""
    return [*_topics.expected(_turn_files(source.path), source, LAYOUT), *_topics.files_beside(source)]


def queries(source: Source) -> Iterator[tuple[str, Query]]:
    """The turns, as SPLIT_CONVERSATION_TURN."""
    return _rewrites.added(source.path, _queries(source))


def splits(source: Source) -> tuple[str, ...]:
    """The names of the qrels files, and the splits whose turns have Truth_passages."""
    return _numbered.splits(source, _by_split(source), _gold)


def qrels(source: Source, split: str) -> Iterator[Judgement]:
    """The judgements of a qrels file; without one, the Truth_passages."""
    return _numbered.qrels(source, split, _by_split(source), _gold)


def _queries(source: Source) -> Iterator[tuple[str, Query]]:
    for split, path in _by_split(source).items():
        for turn in _numbered.turns(split, path, _ANSWER):
            rewrites = {HUMAN: text} if (text := _fields.optional_string(turn.where, turn.record, _REWRITES)).strip() else {}
            fields = {"source": turn.record["Conversation_source"]} if turn.record.get("Conversation_source") else {}
            yield turn.where, Query(turn.query_id, turn.question, turn.before, None, turn.conversation, rewrites, fields)


def _gold(record: Mapping[str, Any]) -> list[str]:
    return [str(passage) for passage in record.get("Truth_passages") or ()]


def _by_split(source: Source) -> dict[str, Path]:
    return _numbered.by_split(_turn_files(source.path))


def _turn_files(path: Path) -> list[Path]:
    return _topics.files_with(path, rb'"Conversation_no"\s*:', rb'"Question"\s*:', rb'"(Truth_r|R)ewrite"\s*:')
