"""Out of domain: an experiment's systems on collections that nothing was learned from."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from retriever.candidates import bm25_run, index_run
from retriever.collection_settings import TransferSettings
from retriever.conversations import ConversationReader
from retriever.errors import DataError
from retriever.eval.directions import directions_of, in_direction, pairs_in_directions
from retriever.eval.measures import evaluate, parse_measure
from retriever.eval.transfer import Transfer, transfer_of
from retriever.files import fingerprint
from retriever.image_report import wholes_of
from retriever.plugins import load_kind
from retriever.queries import read_queries, reader_of
from retriever.runs import Run
from retriever.systems import readings_of, system_name, train_other
from retriever.types import Query

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from retriever.pipeline import Pipeline

BASELINES = ("student_before", "bm25", "contrastive", "last_turn", "all_turns", "rewrite")
"""What the student is held against elsewhere."""


def collections_of(pipeline: Pipeline) -> list[Pipeline]:
    """The experiment on each of the other collections, in a folder of its own; only what needs no training is asked of it."""
    return [_there(pipeline, settings) for settings in pipeline.experiment.transfer]


def transfer_inputs(collections: Sequence[Pipeline]) -> dict[str, str]:
    """What decides the results there, beside the systems: documents, queries and grades.

    Raises:
        DataError: one lacks the split.
    """
    return {f"transfer {there.experiment.name}": fingerprint([there.documents.fingerprint, _asked_fingerprint(there)]) for there in collections}


def transfers_of(pipeline: Pipeline, collections: Sequence[Pipeline]) -> list[Transfer]:
    """What the systems are worth on each of the other collections."""
    if not collections:
        return []
    others = {name: pipeline.open_student(train_other(pipeline, name).folder / "student") for name in pipeline.experiment.evaluation.trainings}
    return [_measured(pipeline, there, {**others, "student": pipeline.student}) for there in collections]


def _there(pipeline: Pipeline, settings: TransferSettings) -> Pipeline:
    own = settings.model_dump(include={"path", "format", "missing_documents", "test"})
    collection = pipeline.experiment.collection.model_copy(update={**own, "ir_datasets": None, "fields": (), "train": settings.test, "folds": None})
    changed = {"name": settings.label, "collection": collection, "generation": None, "rewriter": (), "transfer": ()}
    there = type(pipeline)(pipeline.experiment.model_copy(update=changed), pipeline.folder / "transfer", pipeline.reporter)
    there.encodings_folder = pipeline.encodings_folder
    return there


def _asked_fingerprint(there: Pipeline) -> str:
    _ = asked_there(there)  # names a split that is not there
    return there.documents.queries_fingerprint(there.experiment.collection.test)


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


def _measured(pipeline: Pipeline, there: Pipeline, trained: Mapping[str, Any]) -> Transfer:
    queries, settings = asked_there(there), pipeline.experiment.evaluation
    split = there.experiment.collection.test
    qrels = there.documents.qrels(split)
    measures = [str(parse_measure(measure)) for measure in settings.measures]
    runs = _runs(pipeline, there, queries, trained)
    evaluations = {
        in_direction(name, way): evaluate(run.rename(in_direction(name, way)), {query_id: qrels[query_id] for query_id in query_ids}, settings.measures)
        for way, query_ids in directions_of(queries).items()
        for name, run in runs.items()
    }
    pairs = pairs_in_directions(evaluations, [("student", name) for name in (*BASELINES, *settings.other_losses)])
    return transfer_of(there.experiment.name, split, evaluations, pairs, measures, pipeline.experiment.seed, wholes_of(queries, qrels))


def _runs(pipeline: Pipeline, there: Pipeline, queries: Mapping[str, Query], trained: Mapping[str, Any]) -> dict[str, Run]:
    """The runs of BM25, of the start under each reading, and of the trained students."""
    depth, start = pipeline.experiment.evaluation.depth, pipeline.start
    runs: dict[str, Run] = {}
    if not there.documents.has_images:
        lexical = read_queries(ConversationReader(pipeline.experiment.collection.conversation), queries)
        runs["bm25"] = bm25_run("bm25", there.bm25, there.documents, lexical, depth, pipeline.reporter)
    read = {system_name(reading): dataclasses.replace(reader_of(start), reading=reading) for reading in readings_of(pipeline, queries)}
    index = _index(there, start, "student_before")
    for name, reader in {"student_before": reader_of(start), **read}.items():
        runs[name] = index_run(name, start, index, there.documents, reader.read_all(queries), depth)
    for name, student in trained.items():
        runs[name] = index_run(name, student, _index(there, student, name), there.documents, reader_of(student).read_all(queries), depth)
    return runs


def _index(there: Pipeline, encoder: Any, name: str) -> Any:
    """An exact index of the other collection, in memory."""
    return load_kind("indexing", there.experiment.exact_index, name).of_vectors(there.encodings(encoder, f"{name}, {there.experiment.name}"))
