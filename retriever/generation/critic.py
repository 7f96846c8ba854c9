"""The critic: which of the written queries are kept, each with the values that decided, and a quality in [0, 1].

Over-generate and filter after West et al. 2022 (symbolic knowledge distillation, arXiv:2110.07178); the round trip is the
consistency filter of Dai et al. 2023 (Promptagator, arXiv:2209.11755), where 1 was the rank and the retriever was trained.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from retriever.generation import rules
from retriever.near_duplicates import groups, similar_pairs
from retriever.runs import Run
from retriever.settings.generation import GenerationSettings
from retriever.types import Document, Query
from retriever.writing.shards import Answers
from retriever.writing.text import cleaned, is_refusal, words

GENERATED = "generated:"
"""How the id of a generated query begins."""

VERDICTS = ("kept", "empty", "refusal", "artefact", "too_short", "too_long", "copied", "round_trip", "teacher", "near_duplicate", "surplus")
"""In the order in which the rules are asked; the first that applies is the verdict."""


@dataclasses.dataclass(frozen=True)
class Criticised:
    """A written query and what the critic says of it.

    Attributes:
        doc_id: the document that it was written for.
        sample: its number among the document's.
        raw: what the generator wrote.
        text: the query in it.
        verdict: "kept" or the rule that dropped it.
        copied_share: of its words that are one run of the document's.
        ranks: retriever -> the document's rank, where it was found; empty where the words decided already.
        teacher_score: the teacher's raw score of the document.
        teacher_rank: its rank by the teacher among BM25's best.
        teacher_margin: that score minus the best other document's.
        quality: 1 / log2(1 + best rank); 0 before the round trip.
    """

    doc_id: str
    sample: int
    raw: str
    text: str
    verdict: str
    copied_share: float = 0.0
    ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    teacher_score: float | None = None
    teacher_rank: int | None = None
    teacher_margin: float | None = None
    quality: float = 0.0

    @property
    def query(self) -> Query:
        """The query under its id."""
        return Query(f"{GENERATED}{self.doc_id}:{self.sample}", self.text)

    def judged(self, verdict: str) -> Criticised:
        """The same with another verdict."""
        return dataclasses.replace(self, verdict=verdict)


def judge_words(doc_id: str, sample: int, raw: str, document: Document, settings: GenerationSettings) -> Criticised:
    """What the words alone say of a query; a title that is the query does not count as copied from."""
    text = cleaned(raw) if settings.method == "llm" else " ".join(raw.split())  # a document has no words around its own
    count = len(words(text))
    share = rules.copied_share(text, document.text if settings.method == "title" else document.full_text)
    failed = {
        "empty": not text,
        "refusal": is_refusal(text),
        "artefact": rules.has_artefact(text),
        "too_short": count < settings.shortest,
        "too_long": count > settings.longest,
        "copied": share > settings.copied_share,
    }
    return Criticised(doc_id, sample, raw, text, next((rule for rule, applies in failed.items() if applies), "kept"), share)


def judge_ranks(queries: Sequence[Criticised], runs: Mapping[str, Run], rank: int) -> list[Criticised]:
    """The queries after the round trip: one of the retrievers must have the document among its first `rank`.

    Args:
        queries: kept so far.
        runs: retriever -> its run of these queries.
        rank: the last rank that is good enough.
    """
    found = []
    for query in queries:
        ranks = {name: place for name, run in runs.items() if (place := rank_of(query.doc_id, run[query.query.query_id]))}
        best = min(ranks.values(), default=None)
        verdict = "kept" if best is not None and best <= rank else "round_trip"
        found.append(dataclasses.replace(query, ranks=ranks, quality=rules.quality(best), verdict=verdict))
    return found


def judge_scores(queries: Sequence[Criticised], scores: Run, teacher_rank: int) -> list[Criticised]:
    """The queries after a teacher scored each one's document among others: its rank must be `teacher_rank` at most."""
    found = []
    for query in queries:
        listed = scores[query.query.query_id]
        place = rank_of(query.doc_id, listed) or len(listed) + 1
        score = dict(listed)[query.doc_id]
        others = [value for doc_id, value in listed if doc_id != query.doc_id]
        margin = score - max(others) if others else None
        verdict = "kept" if place <= teacher_rank else "teacher"
        found.append(dataclasses.replace(query, teacher_score=score, teacher_rank=place, teacher_margin=margin, verdict=verdict))
    return found


