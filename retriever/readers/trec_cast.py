"""Topics of TREC CAsT 2019 to 2022 (Dalton et al. 2020, arXiv:2003.13624): conversations in JSON, in 2022 also as trees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from retriever.conversations.reading import HUMAN
from retriever.errors import DataError
from retriever.readers import Source, _fields, _records, _rewrites, _text, _topics
from retriever.readers._turns import AGENT, exchange
from retriever.types import Query, Turn

LAYOUT = "JSON lists of {number, turn: [{number, raw_utterance or utterance, ...}]}, qrels/SPLIT.txt, and documents as another format has them"

documents = _topics.documents
splits = _text.splits
qrels = _text.qrels

_UTTERANCE = ("raw_utterance", "utterance")
_ANSWER = ("passage", "response")
_CANONICAL = ("manual_canonical_result_id", "automatic_canonical_result_id", "canonical_result_id")
_REWRITES = {HUMAN: "manual_rewritten_utterance", "automatic": "automatic_rewritten_utterance"}
_NO_FACTS = frozenset([*_UTTERANCE, *_ANSWER, *_CANONICAL, *_REWRITES.values(), "number", "parent", "participant", "passage_id", "provenance"])


def recognises(path: Path) -> bool:
    """Whether a JSON file begins with a topic."""
    return bool(_topic_files(path))


def files(source: Source) -> list[Path]:
    """The topics, the documents, the qrels and the rewrites."""
    return [*_topics.expected(_topic_files(source.path), source, LAYOUT), *_topics.files_beside(source)]


def queries(source: Source) -> Iterator[tuple[str, Query]]:
    """The users' turns, as TOPIC_TURN, with those before them and what was answered.

    The answer is the passage or response in the file, or else the text of the document that is named as canonical result,
    where it is in the collection. A turn that files repeat, as the paths through one tree do, comes once.
    """
    return _rewrites.added(source.path, _queries(source))


def _topic_files(path: Path) -> list[Path]:
    return _topics.files_with(path, rb'"turn"\s*:\s*\[', rb'"(raw_)?utterance"\s*:')


def _queries(source: Source) -> Iterator[tuple[str, Query]]:
    topics = [found for path in _topic_files(source.path) for found in _text.json_records(path)]
    canonical = _canonical_texts(source, topics)
    seen: dict[str, Query] = {}
    for where, topic in topics:
        for place, query in _of_topic(where, topic, canonical):
            if seen.get(query.query_id) != query:
                yield place, query
            seen[query.query_id] = query


def _of_topic(where: str, topic: Mapping[str, Any], canonical: Mapping[str, str]) -> Iterator[tuple[str, Query]]:
    """The queries of a topic, whose turns follow each other, or their parents where it is a tree."""
    name = _fields.identifier(where, topic, ("number",))
    title = {"title": topic["title"]} if topic.get("title") else {}
    after: dict[str, tuple[Turn, ...]] = {"": ()}  # by turn: what was said up to its end
    last, last_place = "", 0
    for turn in _fields.objects(where, topic, ("turn",)):
        number = _fields.identifier(f"{where}: topic {name}", turn, ("number",))
        place = f"{where}: topic {name}, turn {number}"
        if number in after:
            raise DataError(f"{place}: stands already in this topic. Number each turn once")
        if number.isdecimal() and int(number) < last_place:
            raise DataError(f"{place}: stands after turn {last_place}. Put the turns in their order")
        parent = str(turn.get("parent") or "") if "participant" in turn else last
        if parent not in after:
            raise DataError(f"{place}: its parent is turn {parent}, which does not stand before it")
        before = after[parent]
        answer = _fields.optional_string(place, turn, _ANSWER) or canonical.get(_canonical_id(turn), "")
        if str(turn.get("participant", "user")).casefold() == "user":
            utterance = _fields.string(place, turn, _UTTERANCE)
            rewrites = _records.stated_rewrites(place, turn, _REWRITES)
            yield place, Query(f"{name}_{number}", utterance, before, None, name, rewrites, title | _records.facts(turn, _NO_FACTS))
            after[number] = before + exchange(utterance, answer)
        else:
            after[number] = before + ((Turn(AGENT, answer),) if answer.strip() else ())
        last, last_place = number, int(number) if number.isdecimal() else 0


def _canonical_texts(source: Source, topics: list[tuple[str, dict[str, Any]]]) -> dict[str, str]:
    """The texts of the documents that turns without a passage name as their answer; reads the documents until all are found."""
    turns = (turn for where, topic in topics for turn in _fields.objects(where, topic, ("turn",)) if not any(turn.get(name) for name in _ANSWER))
    wanted = {_canonical_id(turn) for turn in turns} - {""}
    found: dict[str, str] = {}
    for _, document in _topics.documents(source) if wanted else ():
        if document.doc_id in wanted:
            found[document.doc_id] = document.text
            if len(found) == len(wanted):
                break
    return found


def _canonical_id(turn: Mapping[str, Any]) -> str:
    return next((str(turn[name]) for name in _CANONICAL if turn.get(name)), "")
