"""The evaluate step: every run of the experiment on the test queries, measured, compared and drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retriever.conversations.facets import NEED_OF_HISTORY, by_field, clusters_of, depths_of, facets_of, needs_history_by_run, relevant_to, seen_documents
from retriever.conversations.rewriting import rewrites_fingerprint
from retriever.encodings import score_rows
from retriever.eval.curves import ScoreDistribution, score_distribution, training_curve
from retriever.eval.directions import direction_of, directions_of, in_direction, in_words, pairs_in_directions, system_of
from retriever.eval.facets import Facet, FacetTable, facet_table
from retriever.eval.latency import measure_latency
from retriever.eval.measures import Evaluation, evaluate, parse_measure
from retriever.eval.ranks import with_first_ranks
from retriever.eval.report import ReportData, RunResult, write_report
from retriever.eval.significance import Clusters, compare
from retriever.generation.step import generation_note
from retriever.pipeline import Pipeline
from retriever.queries import reading_input
from retriever.runs import Run, read_run
from retriever.scores.calibration import relevant_pairs
from retriever.steps.folds import fold_pipelines, joined
from retriever.steps.image_report import shows_images, wholes_of, with_images
from retriever.steps.model_card import write_model_card
from retriever.steps.stages import stages_fingerprint
from retriever.steps.step import Done, versions
from retriever.steps.systems import System, systems, train_other
from retriever.steps.train import read_curve
from retriever.steps.transfer import Elsewhere, asked_elsewhere, runs_on_rewrites, transfer_inputs, transfers_of
from retriever.steps.zero_shot import zero_shot_names, zero_shot_of
from retriever.teachers.ensemble import AlignedScores
from retriever.types import Query

TEACHER_LATENCY_QUERIES = 20

COMPARED = (
    ("student", "student_before"),
    ("student", "bm25"),
    ("student", "contrastive"),
    ("student", "judged"),
    ("student", "last_turn"),
    ("student", "all_turns"),
    ("student", "rewrite"),
    ("contrastive", "student_before"),
    ("teacher", "student_before"),
    ("hybrid", "hybrid_before"),
    ("hybrid", "student"),
)
"""The questions the report asks, each (run, baseline); p-values are corrected for all of them together."""


def _compared(names: Sequence[str], others: Sequence[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    """The questions that can be asked of these runs, in each direction.

    Of rewriters, whether the student gains on their rewrites; of stages, whether each gains on the one before, and the last on the student alone.
    """
    stages = list(dict.fromkeys(system_of(name) for name in names if name.startswith("stage_")))
    rewrites = [("student", name) for name in runs_on_rewrites(names)]
    asked = [*COMPARED, *rewrites, *zip(stages[1:], stages, strict=False), *((last, "student") for last in stages[-1:])]
    return pairs_in_directions(names, [*asked, *others])


def evaluate_experiment(pipeline: Pipeline) -> Done:
    """The finished evaluate step: report.html, report.json, per_query.json and the runs in TREC form."""
    settings = pipeline.experiment.evaluation
    _ = zero_shot_names(pipeline)  # a field that no image has is told before anything is trained
    _ = [by_field(pipeline.conversations("test"), name) for name in settings.by]  # and so is one that no query has
    elsewhere = asked_elsewhere(pipeline)  # and so is a split that another collection lacks
    inputs = {"training": pipeline.trained.key, "student": pipeline.student.identity, "start": pipeline.start.identity}
    inputs |= {"target": pipeline.target.run("test").fingerprint}
    inputs |= {"collection": pipeline.collection.fingerprint, "queries": pipeline.collection.queries_fingerprint(pipeline.experiment.collection.test)}
    inputs |= reading_input(pipeline, ("test",))
    inputs |= {name: train_other(pipeline, name).key for name in pipeline.experiment.trainings}
    if pipeline.experiment.rewriter:
        inputs["rewrites"] = rewrites_fingerprint(pipeline.conversations("test"))
    inputs |= transfer_inputs(elsewhere)

    def work(folder: Path) -> dict[str, Any]:
        report = make_report(pipeline, folder, elsewhere)
        write_report(folder, report)
        write_model_card(pipeline, report, pipeline.trained.folder / "student")
        return {run.name: run.evaluation.means for run in report.runs}

    if pipeline.experiment.stage:
        inputs["stages"] = stages_fingerprint(pipeline)

    kept = {
        "folds": pipeline.experiment.collection.folds,
        "transfer": [one.model_dump(mode="json") for one in pipeline.experiment.transfer],
        "stages": [stage.model_dump(mode="json") for stage in pipeline.experiment.stage],
        "evaluation": settings.model_dump(mode="json"),
        "index": pipeline.experiment.index.model_dump(mode="json", exclude={"batch_size"}),
        "candidates": pipeline.experiment.candidates.model_dump(mode="json"),
    }
    return pipeline.step("evaluate", inputs, kept, work)


def make_report(pipeline: Pipeline, folder: Path, elsewhere: Sequence[Elsewhere]) -> ReportData:
    """Runs, times and measures every system, and those that need no training on the collections `elsewhere`; `folder`/runs gets the runs in TREC form."""
    experiment, folds = pipeline.experiment, pipeline.experiment.collection.folds
    results = joined([evaluate_experiment(fold).folder for fold in fold_pipelines(pipeline)], folder / "runs") if folds else _results(pipeline, folder)
    pairs = _compared([result.name for result in results], [("student", name) for name in experiment.evaluation.other_losses])
    measures = [str(parse_measure(measure)) for measure in experiment.evaluation.measures]
    evaluations = {result.name: result.evaluation for result in results}
    asked = pipeline.conversations("test")
    conversations, clusters = clusters_of(asked), wholes_of(asked, pipeline.qrels("test"))
    report = ReportData(
        title=experiment.name,
        runs=results,
        comparisons=compare(evaluations, pairs, measures, experiment.seed, clusters),
        measures=measures,
        settings=experiment.model_dump(mode="json"),
        versions=versions(),
        seed=experiment.seed,
        summary=_summary(pipeline),
        query_texts={query_id: query.shown for query_id, query in pipeline.student_queries("test").items()},
        training=training_curve(read_curve(pipeline.trained.folder), f"{measures[0]} on held-out train queries"),
        distributions=() if folds else _distributions(pipeline),
        collection=f"{pipeline.collection.name} {experiment.collection.test}",
        clusters=clusters,
        clustered_by="image" if clusters and not conversations else "conversation",
        depths=depths_of(asked) if conversations else {},
        facets=told_apart(pipeline, evaluations, folder / "runs"),
        transfer=transfers_of(pipeline, elsewhere),
        folds=folds,
        zero_shot=None if folds else zero_shot_of(pipeline),
    )
    return with_images(report, asked, pipeline.collection, pipeline.qrels("test"), folder / "runs")


def told_apart(pipeline: Pipeline, evaluations: Mapping[str, Evaluation], runs: Path) -> list[FacetTable]:
    """The results by turn, by topic, by the fields that the file names and by what was seen in training; `runs` holds the runs in TREC form."""
    settings, qrels = pipeline.experiment.evaluation, pipeline.qrels("test")
    queries = pipeline.conversations("test")
    found = facets_of(queries, qrels, settings.by, pipeline.experiment.candidates.language)
    if "last_turn" in evaluations and not any(facet.name == NEED_OF_HISTORY for facet in found):
        found.append(needs_history_by_run(queries, read_run(runs / "last_turn.trec"), qrels))
    if not pipeline.experiment.collection.folds:
        found += seen_documents(qrels, (relevant_to(pipeline.qrels("train"), query_id) for query_id in pipeline.held_out[0]))
    clusters = wholes_of(queries, qrels)
    return [_table(pipeline, evaluations, one, clusters) for facet in found for one in _by_direction(facet, queries)]


def _by_direction(facet: Facet, queries: Mapping[str, Query]) -> list[tuple[str, Facet]]:
    """Direction -> the facet of its queries alone."""
    ways = directions_of(queries)
    if len(ways) == 1:
        return [("", facet)]
    groups = {way: {query_id: facet.groups[query_id] for query_id in query_ids if query_id in facet.groups} for way, query_ids in ways.items()}
    return [(way, dataclasses.replace(facet, name=f"{facet.name}, {in_words(way)}", groups=groups[way])) for way in ways]


def _table(pipeline: Pipeline, evaluations: Mapping[str, Evaluation], facet: tuple[str, Facet], clusters: Clusters | None) -> FacetTable:
    """The results of a facet's groups in its direction."""
    direction, groups = facet
    measures = [str(parse_measure(measure)) for measure in pipeline.experiment.evaluation.measures]
    own = {name: evaluation for name, evaluation in evaluations.items() if direction_of(name) == direction}
    pairs = [(run, baseline) for run, baseline in _compared(list(own)) if system_of(run) == "student" and system_of(baseline) != "bm25"]
    return facet_table(own, groups, measures, pairs, pipeline.experiment.seed, clusters)


