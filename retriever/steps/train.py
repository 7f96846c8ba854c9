"""What happens in the train step: samples from the target's scores, the trainer's loop, a stock folder at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.candidates import pair_scores
from retriever.collection import Collection
from retriever.encodings import DocumentEncodings, document_identity
from retriever.errors import ConfigError
from retriever.eval.measures import evaluate
from retriever.files import write_json
from retriever.progress import Reporter
from retriever.reinforced.shards import ReinforcedDataset
from retriever.runs import Run
from retriever.scores.calibration import relevant_pairs
from retriever.scores.store import TeacherScores
from retriever.settings.training import TrainingSettings
from retriever.students._identity import document_fingerprint
from retriever.training.frozen import CacheProgress
from retriever.training.memory import with_memory_explained
from retriever.training.reinforced_batches import make_reinforced_samples
from retriever.training.samples import TeacherVectors, TrainingSamples, make_samples
from retriever.training.sparsity import SparsityController
from retriever.training.sureness import scale_words
from retriever.training.trainer import train_student
from retriever.training.watcher import Supervision, TrainingProgress, Validate, best_point
from retriever.types import Qrels, Query
from retriever.workers.orders import Order
from retriever.workers.processes import trained_along


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What a student learns from.

    Attributes:
        settings: of the section [training].
        target: the chosen teacher's scores of the train queries' pairs, with their unit.
        queries: the train queries.
        qrels: their grades.
        train: ids of the queries that teach.
        held: ids of the queries that choose the checkpoint.
        pairs: candidates and positives in the candidates' order; the first of each held query are re-ranked to validate.
        collection: where the documents are.
        measure: what is validated.
        batch_size: texts encoded at a time.
        seed: of draws and dropout.
        vectors: of a teacher, for losses that compare vectors.
        unjudged: ids of further queries that teach, by the target's scores alone.
        quality: query id -> the probability that it teaches in an epoch; 1 for those that are left out.
        active: wanted active dimensions of a sparse student's queries and documents; None for queries that are looked up.
        document_encodings: the student's own of all documents, where only the encoding of queries is to learn.
        reinforced: a reinforced dataset, for the loss of that name.
    """

    settings: TrainingSettings
    target: TeacherScores
    queries: Mapping[str, Query]
    qrels: Qrels
    train: Sequence[str]
    held: Sequence[str]
    pairs: Run
    collection: Collection
    measure: str
    batch_size: int
    seed: int
    vectors: TeacherVectors | None = None
    unjudged: Sequence[str] = ()
    quality: Mapping[str, float] = dataclasses.field(default_factory=dict)
    active: tuple[float | None, float | None] | None = None
    document_encodings: DocumentEncodings | None = None
    reinforced: ReinforcedDataset | None = None


def as_retrieved(pairs: Run) -> TeacherScores:
    """The order in which pairs were retrieved in the place of a teacher's scores: negatives are drawn from its best, and no loss reads it."""
    return TeacherScores(pairs, "rank", "candidates", "candidates")