def rank_of(doc_id: str, listed: Sequence[tuple[str, float]]) -> int | None:
    """The rank of a document in a list, 1 for the first; None where it is not in it."""
    return next((rank for rank, (other, _) in enumerate(listed, 1) if other == doc_id), None)


def drop_near_duplicates(queries: Sequence[Criticised], threshold: float) -> list[Criticised]:
    """The queries, the best one of each group of near-duplicates kept: groups are made by the Jaccard similarity of their words."""
    order = sorted(queries, key=lambda query: (-query.quality, query.doc_id, query.sample))
    first = groups(len(order), similar_pairs([frozenset(words(query.text)) for query in order], threshold))
    return [query if first[number] == number else query.judged("near_duplicate") for number, query in enumerate(order)]


def drop_surplus(queries: Sequence[Criticised], wanted: int) -> list[Criticised]:
    """The queries, so many of them kept: first the best one of each document, then the second ones; the better first."""
    best = sorted(queries, key=lambda query: (-query.quality, query.doc_id, query.sample))
    seen: Counter[str] = Counter()
    places: list[int] = []
    for query in best:
        places.append(seen[query.doc_id])
        seen[query.doc_id] += 1
    order = np.argsort(places, kind="stable")
    chosen = set(order[:wanted].tolist())
    return [query if number in chosen else query.judged("surplus") for number, query in enumerate(best)]


def criticise(
    answers: Answers,
    documents: Mapping[str, Document],
    settings: GenerationSettings,
    retrieve: Callable[[Mapping[str, Query]], Mapping[str, Run]],
    score: Callable[[Mapping[str, Query], Mapping[str, Mapping[str, int]]], Run] | None,
) -> list[Criticised]:
    """Every answer with its verdict, in the order of the answers; each rule is asked only of what the rules before it kept.

    Args:
        answers: what was written.
        documents: those that it was written for.
        settings: the section [generation].
        retrieve: queries -> retriever -> its run.
        score: queries and their qrels -> the teacher's scores of each one's document and others; None without a teacher.
    """
    found = [judge_words(doc_id, sample, raw, documents[doc_id], settings) for (doc_id, sample), raw in answers.items()]
    if kept := kept_of(found):
        found = _with(found, judge_ranks(kept, retrieve({one.query.query_id: one.query for one in kept}), settings.rank))
    if score and (kept := kept_of(found)):
        qrels = {one.query.query_id: {one.doc_id: 1} for one in kept}
        found = _with(found, judge_scores(kept, score({one.query.query_id: one.query for one in kept}, qrels), settings.teacher_rank))
    found = _with(found, drop_near_duplicates(kept_of(found), settings.near_duplicate))
    return _with(found, drop_surplus(kept_of(found), settings.queries))


def kept_of(queries: Sequence[Criticised]) -> list[Criticised]:
    """Those that are kept."""
    return [query for query in queries if query.verdict == "kept"]


def counts_of(queries: Sequence[Criticised]) -> dict[str, int]:
    """Verdict -> how many queries have it; all verdicts, in their order."""
    counts = Counter(query.verdict for query in queries)
    return {verdict: counts[verdict] for verdict in VERDICTS}


def _with(queries: Sequence[Criticised], changed: Sequence[Criticised]) -> list[Criticised]:
    new = {(query.doc_id, query.sample): query for query in changed}
    return [new.get((query.doc_id, query.sample), query) for query in queries]
