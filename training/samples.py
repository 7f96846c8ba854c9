"""From stored scores to lists that teach: a positive and K - 1 of the teacher's candidates per query."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Container, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from retriever.collection import Collection
from retriever.encodings import DocumentEncodings
from retriever.errors import DataError
from retriever.runs import Run
from retriever.scores.store import TeacherScores
from retriever.settings.training import TrainingSettings
from retriever.types import Qrels, Query, Unit


@dataclasses.dataclass(frozen=True)
class TeacherVectors:
    """A teacher's vectors of what is trained on.

    Attributes:
        queries: query id -> float32 [E].
        documents: [N, E], of the collection.
    """

    queries: Mapping[str, NDArray[np.float32]]
    documents: DocumentEncodings


@dataclasses.dataclass(frozen=True)
class TrainingSamples:
    """S lists of K documents, aligned arrays.

    Attributes:
        queries: [S], the query of each sample; a query with several positives, or several epochs, has several samples.
        documents: int64 [S, K], rows of the collection; column 0 is the positive.
        teacher: float32 [S, K], the teacher's scores, in its own unit.
        mask: bool [S, K], false where a query has fewer than K documents.
        not_negative: per sample the sorted rows of documents that are, or may be, relevant to its query.
        unit: of the teacher's scores.
        vectors: of a teacher, for losses that compare vectors.
        encodings: the student's own of all documents, where only the encoding of queries learns; no document is read then.
        scored: per sample the sorted rows of all documents that the teacher scored for its query, without positives, and their
            scores; where a queue of past documents may bring them.
    """

    queries: Sequence[Query]
    documents: NDArray[np.int64]
    teacher: NDArray[np.float32]
    mask: NDArray[np.bool_]
    not_negative: Sequence[NDArray[np.int64]]
    unit: Unit
    vectors: TeacherVectors | None = None
    encodings: DocumentEncodings | None = None
    scored: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]] | None = None

    def __post_init__(self) -> None:
        if not len(self.queries) or self.documents.shape[1] < 2:
            raise DataError(f"training: {len(self.queries)} samples of {self.documents.shape[-1]} documents; at least one sample of two documents is needed")
        if not np.isfinite(self.teacher[self.mask]).all():
            raise DataError("training: a teacher's score is not a finite number")

    def __len__(self) -> int:
        return len(self.queries)


@dataclasses.dataclass(frozen=True)
class _Judged:
    """One query's candidates with the teacher's scores, best first, and what is known of them."""

    query: Query
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    positive: NDArray[np.bool_]
    not_negative: NDArray[np.int64]


def make_samples(
    target: TeacherScores,
    queries: Mapping[str, Query],
    qrels: Qrels,
    collection: Collection,
    settings: TrainingSettings,
    generator: np.random.Generator,
    quality: Mapping[str, float] | None = None,
    unjudged: Container[str] = (),
) -> TrainingSamples:
    """Lists for all epochs, in training order: each epoch is shuffled and draws its documents anew.

    Where queries search among different documents, such as captions among images and images among captions, a batch holds
    queries of one such direction alone (`in_batches`), for its documents are each other's negatives.

    Args:
        target: the teacher's scores of each train query's candidates, the positives among them.
        queries: the train queries; judged ones without a scored positive are left out.
        qrels: grades above 0 are positives; a document judged 0 is a negative whatever the teacher says, an unjudged one
            unless the teacher scores it above `highest_negative`.
        collection: where the documents are.
        settings: K, epochs, how deep negatives are drawn, the rule for false negatives.
        generator: decides order and draws.
        quality: query id -> the probability in [0, 1] that it teaches in an epoch; 1 for those that are left out.
        unjudged: ids of queries of which only the teacher says anything; its best document is their positive, where it tells documents apart.

    Raises:
        DataError: no query has a scored positive.
    """
    judged = [_judge(query, target.run, qrels.get(query_id, {}), collection, settings, query_id in unjudged) for query_id, query in queries.items()]
    lessons = [(item, int(place)) for item in judged for place in np.flatnonzero(item.positive)]
    if not lessons:
        raise DataError(f"training: none of the {len(queries)} train queries has a scored positive. Check the train qrels with: retriever check")
    epochs = [_one_epoch(lessons, quality or {}, generator) for _ in range(settings.epochs)]
    order = in_batches(epochs, [direction(item.query) for item, _ in lessons], settings.batch_size, generator)
    chosen = [lessons[number] for number in order]
    lists = [_draw(item, place, settings, generator) for item, place in chosen]
    return TrainingSamples(
        queries=[item.query for item, _ in chosen],
        documents=np.stack([rows for rows, _, _ in lists]),
        teacher=np.stack([scores for _, scores, _ in lists]),
        mask=np.stack([mask for _, _, mask in lists]),
        not_negative=[item.not_negative for item, _ in chosen],
        unit=target.unit,
        scored=_scored([item for item, _ in chosen]) if settings.queue else None,
    )


def _scored(judged: Sequence[_Judged]) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """The rows, sorted, and scores of each query's candidates that are no positives; samples of one query share theirs."""
    found: dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}
    for item in judged:
        if item.query.query_id not in found:
            order = np.argsort(item.rows[~item.positive])
            found[item.query.query_id] = item.rows[~item.positive][order], item.scores[~item.positive][order]
    return [found[item.query.query_id] for item in judged]