def teach_student(student: Any, lesson: Lesson, folder: Path, reporter: Reporter, name: str = "train") -> dict[str, Any]:
    """Trains a student and leaves `student`, a stock folder, and `curve.json` in `folder`; continues what a stop left there.

    What it would continue from (`steps.LEFTOVERS`) stays beside them until the step is done.

    Args:
        student: the starting checkpoint; its weights change.
        lesson: what it learns from.
        folder: the step's.
        reporter: where progress is told.
        name: what the bar is called.

    Returns:
        How many samples there were, and the validation before, at best and at which step.
    """
    stored = lesson.document_encodings
    if stored is not None:
        _check_encodings(stored, student)
        lesson = dataclasses.replace(lesson, active=lesson.active and (lesson.active[0], None))  # documents keep those that they have
    before = None if stored is None else document_fingerprint(student.model)
    samples, together = _reinforced(lesson, lesson.reinforced, folder, reporter, name) if lesson.reinforced else _lists(lesson, folder, reporter, name)
    steps = -(-len(samples) // lesson.settings.batch_size)
    sparsity = SparsityController(*lesson.active, warmup=steps // 3) if lesson.active else None
    with together, reporter.bar(f"training ({name})", steps) as advance:
        told = _Told(reporter, advance)
        advice = f"index.batch_size = {max(1, lesson.batch_size // 2)}, or student.max_length"
        validate = with_memory_explained(_validation(student, lesson, sparsity), "validation", advice)
        curve = train_student(student.model, samples, lesson.collection, lesson.settings, folder, lesson.seed, Supervision(validate, told.tell, sparsity))
    if told.stopped:
        reporter.say(f"{name}: ended at step {told.step:,} of {steps:,}: {lesson.settings.patience} validations without a gain")
    if before and document_fingerprint(student.model) != before:
        raise RuntimeError(f"{name}: training has changed how documents are encoded")
    validation = best_validation(curve)
    if "scale" in validation and hasattr(student, "logit_scale"):
        student.logit_scale = validation["scale"]
    student.save(folder / "student")
    write_json(folder / "curve.json", curve)
    return {"samples": len(samples), "validation": validation}


def _lists(lesson: Lesson, folder: Path, reporter: Reporter, name: str) -> tuple[TrainingSamples, contextlib.AbstractContextManager[None]]:
    """Lists of the target's candidates in training order, and the block within which other processes train along."""
    queries = {query_id: lesson.queries[query_id] for query_id in (*lesson.train, *lesson.unjudged)}
    generator = np.random.default_rng(lesson.seed)
    samples = make_samples(lesson.target, queries, lesson.qrels, lesson.collection, lesson.settings, generator, lesson.quality, set(lesson.unjudged))
    samples = dataclasses.replace(samples, encodings=lesson.document_encodings)
    unjudged = f" ({len(lesson.unjudged):,} unjudged)" if lesson.unjudged else ""
    reporter.say(f"{name}: {len(queries):,} queries{unjudged}, {len(samples):,} lists of {lesson.settings.documents_per_query} documents")
    if words := scale_words(lesson.settings, samples):
        reporter.say(f"{name}: {words}")
    order = Order(samples, lesson.settings, folder, lesson.seed, lesson.active)
    return dataclasses.replace(samples, vectors=lesson.vectors), trained_along(order)


def _reinforced(lesson: Lesson, dataset: ReinforcedDataset, folder: Path, reporter: Reporter, name: str) -> tuple[Any, contextlib.AbstractContextManager[None]]:
    """Augmented images with captions in training order, and the block within which other processes train along."""
    generator = np.random.default_rng(lesson.seed)
    samples: Any = make_reinforced_samples(dataset, lesson.queries, lesson.qrels, lesson.held, lesson.collection, lesson.settings.epochs, generator)
    images = len(samples) // lesson.settings.epochs
    reporter.say(f"{name}: {images:,} images, {len(samples):,} draws of an augmented one with its captions")
    return samples, trained_along(Order(samples, lesson.settings, folder, lesson.seed, lesson.active))


def _check_encodings(encodings: DocumentEncodings, student: Any) -> None:
    """Sees to it that encodings are what a student makes of documents.

    Raises:
        ConfigError: they are another's.
    """
    own = document_identity(student)
    if encodings.encoder != own:
        raise ConfigError(f"{encodings.folder}: holds what {encodings.encoder} makes of documents, and the student encodes them as {own} does")


def best_validation(curve: list[dict[str, float]]) -> dict[str, float]:
    """The step that validated best, with its value, the untrained model's, and the scale where one was learned."""
    best, first = best_point(curve), next(point for point in curve if "validation" in point)
    scale = {"scale": best["scale"]} if "scale" in best else {}
    return {"step": best["step"], "value": best["validation"], "before": first["validation"], **scale}


def read_curve(folder: Path) -> list[dict[str, float]]:
    """The curve that a train step left."""
    curve: list[dict[str, float]] = json.loads((folder / "curve.json").read_text(encoding="utf-8"))
    return curve


class _Told:
    """Turns the trainer's steps into a bar that does not start over after a resume."""

    def __init__(self, reporter: Reporter, advance: Callable[[int], None]) -> None:
        self.reporter = reporter
        self.advance = advance
        self.step = 0
        self.stopped = False

    def tell(self, at: TrainingProgress) -> None:
        if at.cached:
            self._tell_cached(at.cached)
            return
        self.advance((at.steps if at.stopped else at.step) - self.step)  # what patience saves is done too
        self.step = at.step
        self.stopped = at.stopped
        loss = "" if at.loss is None else f"loss {at.loss:.3f}  "
        self.reporter.update(f"{loss}held-out {at.validation:.4f}" if at.validation is not None else loss)

    def _tell_cached(self, at: CacheProgress) -> None:
        size = f"{at.bytes / 1e6:,.0f} MB"
        self.reporter.update(f"frozen layers: {at.done:,} of {at.texts:,} texts  {size}")
        if at.done == at.texts:
            self.reporter.say(f"frozen layers: {at.texts:,} texts went through once; what they became takes {size} of disk until training is done")


def _validation(student: Any, lesson: Lesson, sparsity: SparsityController | None) -> Validate:
    """The student's measure on the held-out train queries, re-ranking their candidates and positives; of a sparse one its active dimensions too."""
    qrels = {query_id: lesson.qrels[query_id] for query_id in lesson.held}
    pool = _pool(lesson.pairs.select(lesson.held), qrels, lesson.settings.validation_depth)

    def quality(scores: NDArray[np.float32]) -> float:
        return evaluate(pool.with_scores("validation", scores), qrels, [lesson.measure]).means[lesson.measure]

    if not hasattr(student, "encode_queries"):
        return lambda: {"validation": quality(pair_scores(student, pool, lesson.queries, lesson.collection))}
    rows, places = np.unique(lesson.collection.rows_of(pool.doc_ids), return_inverse=True)
    stored = None if lesson.document_encodings is None else lesson.document_encodings.rows(rows)
    documents = lesson.collection.documents_by_row(rows) if stored is None else []
    asked = [lesson.queries[query_id] for query_id in lesson.held]

    def validate() -> dict[str, float]:
        queries, encoded = student.encode_queries(asked), student.encode_documents(documents) if stored is None else stored
        found = {"validation": quality(student.score(queries[pool.query_numbers], encoded[places]))}
        if sparsity and lesson.active:
            active = float(queries.counts.mean()), float(encoded.counts.mean())
            sparsity.calibrate(*active)
            found |= {"active_queries": active[0], "active_documents": active[1], "excess": excess(active, lesson.active)}
        return found

    return validate


def excess(active: Sequence[float], wanted: Sequence[float | None]) -> float:
    """By how much the larger of the ratios of active to wanted dimensions, or the other way round, is above a tenth; its logarithm."""
    ratios = [abs(math.log(max(found, 0.1) / target)) for found, target in zip(active, wanted, strict=True) if target]
    return max(0.0, max(ratios, default=0.0) - math.log(1.1))


def _pool(pairs: Run, qrels: Mapping[str, Mapping[str, int]], depth: int) -> Run:
    """The best `depth` candidates of each query and all its positives."""
    ranks = np.arange(pairs.n_pairs) - np.repeat(pairs.offsets[:-1], pairs.counts)
    return pairs.keep((ranks < depth) | relevant_pairs(pairs, qrels))