def _results(pipeline: Pipeline, folder: Path) -> list[RunResult]:
    """All systems, direction by direction."""
    compared = systems(pipeline)
    pipeline.reporter.say(f"evaluate: running and timing {len(compared)} systems on {len(pipeline.conversations('test')):,} test queries")
    found = [result for system in compared for result in _results_of(pipeline, system, folder)]
    order = list(dict.fromkeys(direction_of(result.name) for result in found))
    return sorted(found, key=lambda result: order.index(direction_of(result.name)))


def _results_of(pipeline: Pipeline, system: System, folder: Path) -> list[RunResult]:
    """One system run, and in each direction written down, timed and measured."""
    run = pipeline.counted(system.run())
    ways = directions_of(pipeline.conversations("test"))
    if len(ways) == 1:
        return [_result(pipeline, system, run, folder)]
    return [_result(pipeline, system, run.select(query_ids).rename(in_direction(system.name, way)), folder) for way, query_ids in ways.items()]


def _result(pipeline: Pipeline, system: System, run: Run, folder: Path) -> RunResult:
    """The run, written down, timed and measured on the queries that it has."""
    settings, queries = pipeline.experiment.evaluation, pipeline.conversations("test")
    run.write_trec(folder / "runs" / f"{run.name}.trec")
    qrels = pipeline.qrels("test")
    qrels = {query_id: judged for query_id, judged in qrels.items() if query_id in run or not direction_of(run.name)}
    evaluation = evaluate(run, qrels, settings.measures)
    if shows_images(queries):
        evaluation = with_first_ranks(evaluation, run, qrels, settings.depth)
    asked = [queries[query_id] for query_id in queries if run[query_id]]
    limit = TEACHER_LATENCY_QUERIES if system.asks_teacher else settings.latency_queries
    latency = measure_latency(system.answer, asked[:limit], warmup=min(5, limit)) if asked else None
    return RunResult(run.name, evaluation, latency, system.bytes, system.description)