def _one_epoch(lessons: Sequence[tuple[_Judged, int]], quality: Mapping[str, float], generator: np.random.Generator) -> NDArray[np.int64]:
    """The numbers of an epoch's lessons in a random order; of those with less than full quality a share, but one at least of all."""
    order = generator.permutation(len(lessons))
    if not quality:
        return order
    chances = np.array([quality.get(lessons[number][0].query.query_id, 1.0) for number in order])
    kept = generator.random(len(order)) < chances
    kept[int(np.argmax(chances))] = True
    return order[kept]


def direction(query: Query) -> str:
    """What two queries must share to be in one batch: image or text, and what they may find."""
    return json.dumps([query.image is not None, dict(query.among)], sort_keys=True, default=str)


def in_batches(epochs: Sequence[NDArray[np.int64]], directions: Sequence[str], batch_size: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """The lessons of all epochs in an order whose every `batch_size` have one direction; as they come where all have the same.

    Within an epoch the batches of all directions are shuffled. What does not fill a batch waits for the next epoch. After the last
    one each direction but one has its last batch filled up with lessons of that epoch, or those that wait, which are then taught once more.

    Args:
        epochs: lesson numbers in the order of each epoch.
        directions: of each lesson.
        batch_size: lessons of a batch.
        generator: draws the order of batches, and what fills the last ones; it is asked only where there are several directions.
    """
    kinds = sorted(set(directions))
    if len(kinds) < 2:
        return np.concatenate(epochs)
    numbers = np.array([kinds.index(one) for one in directions])
    waiting = [np.zeros(0, dtype=np.int64) for _ in kinds]
    batches: list[NDArray[np.int64]] = []
    for order in epochs:
        whole = []
        for kind in range(len(kinds)):
            queue = np.concatenate([waiting[kind], order[numbers[order] == kind]])
            end = len(queue) // batch_size * batch_size
            whole += list(queue[:end].reshape(-1, batch_size))
            waiting[kind] = queue[end:]
        batches += [whole[place] for place in generator.permutation(len(whole))]
    rest = [kind for kind in range(len(kinds)) if len(waiting[kind])]
    for kind in rest[:-1]:
        others = np.unique(np.concatenate([waiting[kind], order[numbers[order] == kind]]))  # the last epoch's
        batches.append(np.concatenate([waiting[kind], generator.choice(others, size=batch_size - len(waiting[kind]))]))
    return np.concatenate([*batches, *(waiting[kind] for kind in rest[-1:])])


def hold_out(queries: Mapping[str, str], fraction: float, at_most: int, generator: np.random.Generator) -> tuple[list[str], list[str]]:
    """Train and held-out query ids: a random `fraction`, about `at_most`, at least one on either side.

    Args:
        queries: query id -> conversation, "" for a query that stands alone. A conversation is on one side as a whole: its turns are so alike
            that those which teach would tell on those held out.
        fraction: of the queries, held out.
        at_most: so many, but for the rest of the last conversation.
        generator: draws.

    Raises:
        DataError: there are fewer than two queries or conversations.
    """
    together: dict[str, list[str]] = {}
    for query_id in sorted(queries):
        conversation = queries[query_id]
        together.setdefault(f"conversation {conversation}" if conversation else query_id, []).append(query_id)
    if len(together) < 2:
        raise DataError(f"training: {len(together)} train queries or conversations; at least 2 are needed, one of them to pick the checkpoint")
    names = sorted(together)
    generator.shuffle(names)
    wanted = min(at_most, max(1, round(fraction * len(queries))))
    held: list[str] = []
    while len(names) > 1 and len(held) < wanted:
        held += together[names.pop(0)]
    return [query_id for name in names for query_id in together[name]], held


def _judge(query: Query, target: Run, grades: Mapping[str, int], collection: Collection, settings: TrainingSettings, alone: bool) -> _Judged:
    """What is known of a query; `alone` says that nobody but the teacher knows anything."""
    ranked = target[query.query_id]
    doc_ids = [doc_id for doc_id, _ in ranked]
    scores = np.array([score for _, score in ranked], dtype=np.float32)
    rows = collection.rows_of(doc_ids)
    positive = np.array([grades.get(doc_id, 0) > 0 for doc_id in doc_ids], dtype=np.bool_)
    if alone:
        positive[:1] = len(scores) > 1 and scores[0] > scores[-1]  # best first; where all are alike, the teacher says nothing of the query
    relevant = np.union1d(rows[positive], collection.rows_of([doc_id for doc_id, grade in grades.items() if grade > 0]))
    unjudged = np.array([doc_id not in grades for doc_id in doc_ids], dtype=np.bool_)
    suspected = rows[unjudged & (scores > highest_negative(scores[positive], settings))]
    return _Judged(query, rows, scores, positive, np.unique(np.concatenate([relevant, suspected])))


def highest_negative(positives: NDArray[np.float32], settings: TrainingSettings) -> float:
    """The score above which an unjudged document may be relevant, by the rule for false negatives.

    Args:
        positives: the teacher's scores of a query's positives; without any, only a threshold makes suspects.
        settings: the rule and its margin. The relative margin is a share of the positive's distance from 0, so that it
            points downwards for negative scores too.
    """
    rule, margin = settings.false_negatives, settings.false_negative_margin
    if rule == "threshold":
        return margin
    if rule == "keep" or not len(positives):
        return float("inf")
    lowest = float(positives.min())
    return lowest - (margin * abs(lowest) if rule == "relative" else margin)


def stratified(count: int, size: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """`size` of `count` places: one at random from each of as many equal stretches, so that easy and hard ones are among them."""
    edges = np.arange(size + 1, dtype=np.int64) * count // max(size, 1)
    return generator.integers(edges[:-1], edges[1:])


def _draw(
    item: _Judged, place: int, settings: TrainingSettings, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
    """The positive at `place` and up to K - 1 documents drawn from the teacher's best that are not positives, [K] each."""
    size = settings.documents_per_query
    others = np.flatnonzero(~item.positive)[: settings.negative_depth]
    count = min(size - 1, len(others))
    stretches = settings.sampling == "stratified"
    drawn = others[stratified(len(others), count, generator)] if stretches else np.sort(generator.choice(others, size=count, replace=False))
    chosen = np.concatenate([[place], drawn]).astype(np.int64)
    rows, scores, mask = np.full(size, item.rows[place]), np.zeros(size, dtype=np.float32), np.zeros(size, dtype=np.bool_)
    rows[: len(chosen)], scores[: len(chosen)], mask[: len(chosen)] = item.rows[chosen], item.scores[chosen], True
    if settings.positive_score == "best":
        scores[0] = scores[: len(chosen)].max()
    return rows, scores, mask
