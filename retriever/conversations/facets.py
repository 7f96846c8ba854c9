"""What tells queries apart, so that results can be reported for each kind: depth, topic, need of history, documents known from training, fields."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from retriever.conversations.reading import HUMAN, is_user
from retriever.errors import ConfigError
from retriever.eval.facets import TURN_DEPTH, Facet
from retriever.runs import Run
from retriever.types import Qrels, Query

DEEPEST = 5
FOUND_AMONG = 10
SEEN, NEW = "seen in training", "new"
FIRST, LATER = "first turn", "later turns"
CONTINUATION, SWITCH = "continuation", "switch"
NEED_OF_HISTORY = "need of history"
ALONE, NEEDY = "stands alone", "needs history"
FINDS, MISSES = "last turn finds it", "last turn misses it"


def facets_of(queries: Mapping[str, Query], qrels: Qrels, by: Sequence[str] = (), language: str = "english") -> list[Facet]:
    """All that can be told of the queries: depth, first turn or later, topic switch, need of history, and the fields in `by`.

    A facet whose queries are all alike is left out, and so is the need of history where no later turn has a rewrite
    (`needs_history_by_run` decides it then); one in `by` is always there.

    Args:
        queries: as the collection has them, with turns and rewrites.
        qrels: their judgements.
        by: names of fields; a list counts in each of its values.
        language: of the rewrites' stop words and stemmer.

    Raises:
        ConfigError: no query has a field that `by` names.
    """
    told = [turn_depth(queries), first_or_later(queries), topic_switch(queries, qrels), needs_history(queries, language)]
    return [facet for facet in told if len(facet.labels) > 1] + [by_field(queries, name) for name in by]


def clusters_of(queries: Mapping[str, Query]) -> dict[str, str]:
    """Query id -> conversation, of those that belong to one: what tests and intervals take as wholes."""
    return {query_id: query.conversation for query_id, query in queries.items() if query.conversation}


def depths_of(queries: Mapping[str, Query]) -> dict[str, int]:
    """Query id -> how many turns the user has had, this one counted; 1 for a query that stands alone."""
    return {query_id: depth_of(query) for query_id, query in queries.items()}


def depth_of(query: Query) -> int:
    """How many turns the user has had, this one counted."""
    return 1 + sum(is_user(turn) for turn in query.turns)


def turn_depth(queries: Mapping[str, Query]) -> Facet:
    """1, 2, 3, 4 and 5+ turns of the user so far."""
    labels = [*map(str, range(1, DEEPEST)), f"{DEEPEST}+"]
    groups = {query_id: labels[min(depth, DEEPEST) - 1] for query_id, depth in depths_of(queries).items()}
    return _facet(TURN_DEPTH, labels, groups, "How many turns the user has had, this one counted.")


def first_or_later(queries: Mapping[str, Query]) -> Facet:
    """The user's first turn, and all later ones together."""
    groups = {query_id: FIRST if depth == 1 else LATER for query_id, depth in depths_of(queries).items()}
    return _facet("first or later turn", [FIRST, LATER], groups, "")


def topic_switch(queries: Mapping[str, Query], qrels: Qrels) -> Facet:
    """Later turns that go on, and those that turn to something else.

    A field "topic_switch" (true or false) decides; else a field "topic", held against that of the turn before; else the relevant documents: a
    switch shares none with the earlier turns of its conversation. Turns before which none was asked or judged are in no group.
    """
    groups: dict[str, str] = {}
    decided: dict[str, None] = {}
    for conversation in _conversations(queries):
        for query in conversation:
            earlier = [other for other in conversation if len(other.turns) < len(query.turns)]
            label, by = (FIRST, "") if depth_of(query) == 1 else _topic_of(query, earlier, qrels)
            if label:
                groups[query.query_id] = label
                decided |= {by: None} if by else {}
    return _facet("topic", [FIRST, CONTINUATION, SWITCH], groups, f"A switch or not is told by {', or by '.join(decided)}." if decided else "")


def needs_history(queries: Mapping[str, Query], language: str = "english") -> Facet:
    """Later turns whose rewrite says more than they do, and those that stand alone; without groups where no later turn has a rewrite.

    More is a content word: neither a stop word nor, stemmed, a word of the utterance. The rewrite is a person's, else the first one.
    """
    later = {query_id: query for query_id, query in queries.items() if depth_of(query) > 1 and query.rewrites}
    if not later:
        return _facet(NEED_OF_HISTORY, [], {}, "")
    groups = {query_id: FIRST for query_id, query in queries.items() if depth_of(query) == 1}
    for query_id, query in later.items():
        rewrite = query.rewrites.get(HUMAN, next(iter(query.rewrites.values())))
        groups[query_id] = NEEDY if content_words(rewrite, language) - content_words(query.text, language) else ALONE
    people = all(HUMAN in query.rewrites for query in later.values())
    note = f"A turn needs its history where its rewrite {'by a person ' if people else ''}has a content word that the turn itself has not."
    return _facet(NEED_OF_HISTORY, [FIRST, ALONE, NEEDY], groups, note)


