"""Teachers with a `train` table: taught on the train qrels first, each as a step of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retriever.files import fingerprint
from retriever.models.names import ModelFolder, find_model
from retriever.plugins import load_kind
from retriever.progress import bar_of_steps
from retriever.settings.student import DenseSettings
from retriever.settings.teacher import (
    CrossEncoderSettings,
    EmbeddingSettings,
    EncoderTeachingSettings,
    FusionSettings,
    ModelTeacherSettings,
    TeacherSettings,
    TeachingSettings,
)
from retriever.settings.training import TrainingSettings
from retriever.steps.cross_fitting import cross_fitted, fold_settings, parts_to_score, teach_without_each
from retriever.steps.fusion import taught_fusion
from retriever.steps.train import Lesson, as_retrieved, teach_student
from retriever.training.cross_encoder import teach_cross_encoder, training_lists
from retriever.workers.processes import refuse_several

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline

OfOneCheckpoint = CrossEncoderSettings | EmbeddingSettings
"""What is taught from one checkpoint; a fusion model is made of two."""


def teach(pipeline: Pipeline, settings: TeacherSettings) -> TeacherSettings:
    """The settings of a teacher that is ready to score: of the taught model where there is a `train` table, else the same."""
    if isinstance(settings, FusionSettings) and settings.train:
        return taught_fusion(pipeline, settings, settings.train)
    if not isinstance(settings, CrossEncoderSettings | EmbeddingSettings) or settings.train is None:
        return settings
    teaching = settings.train
    name = settings.model if settings.model not in (None, "student") else pipeline.experiment.student.model
    start = find_model(str(name), settings.revision, f"teacher {settings.label}")
    inputs = {"model": start.identity, "candidates": pipeline.judged(pipeline.candidates["train"]).fingerprint, "judgements": pipeline.judgements}
    inputs |= {"reads": fingerprint(_texts(pipeline, settings))} if settings.reads else {}
    if isinstance(settings, EmbeddingSettings):
        training, measure = pipeline.experiment.training, pipeline.experiment.evaluation.measures[0]
        decides = [measure, training.validation_depth, training.precision, settings.max_length]
        inputs |= {"queries": fingerprint(pipeline.held_out), "checkpoint": fingerprint(decides)}
    else:
        inputs |= {"queries": fingerprint(pipeline.held_out[0])}

    parts = parts_to_score(pipeline, settings.label, teaching.folds)

    def work(folder: Path) -> dict[str, Any]:
        refuse_several(f"teaching {settings.label}", "retriever teach")
        lessons = pipeline.held_out[0]
        if not parts:
            return _one_model(pipeline, settings, start, lessons, folder)

        def without(number: int, unseen: Sequence[str], begun: Path) -> None:
            hidden, own = set(unseen), settings.model_copy(update=fold_settings(settings.label, number, begun))
            _one_model(pipeline, own, start, [query_id for query_id in lessons if query_id not in hidden], begun)

        teach_without_each(parts, folder, without)
        return {"folds": [len(part) for part in parts]}

    done = pipeline.step(f"teach-{settings.label}", inputs, teaching.model_dump(mode="json", exclude_none=True), work)
    taught = settings.model_copy(update={"name": settings.label, "model": str(done.folder / "model"), "revision": None, "train": None})
    return cross_fitted(taught, parts, done.folder) if parts else taught


def _one_model(pipeline: Pipeline, settings: OfOneCheckpoint, start: ModelFolder, lessons: Sequence[str], folder: Path) -> dict[str, Any]:
    """Leaves a model in `folder / "model"`, taught on some of the train queries."""
    if isinstance(settings, CrossEncoderSettings):
        return _cross_encoder(pipeline, settings, start, lessons, folder)
    return _bi_encoder(pipeline, settings, start, lessons, folder)


def _texts(pipeline: Pipeline, settings: TeacherSettings) -> dict[str, str]:
    """What a teacher reads of the train queries."""
    return {query_id: query.text for query_id, query in pipeline.queries("train", settings.reads).items()}


def teach_all(pipeline: Pipeline) -> dict[str, str]:
    """Name -> folder of the taught model, for every teacher of the experiment that has a `train` table."""
    taught = [teach(pipeline, one) for one in pipeline.experiment.teacher if getattr(one, "train", None)]
    return {settings.label: str(settings.model) for settings in taught if isinstance(settings, ModelTeacherSettings)}


def _cross_encoder(pipeline: Pipeline, settings: CrossEncoderSettings, start: ModelFolder, lessons: Sequence[str], folder: Path) -> dict[str, Any]:
    """A cross-encoder, taught on lists of a positive and mined negatives."""
    seed, label, queries = pipeline.experiment.seed, settings.label, pipeline.queries("train", settings.reads)
    teaching = settings.train or TeachingSettings()
    asked = {query_id: queries[query_id] for query_id in lessons}
    lists = training_lists(pipeline.candidates["train"], asked, pipeline.qrels("train"), pipeline.collection, teaching, np.random.default_rng(seed))
    with bar_of_steps(pipeline.reporter, f"teaching {label}") as progress:
        teach_cross_encoder(start, lists, teaching, folder, seed, progress)
    return {"lists": len(lists)}


def _bi_encoder(pipeline: Pipeline, settings: EmbeddingSettings, start: ModelFolder, lessons: Sequence[str], folder: Path) -> dict[str, Any]:
    """A bi-encoder, taught by the contrastive loss alone; the held-out queries pick its checkpoint.

    Its negatives are drawn from the best candidates, and none is taken for a false one: no teacher has scored them yet.
    """
    experiment, teaching = pipeline.experiment, settings.train or EncoderTeachingSettings()
    own = experiment.training.model_dump(include={"validation_fraction", "validation_queries", "validation_depth", "checkpoint_steps", "precision"})
    shared = teaching.model_dump(include={"epochs", "batch_size", "learning_rate", "max_length", "warmup", "frozen_layers"})
    training = TrainingSettings(documents_per_query=1 + teaching.negatives_per_positive, losses={"contrastive": 1.0}, false_negatives="keep", **own, **shared)
    student = load_kind("students", "dense", f"teacher {settings.label}").load(DenseSettings(model=str(start.folder), max_length=settings.max_length))
    lesson = Lesson(
        settings=training,
        target=as_retrieved(pipeline.pairs("train")),
        queries=pipeline.queries("train", settings.reads),
        qrels=pipeline.qrels("train"),
        train=lessons,
        held=pipeline.held_out[1],
        pairs=pipeline.pairs("train"),
        collection=pipeline.collection,
        measure=experiment.evaluation.measures[0],
        batch_size=settings.batch_size,
        seed=experiment.seed,
    )
    result = teach_student(student, lesson, folder, pipeline.reporter, f"teach-{settings.label}")
    (folder / "student").rename(folder / "model")
    return result
