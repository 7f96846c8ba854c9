"""Training the student of an experiment: in one round, or in several, where what each student finds teaches the next one.

Hard negatives that the student itself retrieves are what its later training lacks most (Xiong et al. 2021, arXiv:2007.00808).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retriever.candidates import index_run, reciprocal_rank_fusion, with_positives
from retriever.conversations.reading import ConversationReader
from retriever.encodings import document_identity
from retriever.errors import ConfigError
from retriever.files import fingerprint
from retriever.generation.step import query_quality
from retriever.plugins import load_kind
from retriever.queries import reading_input
from retriever.reinforced.shards import ReinforcedDataset
from retriever.reinforced.step import reinforce
from retriever.runs import Run
from retriever.scores.store import TeacherScores
from retriever.settings.student import SparseSettings
from retriever.settings.teacher import EmbeddingSettings
from retriever.settings.training import TrainingSettings
from retriever.steps.cascade import stored_scores
from retriever.steps.ensemble import check_target_units, target_units
from retriever.steps.score import score_pairs_of
from retriever.steps.step import Done
from retriever.steps.train import Lesson, as_retrieved, teach_student
from retriever.training.families import check_losses
from retriever.training.loss_table import LOSS_TABLE
from retriever.training.momentum import check_queue
from retriever.training.reinforced_batches import is_reinforced
from retriever.training.samples import TeacherVectors

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class Start:
    """What a round starts from: the student's identity, and how a fresh one is loaded, for training changes the weights."""

    identity: str
    load: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Round:
    """What one round has that the experiment's file does not say.

    Attributes:
        start: what it trains.
        pairs: of the train queries.
        scores: the target's of them, or their places as they were retrieved.
        teacher: whether they are the target's.
        unjudged: ids of queries without judgements that teach, too.
    """

    start: Start
    pairs: Run
    scores: TeacherScores
    teacher: bool
    unjudged: Sequence[str]


def train_in_rounds(pipeline: Pipeline, name: str, training: TrainingSettings, teacher: bool, unjudged: Sequence[str]) -> Done:
    """The train step of the last round; those of the rounds before it are done first.

    Args:
        pipeline: the experiment.
        name: of the last step.
        training: the experiment's own settings, or those of another training that it is held against.
        teacher: whether the target orders the documents from which negatives are drawn and leaves out those that may be relevant; otherwise
            they come in the order of retrieval and all that are unjudged are negatives, as they would for someone without a teacher.
        unjudged: ids of queries without judgements that teach, too; none without a teacher.

    Raises:
        ConfigError: the student lacks what a loss compares, or a loss cannot learn from the target; nothing was scored.
    """
    _ = pipeline.held_out  # train queries must be there before their documents are encoded
    check_losses(pipeline.start.model, {loss: LOSS_TABLE[loss] for loss, weight in training.losses.items() if weight})
    check_queue(pipeline.start.model, training)
    vectors_from(pipeline, training)
    is_reinforced(training)
    check_target_units(pipeline.experiment, training, target_units(pipeline.experiment, pipeline.identities))
    check_target_units(pipeline.experiment, training, pipeline.target.units, pipeline.target.name)
    pairs = pipeline.pairs("train")
    scores = pipeline.target.scores("train") if teacher else as_retrieved(pairs)
    training = training if teacher else training.model_copy(update={"false_negatives": "keep"})
    start = Start(pipeline.start.identity, lambda: pipeline.load_student(pipeline.experiment.student))
    for number in range(1, training.rounds):
        done = train_once(pipeline, f"{name}-{number}", training, Round(start, pairs, scores, teacher, unjudged))
        load = functools.partial(pipeline.open_student, done.folder / "student")
        student = load()
        pairs = mined_pairs(pipeline, f"mine-{name}-{number}", student, pairs)
        scores = target_of(pipeline, pairs) if teacher else as_retrieved(pairs)
        start = Start(student.identity, load)
    return train_once(pipeline, name, training, Round(start, pairs, scores, teacher, unjudged))


def train_once(pipeline: Pipeline, name: str, training: TrainingSettings, of_round: Round) -> Done:
    """The train step of one round, under that name."""
    train, held = pipeline.held_out
    lesson = Lesson(
        settings=training,
        target=of_round.scores,
        queries=pipeline.student_queries("train"),
        qrels=pipeline.qrels("train"),
        train=train,
        held=held,
        pairs=of_round.pairs,
        collection=pipeline.collection,
        measure=pipeline.experiment.evaluation.measures[0],
        batch_size=pipeline.experiment.index.batch_size,
        seed=pipeline.experiment.seed,
        vectors=teacher_vectors(pipeline, training),
        unjudged=of_round.unjudged,
        quality=query_quality(pipeline),
        active=wanted_dimensions(pipeline),
        reinforced=reinforced_dataset(pipeline, training),
    )
    target = lesson.target.run if lesson.unjudged else pipeline.judged(lesson.target.run)
    judgements = pipeline.lessons if lesson.unjudged else pipeline.judgements
    inputs = {"start": of_round.start.identity, "target": target.fingerprint, "collection": pipeline.collection.fingerprint}
    unjudged = [list(lesson.unjudged)] if lesson.unjudged else []
    inputs |= {"queries": fingerprint([train, held, *unjudged]), "judgements": judgements, "measure": lesson.measure}
    inputs |= reading_input(pipeline)
    inputs |= vectors_input(pipeline, training, lesson.vectors) if lesson.vectors else {}
    inputs |= {"reinforced dataset": lesson.reinforced.fingerprint} if lesson.reinforced else {}
    inputs |= {"quality of queries": fingerprint(dict(lesson.quality))} if lesson.quality else {}
    inputs |= {"active dimensions": fingerprint(list(lesson.active))} if lesson.active else {}

    towers = [tower for tower in ("frozen_image", "frozen_text") if getattr(pipeline.experiment.student, tower, False)]
    inputs |= {"towers": ", ".join(towers)} if towers else {}
    frozen = pipeline.experiment.student.frozen_documents
    inputs |= {"frozen documents": document_identity(pipeline.start)} if frozen else {}

    def work(folder: Path) -> dict[str, Any]:
        reasons = {"reason": pipeline.target.reason, "held_out": pipeline.target.held_out} if of_round.teacher else {}
        student = of_round.start.load()
        taught = dataclasses.replace(lesson, document_encodings=pipeline.encodings(student, "start") if frozen else None)
        return {"target": lesson.target.name, "unit": lesson.target.unit, **reasons, **teach_student(student, taught, folder, pipeline.reporter, name)}

    return pipeline.step(name, inputs, training.model_dump(mode="json"), work)