def needs_history_by_run(queries: Mapping[str, Query], last_turn_run: Run, qrels: Qrels) -> Facet:
    """The same where no one wrote rewrites: whether a run on the last turn alone has a relevant document among its first 10.

    It is defined by an outcome, and its note says what that does to the numbers.
    """
    found = {query_id: {doc_id for doc_id, _ in last_turn_run[query_id][:FOUND_AMONG]} & relevant_to(qrels, query_id) for query_id in queries}
    groups = {query_id: FIRST if depth_of(query) == 1 else FINDS if found[query_id] else MISSES for query_id, query in queries.items()}
    name = last_turn_run.name
    note = (
        f"The groups are an outcome: whether {name} has a relevant document among its first {FOUND_AMONG}. That flatters all other runs against {name} "
        f"where it misses, and {name} against them where it finds; compare the other runs with each other."
    )
    return _facet("last turn alone", [FIRST, FINDS, MISSES], groups, note)


def seen_documents(qrels: Qrels, taught: Iterable[set[str]]) -> list[Facet]:
    """Queries with a relevant document that was relevant to a query of the training, and those without; none where all are alike.

    What judgements say of a document can be learnt by heart, which helps the former alone: where they are many, training on judgements looks
    better than it will be on documents that nobody asked for yet.

    Args:
        qrels: of the queries that are told apart.
        taught: the relevant documents of each query that taught.
    """
    known = set[str]().union(*taught)
    groups = {query_id: SEEN if relevant & known else NEW for query_id in qrels if (relevant := relevant_to(qrels, query_id))}
    facet = _facet("relevant documents", [SEEN, NEW], groups, "A document was seen in training where a judged train query found it relevant.")
    return [facet] if len(facet.labels) > 1 else []


def by_field(queries: Mapping[str, Query], name: str) -> Facet:
    """A group for each value of a field; a query whose field is a list counts in each of its values.

    Raises:
        ConfigError: no query has the field.
    """
    groups = {query_id: tuple(dict.fromkeys(labels_of(query.fields.get(name)))) for query_id, query in queries.items()}
    labels = {label for found in groups.values() for label in found}
    if not labels:
        known = ", ".join(sorted({field for query in queries.values() for field in query.fields})) or "none"
        raise ConfigError(f'no query has a field "{name}" by which results could be told apart; the fields are: {known}. Name one of them, or leave it out')
    return Facet(name, tuple(sorted(labels, key=_number_or_text)), groups)


def content_words(text: str, language: str) -> frozenset[str]:
    """The stems of a text's words without stop words; other than BM25's, the English ones include question words, pronouns and auxiliaries."""
    words = re.findall(r"(?u)\b\w\w+\b", text.lower())
    stop_words, stemmer = _language(language)
    return frozenset(stemmer.stemWords([word for word in words if word not in stop_words]))


def _facet(name: str, labels: Iterable[str], groups: Mapping[str, str], note: str) -> Facet:
    """A facet with a group for each query, without labels that no query has."""
    used = set(groups.values())
    return Facet(name, tuple(label for label in labels if label in used), {query_id: (label,) for query_id, label in groups.items()}, note)


def _conversations(queries: Mapping[str, Query]) -> list[list[Query]]:
    """The queries of each conversation, the earliest first; those without a conversation one by one."""
    found: dict[tuple[str, str], list[Query]] = {}
    for query in queries.values():
        found.setdefault((query.conversation, "" if query.conversation else query.query_id), []).append(query)
    return [sorted(conversation, key=lambda query: len(query.turns)) for conversation in found.values()]


def _topic_of(query: Query, earlier: Sequence[Query], qrels: Qrels) -> tuple[str, str]:
    """Switch or continuation, or "" where nothing tells, and what told it."""
    told = query.fields.get("topic_switch")
    if isinstance(told, bool):
        return SWITCH if told else CONTINUATION, 'the field "topic_switch"'
    topics = [other.fields["topic"] for other in earlier if other.fields.get("topic") is not None]
    if query.fields.get("topic") is not None and topics:
        return SWITCH if query.fields["topic"] != topics[-1] else CONTINUATION, 'the field "topic" of a turn and the one before it'
    now, before = relevant_to(qrels, query.query_id), {doc_id for other in earlier for doc_id in relevant_to(qrels, other.query_id)}
    if not now or not before:
        return "", ""
    return CONTINUATION if now & before else SWITCH, "whether a turn shares a relevant document with the earlier ones of its conversation"


def relevant_to(qrels: Qrels, query_id: str) -> set[str]:
    """The documents that are relevant to a query."""
    return {doc_id for doc_id, grade in qrels.get(query_id, {}).items() if grade > 0}


def labels_of(value: Any) -> list[str]:
    """The groups that a field's value counts in; a list counts in each of its values."""
    if value is None or value == "":
        return []
    if isinstance(value, list | tuple):
        return [label for one in value for label in labels_of(one)]
    return [("yes" if value else "no") if isinstance(value, bool) else str(value)]


def _number_or_text(label: str) -> tuple[float, str]:
    """Numbers stand by their size and before words."""
    try:
        return float(label), label
    except ValueError:
        return float("inf"), label


@functools.cache
def _language(language: str) -> tuple[frozenset[str], Any]:
    import Stemmer
    from bm25s import stopwords

    name = "EN_PLUS" if language == "english" else language.upper()
    return frozenset(getattr(stopwords, f"STOPWORDS_{name}", ())), Stemmer.Stemmer(language)