def _summary(pipeline: Pipeline) -> str:
    """A sentence on the collection and one on how the target was chosen."""
    name, quality = pipeline.target.name, pipeline.target.held_out
    measure = pipeline.experiment.evaluation.measures[0]
    _, held = pipeline.held_out
    listed = ", ".join(f"{teacher} {value:.3f}" for teacher, value in sorted(quality.items(), key=lambda item: -item[1]))
    queries = {split: len(pipeline.queries(split)) for split in ("train", "test")}
    unjudged = f"{len(pipeline.unjudged):,} of the train queries are unjudged and teach by the target's scores alone. " if pipeline.unjudged else ""
    return (
        f"{pipeline.collection.name}: {len(pipeline.collection):,} documents, {queries['train']:,} train and {queries['test']:,} test queries. {unjudged}"
        f"{generation_note(pipeline.collection)}"
        f"Distilled from {name}: {pipeline.target.reason.removesuffix('.')}. {measure} of the teachers on {len(held)} held-out train queries: {listed}."
    )


def _distributions(pipeline: Pipeline) -> list[ScoreDistribution]:
    """Scores of teacher and student for judged-relevant and other candidates of the test queries."""
    target, qrels = pipeline.target.run("test"), pipeline.qrels("test")
    positive = relevant_pairs(target, qrels)
    encoder = pipeline.student
    if pipeline.reranks:
        student = AlignedScores.of([target, pipeline.reranked(encoder)]).scores[1]
    else:
        queries = encoder.encode_queries(list(pipeline.student_queries("test").values()))
        rows = pipeline.collection.rows_of(target.doc_ids)
        student = score_rows(encoder, queries, target.query_numbers, pipeline.encodings(encoder, "student"), rows)
    name = pipeline.target.name
    unit = pipeline.target.units[name]
    sides = (("teacher", unit, target.scores), ("student", encoder.unit, student))
    return [score_distribution(name, unit, scores[positive], scores[~positive]) for name, unit, scores in sides]