def reinforced_dataset(pipeline: Pipeline, training: TrainingSettings) -> ReinforcedDataset | None:
    """The reinforced dataset that training learns from: the one that is named, or the experiment's own; None where no loss reads one."""
    if not is_reinforced(training):
        return None
    if training.reinforced:
        return ReinforcedDataset(training.reinforced)
    return pipeline.open_step(lambda: reinforce(pipeline), ReinforcedDataset)[1]


def wanted_dimensions(pipeline: Pipeline) -> tuple[float | None, float] | None:
    """Active dimensions of a sparse student's queries and documents; queries that are looked up have as many as they have words."""
    student = pipeline.experiment.student
    if not isinstance(student, SparseSettings):
        return None
    return None if student.inference_free_queries else student.query_dimensions, student.document_dimensions


def vectors_from(pipeline: Pipeline, training: TrainingSettings) -> str | None:
    """The name of the teacher whose vectors a loss compares with; None where none does.

    Raises:
        ConfigError: no teacher has any.
    """
    comparing = [name for name, weight in training.losses.items() if weight and LOSS_TABLE[name].needs_teacher_vectors]
    embedding = [one for one in pipeline.experiment.teacher if isinstance(one, EmbeddingSettings) and one.family in ("dense", "image_text")]
    dense = [one.label for one in embedding if not (one.train and one.train.folds)]
    name = training.vectors_from or next(iter(dense), None)
    if comparing and name not in dense:
        found = f'"{name}" has none' if name else "none of the teachers has any"
        if len(dense) < len(embedding):
            found += " (the models of a teacher with train.folds have vectors of their own)"
        raise ConfigError(f'training.losses: {comparing[0]} compares with a teacher\'s vectors, and {found}. Add a [[teacher]] of kind = "embedding"')
    return name if comparing else None


def teacher_vectors(pipeline: Pipeline, training: TrainingSettings) -> TeacherVectors | None:
    """A teacher's vectors of the train queries and all documents, where a loss compares vectors."""
    name = vectors_from(pipeline, training) or ""
    settings = pipeline.taught.get(name)
    if not isinstance(settings, EmbeddingSettings):
        return None
    encoder, documents = pipeline.encoder_of(settings)
    queries = ConversationReader().read_all(pipeline.queries_of(name, "train"))  # the student would read on in the turns that "last" keeps
    return TeacherVectors(dict(zip(queries, encoder.encode_queries(list(queries.values())), strict=True)), documents)


def vectors_input(pipeline: Pipeline, training: TrainingSettings, vectors: TeacherVectors) -> dict[str, str]:
    """Who encoded a teacher's vectors, and what it read where its identity says so."""
    reads = pipeline.identities[str(vectors_from(pipeline, training))].settings.get("reads")
    return {"teacher's vectors": vectors.documents.encoder} | ({"read by that teacher": str(reads)} if reads else {})


def mined_pairs(pipeline: Pipeline, name: str, student: Any, before: Run) -> Run:
    """The train queries' pairs with what a student retrieves added, as its own step.

    Args:
        pipeline: the experiment.
        name: the step's.
        student: what searches.
        before: the pairs so far; none of them is left out.
    """
    depth, queries, collection = pipeline.experiment.candidates.depth, pipeline.student_queries("train"), pipeline.collection

    def work(folder: Path) -> None:
        engine = load_kind("indexing", pipeline.experiment.exact_index, name)
        found = pipeline.counted(index_run(name, student, engine.of_vectors(pipeline.encodings(student, name)), collection, queries, depth, pipeline.reporter))
        with_positives(reciprocal_rank_fusion(name, [before, found]), pipeline.qrels("train")).write_parquet(folder / "train.parquet")

    inputs = {"student": student.identity, "pairs": before.fingerprint, "judgements": pipeline.lessons}
    _, run = pipeline.open_step(lambda: pipeline.step(name, inputs, {"depth": depth}, work), lambda folder: Run.read_parquet(folder / "train.parquet"))
    added = run.n_pairs - before.n_pairs
    pipeline.reporter.say(f"{name}: {added:,} pairs that were not among the {before.n_pairs:,}")
    return run


def target_of(pipeline: Pipeline, pairs: Run) -> TeacherScores:
    """The chosen target's scores of some pairs of the train queries; those that are not in the store are scored now."""
    score_pairs_of(pipeline, {"train": pairs})
    return pipeline.target.scores_of(stored_scores(pipeline, "train", pairs), "train")
