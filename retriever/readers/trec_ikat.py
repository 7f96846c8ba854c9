"""Topics of TREC iKAT 2023 to 2025 (Aliannejadi et al. 2024, arXiv:2401.01330): conversations with a persona, in JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from retriever.conversations.reading import HUMAN
from retriever.readers import Source, _fields, _records, _rewrites, _text, _topics
from retriever.readers._turns import Histories, exchange
from retriever.types import Query

LAYOUT = "JSON lists of {number, ptkb, turns: [{turn_id, utterance, ...}]}, qrels/SPLIT.txt, and documents as another format has them"

documents = _topics.documents
splits = _text.splits
qrels = _text.qrels

_TURNS = ("turns", "responses")
_UTTERANCE = ("utterance", "user_utterance")
_REWRITES = {HUMAN: "resolved_utterance"}
_NO_FACTS = frozenset([*_UTTERANCE, *_REWRITES.values(), "turn_id", "response", "response_provenance", "citations", "relevant_ptkbs"])


def recognises(path: Path) -> bool:
    """Whether a JSON file begins with a topic that has a persona."""
    return bool(_topic_files(path))


def files(source: Source) -> list[Path]:
    """The topics, the documents, the qrels and the rewrites."""
    return [*_topics.expected(_topic_files(source.path), source, LAYOUT), *_topics.files_beside(source)]


def queries(source: Source) -> Iterator[tuple[str, Query]]:
    """The users' turns, as TOPIC_TURN, with those before them; the persona is left out."""
    topics = (found for path in _topic_files(source.path) for found in _text.json_records(path))
    return _rewrites.added(source.path, (found for where, topic in topics for found in _of_topic(where, topic)))


def _topic_files(path: Path) -> list[Path]:
    return _topics.files_with(path, rb'"ptkb"\s*:', rb'"(turns|responses)"\s*:')


def _of_topic(where: str, topic: Mapping[str, Any]) -> Iterator[tuple[str, Query]]:
    name = _fields.identifier(where, topic, ("number",))
    title = {"title": topic["title"]} if topic.get("title") else {}
    histories = Histories()
    for turn in _fields.objects(where, topic, _TURNS):
        number = _fields.whole_number(f"{where}: topic {name}", turn, ("turn_id",))
        place = f"{where}: topic {name}, turn {number}"
        before = histories.before(place, name, number)
        utterance = _fields.string(place, turn, _UTTERANCE)
        rewrites = _records.stated_rewrites(place, turn, _REWRITES)
        yield place, Query(f"{name}_{number}", utterance, before, None, name, rewrites, title | _records.facts(turn, _NO_FACTS))
        histories.add(name, *exchange(utterance, _fields.optional_string(place, turn, ("response",))))
