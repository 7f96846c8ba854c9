"""The systems that a report compares: BM25, the student before and after training, its teacher, and what else the file asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from retriever.candidates import bm25_run, hybrid_run, pair_scores
from retriever.conversations.reading import HUMAN, READINGS, ConversationReader, Reading, can_read
from retriever.eval.measures import parse_measure
from retriever.filters import conditions_from
from retriever.generation.step import query_quality
from retriever.pipeline import Pipeline
from retriever.progress import Reporter
from retriever.queries import reader_of
from retriever.runs import Run
from retriever.scopes import scope_of
from retriever.scores.scoring import CandidatePairs, score_shard
from retriever.search import SearchIndex
from retriever.settings.evaluation import EvaluationSettings
from retriever.stages import search
from retriever.steps.stages import stages_of
from retriever.steps.step import Done
from retriever.types import Query

NAMES = {"last": "last_turn", "user": "user_turns", "all": "all_turns"}
"""What a report calls the start that reads so; every other reading has its own name."""


@dataclasses.dataclass(frozen=True)
class System:
    """A way to answer queries: how to get its run, how to answer one query, what it keeps in memory or on disk.

    `answer` is given queries as the collection has them, with the turns before.
    """

    name: str
    description: str
    run: Callable[[], Run]
    answer: Callable[[Query], object]
    bytes: int | None
    asks_teacher: bool = False


def systems(pipeline: Pipeline) -> list[System]:
    """What the report compares, the student last but for stages; without words there is no BM25, alone or fused."""
    others = [_other(pipeline, name) for name in pipeline.experiment.trainings]
    if pipeline.reranks:
        found = [*_bm25(pipeline), _reranking(pipeline, "student_before", "the starting checkpoint", pipeline.start), _of_teacher(pipeline)]
        return [*found, *others, _reranking(pipeline, "student", "the distilled student", pipeline.student), *_of_stages(pipeline)]
    before = _of_student(pipeline, "student_before", "hybrid_before", "the starting checkpoint", pipeline.index_before)
    readings = [_reading(pipeline, reading) for reading in readings_of(pipeline, pipeline.conversations("test"))]
    after = _of_student(pipeline, "student", "hybrid", "the distilled student", pipeline.index)
    return [*_bm25(pipeline), *before, *readings, _of_teacher(pipeline), *others, *after, *_of_stages(pipeline)]


def readings_of(pipeline: Pipeline, queries: Mapping[str, Query]) -> tuple[Reading, ...]:
    """The readings of conversations under which the start is measured: those of the file, else the last turn, all turns and rewrites that are there."""
    asked = pipeline.experiment.evaluation.readings
    if asked is not None:
        return asked
    turns = [query for query in queries.values() if query.turns]
    if not turns:
        return ()
    names = sorted({name for query in turns for name in query.rewrites})
    rewrites = ["rewrite" if name == HUMAN else f"rewrite:{name}" for name in names]
    return ("last", "all", *(reading for reading in rewrites if can_read(reading, turns)))


def system_name(reading: Reading) -> str:
    """What a report calls the start that reads so."""
    return NAMES.get(reading, reading.replace(":", "_"))


def train_other(pipeline: Pipeline, name: str) -> Done:
    """The step that trains what the student is held against: by other losses, on the qrels alone (`contrastive`), on judged queries alone (`judged`).

    The last two take as many steps as the student, whom unjudged queries may teach beside the judged ones.
    """
    own = pipeline.experiment.training
    epochs = epochs_alone(pipeline) if name in ("contrastive", "judged") else own.epochs
    training = own.model_copy(update={"losses": pipeline.experiment.trainings[name], "epochs": epochs})
    return pipeline.train(f"train_{name}", training, teacher=name != "contrastive", unjudged=name != "judged")


def epochs_alone(pipeline: Pipeline) -> int:
    """Of the judged queries alone, for about as many steps as the experiment's epochs of all queries that teach make.

    A judged query has a list for each of its positives, an unjudged one has one, with the probability that its quality gives it.
    """
    qrels, quality = pipeline.qrels("train"), query_quality(pipeline)
    judged = sum(grade > 0 for query_id in pipeline.held_out[0] for grade in qrels[query_id].values())
    beside = sum(quality.get(query_id, 1.0) for query_id in pipeline.unjudged)
    return round(pipeline.experiment.training.epochs * (judged + beside) / judged)


def _other(pipeline: Pipeline, name: str) -> System:
    """It with its index, or re-ranking."""
    folder = train_other(pipeline, name).folder / "student"
    student, words = pipeline.open_student(folder), _training_words(pipeline, name)
    if pipeline.reranks:
        return _reranking(pipeline, name, words, student)
    return _indexed(pipeline, name, words, pipeline.index_of(f"index_{name}", student, folder))


def _training_words(pipeline: Pipeline, name: str) -> str:
    """What a report says of the training."""
    losses = pipeline.experiment.trainings[name]
    if name == "contrastive":
        return "the same training on qrels and retrieved negatives, without a teacher"
    if name == "judged":
        return "the same training on judged queries alone, in as many steps"
    return "the same training by " + " + ".join(f"{weight:g} {loss}" for loss, weight in losses.items() if weight)


def _bm25(pipeline: Pipeline) -> list[System]:
    if pipeline.collection.has_images:
        return []
    depth, bm25 = pipeline.experiment.evaluation.depth, pipeline.bm25
    reader = ConversationReader(pipeline.experiment.collection.conversation)
    return [
        System(
            "bm25",
            "BM25, no model",
            lambda: bm25_run("bm25", bm25, pipeline.collection, pipeline.queries("test"), depth, pipeline.reporter),
            lambda query: bm25.search(reader.text(query).text, depth, scope_of(pipeline.collection, query)),
            bm25.n_bytes,
        )
    ]


def _reading(pipeline: Pipeline, reading: Reading) -> System:
    """The starting checkpoint on queries that are read in another way than the student reads them."""
    index, depth, name = pipeline.index_before, pipeline.experiment.evaluation.depth, system_name(reading)
    reader = dataclasses.replace(reader_of(pipeline.start), reading=reading)
    return System(
        name,
        f"the starting checkpoint, which reads {READINGS.get(reading, f'the rewrites ({reading})')}",
        lambda: index.run(reader.read_all(pipeline.conversations("test")), depth, name, reporter=pipeline.reporter),
        lambda query: index.snapshot.search(index.encoder.encode_queries([reader.read(query)]), depth, conditions_from(query.among)),
        index.bytes,
    )


def _indexed(pipeline: Pipeline, name: str, what: str, index: SearchIndex) -> System:
    depth = pipeline.experiment.evaluation.depth
    return System(
        name,
        what,
        lambda: index.run(pipeline.student_queries("test"), depth, name, reporter=pipeline.reporter),
        lambda query: index.snapshot.search(index.encoder.encode_queries([query]), depth, conditions_from(query.among)),
        index.bytes,
    )


def _reranking(pipeline: Pipeline, name: str, what: str, student: Any) -> System:
    """A student that reads query and document together, on the candidates."""
    candidates, queries = pipeline.candidates["test"], pipeline.student_queries("test")
    return System(
        name,
        f"{what} re-ranking {pipeline.experiment.candidates.depth} candidates",
        lambda: pipeline.reranked(student).rename(name),
        lambda query: pair_scores(student, candidates.select([query.query_id]), queries, pipeline.collection),
        None,
    )


def _of_student(pipeline: Pipeline, name: str, hybrid: str, what: str, index: SearchIndex) -> list[System]:
    """A student alone, and fused with BM25."""
    alone = _indexed(pipeline, name, what, index)
    if pipeline.collection.has_images:
        return [alone]
    depth = fused_depth(pipeline.experiment.candidates.depth, pipeline.experiment.evaluation)
    encodings = pipeline.encodings(index.encoder, name)
    reader = ConversationReader(pipeline.experiment.collection.conversation)

    def fused(queries: Mapping[str, Query], reporter: Reporter | None = None) -> Run:
        return hybrid_run(pipeline.bm25, index.snapshot, encodings, pipeline.collection, queries, depth, reader, reporter).rename(hybrid)

    return [
        alone,
        System(
            hybrid,
            f"BM25 and {what}, the best {depth:,} of each fused by z-scores",
            lambda: fused(pipeline.conversations("test"), pipeline.reporter),
            lambda query: fused({query.query_id: query}),
            index.bytes + pipeline.bm25.n_bytes,
        ),
    ]


def fused_depth(candidates: int, settings: EvaluationSettings) -> int:
    """How many documents of BM25 and of a student are fused: as many as the candidates, or as the measures count where that is more.

    With fewer than a measure counts it would compare how deep runs are. A measure without a cutoff counts all that are kept.
    """
    counted = max(parse_measure(measure).cutoff or settings.depth for measure in settings.measures)
    return min(max(candidates, counted), settings.depth)


def _of_stages(pipeline: Pipeline) -> list[System]:
    """The search up to each stage: what it costs from the beginning, and what the stage gains."""
    stages = stages_of(pipeline)

    def up_to(number: int) -> System:
        def found(queries: Mapping[str, Query]) -> Run:
            return search(stages[:number], queries).rename(f"stage_{number}")

        kept = [ranker.bytes for ranker in {ranker.name: ranker for stage in stages[:number] for ranker in stage.rankers}.values()]
        words = "; then ".join(stage.name for stage in stages[:number])
        return System(
            f"stage_{number}",
            words,
            lambda: found(pipeline.conversations("test")),
            lambda query: found({query.query_id: query}),
            sum(one or 0 for one in kept),
            asks_teacher=any("teacher" in stage.by for stage in pipeline.experiment.stage),  # all are timed with the same queries
        )

    return [up_to(number) for number in range(1, len(stages) + 1)]


def _of_teacher(pipeline: Pipeline) -> System:
    """The chosen teacher re-ranking the candidates; its latency is that of scoring one query's candidates."""
    name = pipeline.target.name
    used = pipeline.teachers if name == "ensemble" else {name: pipeline.teachers[name]}
    candidates = pipeline.candidates["test"]
    asked = [
        (teacher, CandidatePairs.of(candidates, pipeline.queries_of(own, "test"), pipeline.collection, lists=teacher.identity.orders_lists))
        for own, teacher in used.items()
    ]
    place_of = {query_id: candidates.pairs_of(number) for number, query_id in enumerate(candidates)}

    def answer(query: Query) -> object:
        positions = np.arange(candidates.n_pairs)[place_of[query.query_id]]
        return [score_shard(teacher, pairs, positions) for teacher, pairs in asked] if len(positions) else None

    return System(
        "teacher",
        f"{name} re-ranking {pipeline.experiment.candidates.depth} candidates",
        lambda: pipeline.target.run("test").rename("teacher"),
        answer,
        None,
        asks_teacher=True,
    )
