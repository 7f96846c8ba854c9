"""Out of domain: an experiment's systems on collections that nothing was learned from."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from retriever.candidates import bm25_run, index_run
from retriever.collection import Collection
from retriever.collection_settings import TransferSettings
from retriever.conversation_facets import clusters_of
from retriever.conversations import ConversationReader
from retriever.errors import DataError
from retriever.eval.measures import evaluate, parse_measure
from retriever.eval.transfer import Transfer, transfer_of
from retriever.plugins import load_kind
from retriever.queries import read_queries, reader_of
from retriever.runs import Run
from retriever.systems import other_student, readings_of, system_name
from retriever.types import Query

if TYPE_CHECKING:
    from collections.abc import Mapping

    from retriever.pipeline import Pipeline

BASELINES = ("student_before", "bm25", "contrastive", "last_turn", "all_turns", "rewrite")
"""What the student is held against elsewhere."""


def collections_of(pipeline: Pipeline) -> list[Pipeline]:
    """The experiment on each of the other collections, in a folder of its own; only what needs no training is asked of it."""
    return [_there(pipeline, settings) for settings in pipeline.experiment.transfer]


def transfers_of(pipeline: Pipeline) -> list[Transfer]:
    """What the systems are worth on each of the other collections."""
    return [_measured(pipeline, there) for there in collections_of(pipeline)]


def _there(pipeline: Pipeline, settings: TransferSettings) -> Pipeline:
    own = settings.model_dump(include={"path", "format", "missing_documents", "test"})
    collection = pipeline.experiment.collection.model_copy(update={**own, "ir_datasets": None, "train": settings.test, "folds": None})
    changed = {"name": settings.label, "collection": collection, "generation": None, "transfer": ()}
    there = type(pipeline)(pipeline.experiment.model_copy(update=changed), pipeline.folder / "transfer", pipeline.reporter)
    there.encodings_folder = pipeline.encodings_folder
    return there


def asked_there(there: Pipeline) -> dict[str, Query]:
    """The queries of another collection's split.

    Raises:
        DataError: there are none.
    """
    split = there.experiment.collection.test
    if split not in there.documents.splits:
        listed = ", ".join(there.documents.splits) or "none"
        raise DataError(f'transfer {there.experiment.name}: there are no qrels for the split "{split}"; splits with qrels: {listed}')
    return there.documents.queries(split)


def _measured(pipeline: Pipeline, there: Pipeline) -> Transfer:
    queries, settings = asked_there(there), pipeline.experiment.evaluation
    split = there.experiment.collection.test
    qrels = there.documents.qrels(split)
    measures = [str(parse_measure(measure)) for measure in settings.measures]
    runs = _runs(pipeline, there, queries)
    evaluations = {name: evaluate(run, qrels, settings.measures) for name, run in runs.items()}
    pairs = [("student", name) for name in (*BASELINES, *settings.other_losses) if name in runs]
    return transfer_of(there.experiment.name, split, evaluations, pairs, measures, pipeline.experiment.seed, clusters_of(queries) or None)


def _runs(pipeline: Pipeline, there: Pipeline, queries: Mapping[str, Query]) -> dict[str, Run]:
    depth, collection = pipeline.experiment.evaluation.depth, there.documents
    lexical = read_queries(ConversationReader(pipeline.experiment.collection.conversation), queries)
    runs = {"bm25": bm25_run("bm25", there.bm25, collection, lexical, depth, pipeline.reporter)}
    reader = reader_of(pipeline.start)
    read = {"student_before": reader}
    read |= {system_name(reading): dataclasses.replace(reader, reading=reading) for reading in readings_of(pipeline, queries)}
    start = _index(there, pipeline.start, "student_before")
    for name, own in read.items():
        runs[name] = index_run(name, pipeline.start, start, collection, own.read_all(queries), depth)
    for name in pipeline.experiment.evaluation.trainings:
        runs[name] = _run(there, other_student(pipeline, name), name, collection, queries, depth)
    runs["student"] = _run(there, pipeline.student, "student", collection, queries, depth)
    return runs


def _run(there: Pipeline, student: Any, name: str, collection: Collection, queries: Mapping[str, Query], depth: int) -> Run:
    return index_run(name, student, _index(there, student, name), collection, reader_of(student).read_all(queries), depth)


def _index(there: Pipeline, encoder: Any, name: str) -> Any:
    """An exact index of the other collection, in memory."""
    return load_kind("indexing", there.experiment.exact_index, name).of_vectors(there.encodings(encoder, f"{name}, {there.experiment.name}"))
