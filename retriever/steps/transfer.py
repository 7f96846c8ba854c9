"""Out of domain: an experiment's systems on collections that nothing was learned from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retriever.candidates import bm25_run, index_run
from retriever.conversations.reading import ConversationReader, can_read
from retriever.conversations.rewriting import rewrites_fingerprint, rewritten, with_rewrites
from retriever.errors import DataError
from retriever.eval.directions import directions_of, in_direction, pairs_in_directions, system_of
from retriever.eval.measures import evaluate, parse_measure
from retriever.eval.transfer import Transfer, transfer_of
from retriever.files import fingerprint
from retriever.plugins import load_kind
from retriever.queries import read_queries, reader_of
from retriever.runs import Run
from retriever.steps.image_report import wholes_of
from retriever.steps.systems import readings_of, system_name, train_other
from retriever.types import Query

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline

BASELINES = ("student_before", "bm25", "contrastive", "last_turn", "all_turns", "rewrite")
"""What the student is held against elsewhere, beside what rewriters wrote."""

Elsewhere = tuple["Pipeline", Mapping[str, Query]]
"""The experiment on another collection, and the queries that are asked there."""


def asked_elsewhere(pipeline: Pipeline) -> list[Elsewhere]:
    """The queries of each of the other collections, with those rewrites that the file's rewriters make of them; written now unless they lie there.

    Raises:
        DataError: a collection lacks the split, or has a rewrite by a rewriter of the same name.
    """
    for there in pipeline.elsewhere:
        _check_split(there)  # of all, before a language model is asked for hours
    return [(there, with_rewrites(there.documents.queries(there.experiment.collection.test), rewritten(there))) for there in pipeline.elsewhere]


def transfer_inputs(elsewhere: Sequence[Elsewhere]) -> dict[str, str]:
    """What decides the results there, beside the systems: documents, queries, grades, and what rewriters made of the queries."""
    inputs = {}
    for there, queries in elsewhere:
        split = there.experiment.collection.test
        inputs[f"transfer {there.experiment.name}"] = fingerprint([there.documents.fingerprint, there.documents.queries_fingerprint(split)])
        if there.experiment.rewriter:
            inputs[f"rewrites {there.experiment.name}"] = rewrites_fingerprint(queries)
    return inputs


def runs_on_rewrites(names: Iterable[str]) -> list[str]:
    """Of these runs the start's on the rewrites of rewriters, such as "rewrite_qwen", without their directions."""
    return list(dict.fromkeys(system_of(name) for name in names if name.startswith("rewrite_")))


def transfers_of(pipeline: Pipeline, elsewhere: Sequence[Elsewhere]) -> list[Transfer]:
    """What the systems are worth on each of the other collections."""
    if not elsewhere:
        return []
    others = {name: pipeline.open_student(train_other(pipeline, name).folder / "student") for name in pipeline.experiment.trainings}
    return [_measured(pipeline, there, queries, {**others, "student": pipeline.student}) for there, queries in elsewhere]


def _check_split(there: Pipeline) -> None:
    split = there.experiment.collection.test
    if split not in there.documents.splits:
        listed = ", ".join(there.documents.splits) or "none"
        raise DataError(f'transfer {there.experiment.name}: there are no qrels for the split "{split}"; splits with qrels: {listed}')


def _measured(pipeline: Pipeline, there: Pipeline, queries: Mapping[str, Query], trained: Mapping[str, Any]) -> Transfer:
    settings, split = pipeline.experiment.evaluation, there.experiment.collection.test
    qrels = there.documents.qrels(split)
    measures = [str(parse_measure(measure)) for measure in settings.measures]
    runs = _runs(pipeline, there, queries, trained)
    own = settings.remove_own_document
    evaluations = {
        in_direction(name, way): evaluate(
            run.rename(in_direction(name, way)), {query_id: qrels[query_id] for query_id in query_ids}, settings.measures, without_own_documents=own
        )
        for way, query_ids in directions_of(queries).items()
        for name, run in runs.items()
    }
    pairs = pairs_in_directions(evaluations, [("student", name) for name in (*BASELINES, *runs_on_rewrites(runs), *settings.other_losses)])
    return transfer_of(there.experiment.name, split, evaluations, pairs, measures, pipeline.experiment.seed, wholes_of(queries, qrels))


def _runs(pipeline: Pipeline, there: Pipeline, queries: Mapping[str, Query], trained: Mapping[str, Any]) -> dict[str, Run]:
    """The runs of BM25, of the start under each reading, and of the trained students."""
    depth, start = pipeline.experiment.evaluation.depth, pipeline.start
    runs: dict[str, Run] = {}
    if not there.documents.has_images:
        lexical = read_queries(ConversationReader(pipeline.experiment.collection.conversation), queries)
        runs["bm25"] = bm25_run("bm25", there.bm25, there.documents, lexical, depth, pipeline.reporter)
    readings = [reading for reading in readings_of(pipeline, queries) if can_read(reading, queries.values())]  # the file's are for its own turns
    read = {system_name(reading): dataclasses.replace(reader_of(start), reading=reading) for reading in readings}
    index = _index(there, start, "student_before")
    for name, reader in {"student_before": reader_of(start), **read}.items():
        runs[name] = index_run(name, start, index, there.documents, reader.read_all(queries), depth, pipeline.reporter)
    for name, student in trained.items():
        runs[name] = index_run(name, student, _index(there, student, name), there.documents, reader_of(student).read_all(queries), depth, pipeline.reporter)
    return runs


def _index(there: Pipeline, encoder: Any, name: str) -> Any:
    """An exact index of the other collection, in memory."""
    return load_kind("indexing", there.experiment.exact_index, name).of_vectors(there.encodings(encoder, f"{name}, {there.experiment.name}"))
