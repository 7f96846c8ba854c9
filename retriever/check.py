"""What is in a collection, and what in it will spoil training or evaluation."""

from __future__ import annotations

import dataclasses
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from retriever.collection import Collection
from retriever.conversations.reading import is_user
from retriever.files import text_hash
from retriever.queries import plain_words, without_judgements
from retriever.types import Query

_EXAMPLES = 5
_QUANTILES = {"min": 0.0, "p5": 0.05, "p50": 0.5, "p95": 0.95, "max": 1.0}


def check_collection(collection: Collection, train: str = "train", test: str = "test") -> CollectionReport:
    """Counts what is in a collection and warns of what looks wrong; reads every document once.

    Args:
        collection: a prepared one; rules that a collection must keep were checked when it was prepared.
        train: the split whose queries teach.
        test: the split that is evaluated.
    """
    splits = {split: _split_report(collection, split) for split in collection.splits}
    duplicates, examples = _duplicates(collection)
    asked = (collection.queries(train), collection.queries(test)) if {train, test} <= set(splits) and train != test else ({}, {})
    overlap = _same_text(*asked)
    shared = _shared_conversations(*asked)
    report = CollectionReport(
        name=collection.name,
        fingerprint=collection.fingerprint,
        documents=len(collection),
        empty_texts=collection.counts["empty_texts"],
        duplicate_texts=duplicates,
        duplicate_examples=examples,
        text_words=_quantiles(collection),
        queries=collection.counts["queries"],
        splits=splits,
        unjudged_queries=len(without_judgements(collection)),
        overlapping_queries=len(overlap),
        overlap_examples=tuple(overlap[:_EXAMPLES]),
        conversations=_conversations(collection.all_queries()),
        shared_conversations=len(shared),
        shared_examples=tuple(shared[:_EXAMPLES]),
        warnings=(),
    )
    return dataclasses.replace(report, warnings=tuple(_warnings(report, train, test)))


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """What is in the qrels of one split.

    Attributes:
        queries: that have qrels.
        judged_pairs: of a query and a document.
        grades: grade -> pairs with it, lowest grade first.
        queries_without_relevant: whose grades are all 0 or below.
        dropped_pairs: left out because their document is absent.
    """

    queries: int
    judged_pairs: int
    grades: Mapping[int, int]
    queries_without_relevant: int
    dropped_pairs: int


@dataclasses.dataclass(frozen=True)
class ConversationsReport:
    """What is in the turns of conversations of all splits.

    Attributes:
        conversations: that have an id.
        turns: of them, and others that have earlier turns.
        turns_by_depth: depth -> turns at it; the first turn of the user has depth 1.
        median_depth: of the turns; the lower one of two.
        max_depth: of the turns.
        rewrites: rewriter -> turns with a rewrite by it.
        turns_without_conversation: that have earlier turns, but no id of a conversation.
    """

    conversations: int
    turns: int
    turns_by_depth: Mapping[int, int]
    median_depth: int
    max_depth: int
    rewrites: Mapping[str, int]
    turns_without_conversation: int


@dataclasses.dataclass(frozen=True)
class CollectionReport:
    """What `check_collection` found.

    Attributes:
        name: the collection's.
        fingerprint: of its documents.
        documents: N.
        empty_texts: documents without title, text and image.
        duplicate_texts: documents whose title and text an earlier one has, empty ones not counted.
        duplicate_examples: pairs of document ids with equal texts.
        text_words: min, p5, p50, p95 and max of the words (parted by white space) in title and text.
        queries: of all splits.
        splits: by the name of the split.
        unjudged_queries: that no split's qrels name.
        overlapping_queries: test queries whose text a train query has, apart from case and white space.
        overlap_examples: pairs of a train and a test query's id.
        conversations: what is in them; None where no query is a turn of one.
        shared_conversations: with turns in both train and test.
        shared_examples: ids of such conversations.
        warnings: one line each.
    """

    name: str
    fingerprint: str
    documents: int
    empty_texts: int
    duplicate_texts: int
    duplicate_examples: tuple[tuple[str, str], ...]
    text_words: Mapping[str, int]
    queries: int
    splits: Mapping[str, SplitReport]
    unjudged_queries: int
    overlapping_queries: int
    overlap_examples: tuple[tuple[str, str], ...]
    conversations: ConversationsReport | None
    shared_conversations: int
    shared_examples: tuple[str, ...]
    warnings: tuple[str, ...]


