"""MTRAG's retrieval tasks (Katsis et al. 2025, arXiv:2501.03468) as published: the user's turns so far in one text, answers in a file of conversations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from retriever.conversations.reading import HUMAN, is_user
from retriever.errors import DataError
from retriever.readers import Source, _fields, _records, _rewrites, _text, _topics
from retriever.types import Document, Query, Turn

LAYOUT = "NAME_questions.jsonl, NAME_rewrite.jsonl, qrels/SPLIT.tsv, perhaps conversations.json, and documents as another format has them"

splits = _text.splits
qrels = _text.qrels

_QUESTIONS = "_questions.jsonl"
_CONVERSATIONS = ("conversations.json", "../../conversations/conversations.json")
_SPEAKER = re.compile(r"^\|(\w+)\|:", re.MULTILINE)

Said = tuple[str, ...]
"""What a user has said so far, by which a turn is found in the file of conversations; white space does not count."""


def recognises(path: Path) -> bool:
    """Whether there is a NAME_questions.jsonl with users' turns."""
    return bool(_question_files(path))


def files(source: Source) -> list[Path]:
    """The questions, the rewrites, the conversations, the documents and the qrels."""
    questions = _questions(source)
    named = [questions, _rewrite_file(questions), _conversations_file(source), _corpus(questions)]
    beside = [] if _corpus(questions) else _topics.files_beside(source)
    return list(dict.fromkeys([*(path for path in named if path), *beside, *_text.qrels_files(source.path).values(), *_rewrites.files(source.path)]))


def documents(source: Source) -> Iterator[tuple[str, Document]]:
    """The passages of the repository's corpus, or the documents beside the questions."""
    corpus = _corpus(_questions(source))
    if corpus is None:
        yield from _topics.documents(source)
        return
    for where, record in _text.json_lines(corpus):
        yield where, _records.document(where, record, corpus.parent, source.fields)


def queries(source: Source) -> Iterator[tuple[str, Query]]:
    """The questions with the user's turns before them, and with the agent's where there is a file of conversations."""
    return _rewrites.added(source.path, _queries(source))


def _queries(source: Source) -> Iterator[tuple[str, Query]]:
    questions, conversations = _questions(source), _conversations_file(source)
    known = _known_turns(conversations) if conversations else None
    rewritten = _rewritten(questions)
    domain = {"domain": questions.name.removesuffix(_QUESTIONS)}
    first_turns: dict[Said, str] = {}
    for where, record in _text.json_lines(questions):
        query_id = _fields.identifier(where, record, _records.QUERY_ID)
        said = _utterances(_fields.string(where, record, ("text",)))
        if known is not None and _key(said) not in known:
            found = f"{conversations} has no conversation with the {len(said)} turns of the query {query_id}"
            raise DataError(f"{where}: {found}. Give the file that belongs to it")
        turns, more = known[_key(said)] if known is not None else (tuple(Turn("user", text) for text in said[:-1]), {})
        rewrites = {HUMAN: rewritten.pop(query_id)} if query_id in rewritten else {}
        yield where, Query(query_id, said[-1], turns, None, _conversation(query_id, said, first_turns), rewrites, domain | more)
    if rewritten:
        raise DataError(f"{_rewrite_file(questions)}: the rewrite {next(iter(rewritten))} is for no query of {questions.name} ({len(rewritten)} such rewrites)")


def _conversation(query_id: str, said: list[str], first_turns: dict[Said, str]) -> str:
    """The conversation of a turn: what CONVERSATION<::>TURN names, or else the first turn that begins as it does with the same author, as in AUTHOR_TIME."""
    name, mark, _ = query_id.partition("<::>")
    return name if mark else first_turns.setdefault((query_id.rpartition("_")[0], *_key(said[:1])), query_id)


def _utterances(text: str) -> list[str]:
    """What is said in "|user|: first" and the lines that follow; a text without a speaker is one utterance."""
    _, *rest = _SPEAKER.split(text)
    return [said.strip() for said in rest[1::2]] or [text.strip()]


def _rewritten(questions: Path) -> dict[str, str]:
    path = _rewrite_file(questions)
    lines = (_records.rewrite(where, record) for where, record in _text.json_lines(path)) if path else ()
    return {query_id: _utterances(text)[-1] for query_id, text in lines if text.strip()}


def _known_turns(path: Path) -> dict[Said, tuple[tuple[Turn, ...], dict[str, Any]]]:
    """What stands before each of the users' turns in a file of conversations, and what is known of the turn."""
    known: dict[Said, tuple[tuple[Turn, ...], dict[str, Any]]] = {}
    for where, conversation in _text.json_records(path):
        before: tuple[Turn, ...] = ()
        for number, message in enumerate(_fields.objects(where, conversation, ("messages",)), 1):
            place = f"{where}: message {number}"
            turn = Turn(_fields.string(place, message, ("speaker",)), _fields.string(place, message, ("text",)))
            if is_user(turn):
                said = [*(earlier.text for earlier in before if is_user(earlier)), turn.text]
                known.setdefault(_key(said), (before, _enrichments(message)))
            before = (*before, turn)
    return known


def _enrichments(message: Mapping[str, Any]) -> dict[str, Any]:
    """Such as {"multi_turn": ["Follow-up"]}, under the names as they are written elsewhere."""
    found = message.get("enrichments")
    values = found if isinstance(found, Mapping) else {}
    return _records.facts({name.casefold().replace(" ", "_").replace("-", "_"): value for name, value in values.items()}, ())


def _key(said: list[str]) -> Said:
    return tuple(" ".join(text.split()) for text in said)


def _question_files(path: Path) -> list[Path]:
    return [file for file in _topics.files_with(path, rb'"text"\s*:\s*"\|\w+\|:') if file.name.endswith(_QUESTIONS)]


def _questions(source: Source) -> Path:
    found = _topics.expected(_question_files(source.path), source, LAYOUT)
    if len(found) > 1:
        raise DataError(f"{source.path}: has the questions of several domains: {', '.join(path.name for path in found)}. Give each a folder")
    return found[0]


def _rewrite_file(questions: Path) -> Path | None:
    path = questions.with_name(f"{questions.name.removesuffix(_QUESTIONS)}_rewrite.jsonl")
    return path if path.is_file() else None


def _conversations_file(source: Source) -> Path | None:
    return next((path for name in _CONVERSATIONS if (path := source.path / name).is_file()), None)


def _corpus(questions: Path) -> Path | None:
    """The passages as they lie in the repository, three folders up from the questions; none when others lie beside the questions."""
    name = questions.name.removesuffix(_QUESTIONS)
    path = questions.parent / "../../../corpora/passage_level" / f"{name}.jsonl"
    return path if path.is_file() and _text.existing(questions.parent, "corpus.jsonl") is None else None