def _split_report(collection: Collection, split: str) -> SplitReport:
    qrels = collection.qrels(split)
    grades = Counter(grade for judged in qrels.values() for grade in judged.values())
    return SplitReport(
        queries=len(qrels),
        judged_pairs=grades.total(),
        grades=dict(sorted(grades.items())),
        queries_without_relevant=sum(max(judged.values()) <= 0 for judged in qrels.values()),
        dropped_pairs=collection.counts["dropped_pairs"][split],
    )


def _conversations(queries: Iterable[Query]) -> ConversationsReport | None:
    turns = [query for query in queries if query.conversation or query.turns]
    if not turns:
        return None
    depths = sorted(1 + sum(map(is_user, query.turns)) for query in turns)
    return ConversationsReport(
        conversations=len({query.conversation for query in turns} - {""}),
        turns=len(turns),
        turns_by_depth=dict(Counter(depths)),
        median_depth=depths[(len(depths) - 1) // 2],
        max_depth=depths[-1],
        rewrites=dict(sorted(Counter(rewriter for query in turns for rewriter in query.rewrites).items())),
        turns_without_conversation=sum(not query.conversation for query in turns),
    )


def _shared_conversations(train: Mapping[str, Query], test: Mapping[str, Query]) -> list[str]:
    """The ids of conversations that have turns in both, in the order of test."""
    learned = {query.conversation for query in train.values()} - {""}
    return list(dict.fromkeys(query.conversation for query in test.values() if query.conversation in learned))


def _duplicates(collection: Collection) -> tuple[int, tuple[tuple[str, str], ...]]:
    """How many documents repeat an earlier text, and the ids of the first few with the one they repeat."""
    variants: NDArray[np.uint64] = np.asarray(collection.variants)
    order = np.argsort(variants, kind="stable")
    order = order[variants[order] != text_hash("")]
    repeats = np.flatnonzero(variants[order[1:]] == variants[order[:-1]]) + 1
    later = np.sort(order[repeats])
    earlier = order[np.searchsorted(variants[order], variants[later[:_EXAMPLES]])]
    pairs = zip(collection.documents_by_row(earlier), collection.documents_by_row(later[:_EXAMPLES]), strict=True)
    return len(later), tuple((a.doc_id, b.doc_id) for a, b in pairs)


def _quantiles(collection: Collection) -> dict[str, int]:
    words = array("I", (len(document.full_text.split()) for document in collection.documents()))
    values = np.quantile(np.frombuffer(words, dtype=np.uintc), list(_QUANTILES.values()), method="inverted_cdf")
    return dict(zip(_QUANTILES, values.astype(int).tolist(), strict=True))


def _same_text(train: Mapping[str, Query], test: Mapping[str, Query]) -> list[tuple[str, str]]:
    seen = {plain_words(query): query_id for query_id, query in train.items()}
    return [(seen[plain_words(query)], query_id) for query_id, query in test.items() if plain_words(query) in seen]


def _warnings(report: CollectionReport, train: str, test: str) -> Iterable[str]:
    if report.empty_texts:
        yield f"documents without any text: {report.empty_texts}. They are never found: leave them out"
    if report.duplicate_texts:
        examples = _pairs(report.duplicate_examples)
        yield f"documents that repeat an earlier text: {report.duplicate_texts} ({examples}). Unless each is judged, a right answer counts as wrong"
    for name in sorted({train, test} - set(report.splits)):
        yield f'there are no qrels for the split "{name}"; there are: {", ".join(report.splits) or "none"}'
    for name, split in report.splits.items():
        yield from _split_warnings(name, split)
    if report.overlapping_queries:
        examples = _pairs(report.overlap_examples)
        yield f'queries of "{test}" whose text stands in "{train}" too: {report.overlapping_queries} ({examples}). They flatter the evaluation'
    if report.shared_conversations:
        found = f"{report.shared_conversations} ({', '.join(report.shared_examples)})"
        yield f'conversations with turns in both "{train}" and "{test}": {found}. They flatter the evaluation: keep each conversation in one split'
    if report.conversations and report.conversations.turns_without_conversation:
        missing = f"{report.conversations.turns_without_conversation} of {report.conversations.turns}"
        yield f"turns with earlier turns but without the id of their conversation: {missing}. Results cannot be told apart by conversation"


def _split_warnings(name: str, split: SplitReport) -> Iterable[str]:
    if not split.queries:
        yield f'the split "{name}" has no judged query'
    if split.queries_without_relevant:
        yield f'queries of "{name}" without a relevant document: {split.queries_without_relevant} of {split.queries}. Every run scores 0 on them'
    if split.dropped_pairs:
        yield f'judged pairs of "{name}" that were left out because their document is absent: {split.dropped_pairs}'


def _pairs(examples: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{a} = {b}" for a, b in examples[:3])
