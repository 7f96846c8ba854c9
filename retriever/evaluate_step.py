"""The evaluate step: every run of the experiment on the test queries, measured, compared and drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retriever.calibration import relevant_pairs
from retriever.candidates import bm25_run, hybrid_run, pair_scores
from retriever.encodings import score_rows
from retriever.eval.latency import measure_latency
from retriever.eval.measures import evaluate, parse_measure
from retriever.eval.report import ReportData, RunResult, ScoreDistribution, score_distribution, training_curve, write_report
from retriever.eval.significance import compare
from retriever.generation.step import generation_note
from retriever.model_card import write_model_card
from retriever.pipeline import Pipeline
from retriever.runs import Run
from retriever.scoring import CandidatePairs, score_shard
from retriever.search import SearchIndex
from retriever.stage_step import stages_fingerprint, stages_of
from retriever.stages import search
from retriever.steps import Done, versions
from retriever.teachers.ensemble import AlignedScores
from retriever.train_step import read_curve
from retriever.types import Query

TEACHER_LATENCY_QUERIES = 20

COMPARED = (
    ("student", "student_before"),
    ("student", "bm25"),
    ("student", "contrastive"),
    ("contrastive", "student_before"),
    ("teacher", "student_before"),
    ("hybrid", "hybrid_before"),
    ("hybrid", "student"),
)
"""The questions the report asks, each (run, baseline); p-values are corrected for all of them together."""


@dataclasses.dataclass(frozen=True)
class System:
    """A way to answer queries: how to get its run, how to answer one query, what it keeps in memory or on disk."""

    name: str
    description: str
    run: Callable[[], Run]
    answer: Callable[[Query], object]
    bytes: int | None
    asks_teacher: bool = False


def systems(pipeline: Pipeline) -> list[System]:
    """What the report compares, the student last."""
    depth = pipeline.experiment.evaluation.depth
    queries = pipeline.queries("test")
    bm25, collection = pipeline.bm25, pipeline.collection
    found = [
        System(
            "bm25",
            "BM25, no model",
            lambda: bm25_run("bm25", bm25, collection, queries, depth, pipeline.reporter),
            lambda query: bm25.search(query.text, depth),
            bm25.n_bytes,
        ),
    ]
    ablation = pipeline.experiment.evaluation.ablation
    without_teacher = "the same training on qrels, without a teacher"
    if pipeline.reranks:
        found += [_reranking(pipeline, "student_before", "the starting checkpoint", pipeline.start), _of_teacher(pipeline)]
        if ablation:
            found.append(_reranking(pipeline, "contrastive", without_teacher, pipeline.open_student(train_contrastive(pipeline).folder / "student")))
        return [*found, _reranking(pipeline, "student", "the distilled student", pipeline.student), *_of_stages(pipeline)]
    found += [*_of_student(pipeline, "student_before", "hybrid_before", "the starting checkpoint", pipeline.index_before), _of_teacher(pipeline)]
    if ablation:
        found.append(_indexed(pipeline, "contrastive", without_teacher, contrastive_index(pipeline)))
    found += _of_student(pipeline, "student", "hybrid", "the distilled student", pipeline.index)
    return [*found, *_of_stages(pipeline)]


def train_contrastive(pipeline: Pipeline) -> Done:
    """The step that trains in the same way on the qrels alone: what the teacher's scores are held against."""
    return pipeline.train("train_contrastive", pipeline.experiment.training.model_copy(update={"losses": {"contrastive": 1.0}}))


def contrastive_index(pipeline: Pipeline) -> SearchIndex:
    """The index of the student that was trained without a teacher."""
    folder = train_contrastive(pipeline).folder / "student"
    return pipeline.index_of("index_contrastive", pipeline.open_student(folder), folder)


def _indexed(pipeline: Pipeline, name: str, what: str, index: SearchIndex) -> System:
    depth = pipeline.experiment.evaluation.depth
    return System(
        name,
        what,
        lambda: index.run(pipeline.queries("test"), depth, name),
        lambda query: index.snapshot.search(index.encoder.encode_queries([query]), depth),
        index.bytes,
    )


def _reranking(pipeline: Pipeline, name: str, what: str, student: Any) -> System:
    """A student that reads query and document together, on the candidates."""
    candidates, queries = pipeline.candidates["test"], pipeline.queries("test")
    return System(
        name,
        f"{what} re-ranking {pipeline.experiment.candidates.depth} candidates",
        lambda: pipeline.reranked(student).rename(name),
        lambda query: pair_scores(student, candidates.select([query.query_id]), queries, pipeline.collection),
        None,
    )


def _of_student(pipeline: Pipeline, name: str, hybrid: str, what: str, index: SearchIndex) -> list[System]:
    """A student alone, and fused with BM25."""
    depth = min(pipeline.experiment.candidates.depth, pipeline.experiment.evaluation.depth)
    encodings = pipeline.encodings(index.encoder, name)

    def fused(queries: Mapping[str, Query]) -> Run:
        return hybrid_run(hybrid, pipeline.bm25, index.snapshot, encodings, pipeline.collection, queries, depth)

    return [
        _indexed(pipeline, name, what, index),
        System(
            hybrid,
            f"BM25 and {what}, fused by z-scores",
            lambda: fused(pipeline.queries("test")),
            lambda query: fused({query.query_id: query}),
            index.bytes + pipeline.bm25.n_bytes,
        ),
    ]


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
            lambda: found(pipeline.queries("test")),
            lambda query: found({query.query_id: query}),
            sum(one or 0 for one in kept),
            asks_teacher=any("teacher" in stage.by for stage in pipeline.experiment.stage),  # all are timed with the same queries
        )

    return [up_to(number) for number in range(1, len(stages) + 1)]


def _compared(names: Sequence[str]) -> list[tuple[str, str]]:
    """The questions that can be asked of these runs; of stages, whether each gains on the one before, and the last on the student alone."""
    stages = [name for name in names if name.startswith("stage_")]
    asked = [*COMPARED, *zip(stages[1:], stages, strict=False), *((last, "student") for last in stages[-1:])]
    return [(run, baseline) for run, baseline in asked if run in names and baseline in names]


def _of_teacher(pipeline: Pipeline) -> System:
    """The chosen teacher re-ranking the candidates; its latency is that of scoring one query's candidates."""
    name, _ = pipeline.target
    used = list(pipeline.teachers.values()) if name == "ensemble" else [pipeline.teachers[name]]
    candidates, queries = pipeline.candidates["test"], pipeline.queries("test")
    asked = [(teacher, CandidatePairs.of(candidates, queries, pipeline.collection, lists=teacher.identity.orders_lists)) for teacher in used]
    place_of = {query_id: candidates.pairs_of(number) for number, query_id in enumerate(candidates)}

    def answer(query: Query) -> object:
        positions = np.arange(candidates.n_pairs)[place_of[query.query_id]]
        return [score_shard(teacher, pairs, positions) for teacher, pairs in asked] if len(positions) else None

    return System(
        "teacher",
        f"{name} re-ranking {pipeline.experiment.candidates.depth} candidates",
        lambda: pipeline.target_run("test").rename("teacher"),
        answer,
        None,
        asks_teacher=True,
    )


def evaluate_experiment(pipeline: Pipeline) -> Done:
    """The finished evaluate step: report.html, report.json, per_query.json and the runs in TREC form."""
    settings = pipeline.experiment.evaluation
    inputs = {"training": pipeline.trained.key, "student": pipeline.student.identity, "start": pipeline.start.identity}
    inputs |= {"target": pipeline.target_run("test").fingerprint}
    inputs |= {"collection": pipeline.collection.fingerprint, "queries": pipeline.collection.queries_fingerprint(pipeline.experiment.collection.test)}
    if settings.ablation:
        inputs["contrastive"] = train_contrastive(pipeline).key

    def work(folder: Path) -> dict[str, Any]:
        report = make_report(pipeline, folder)
        write_report(folder, report)
        write_model_card(pipeline, report, pipeline.trained.folder / "student")
        return {run.name: run.evaluation.means for run in report.runs}

    if pipeline.experiment.stage:
        inputs["stages"] = stages_fingerprint(pipeline)

    kept = {
        "stages": [stage.model_dump(mode="json") for stage in pipeline.experiment.stage],
        "evaluation": settings.model_dump(mode="json"),
        "index": pipeline.experiment.index.model_dump(mode="json", exclude={"batch_size"}),
        "candidates": pipeline.experiment.candidates.model_dump(mode="json"),
    }
    return pipeline.step("evaluate", inputs, kept, work)


def make_report(pipeline: Pipeline, folder: Path) -> ReportData:
    """Runs, times and measures every system; `folder`/runs gets the runs in TREC form."""
    experiment = pipeline.experiment
    compared = systems(pipeline)
    pipeline.reporter.say(f"evaluate: running and timing {len(compared)} systems on {len(pipeline.queries('test')):,} test queries")
    results = [_result(pipeline, system, folder) for system in compared]
    names = [result.name for result in results]
    pairs = _compared(names)
    measures = [str(parse_measure(measure)) for measure in experiment.evaluation.measures]
    return ReportData(
        title=experiment.name,
        runs=results,
        comparisons=compare({result.name: result.evaluation for result in results}, pairs, measures, experiment.seed),
        measures=measures,
        settings=experiment.model_dump(mode="json"),
        versions=versions(),
        seed=experiment.seed,
        summary=_summary(pipeline),
        query_texts={query_id: query.text for query_id, query in pipeline.queries("test").items()},
        training=training_curve(read_curve(pipeline.trained.folder), f"{measures[0]} on held-out train queries"),
        distributions=_distributions(pipeline),
    )


def _result(pipeline: Pipeline, system: System, folder: Path) -> RunResult:
    """One system run, written down, timed and measured."""
    settings = pipeline.experiment.evaluation
    run = system.run()
    if settings.remove_own_document:
        run = run.without_own_documents()
    run.write_trec(folder / "runs" / f"{system.name}.trec")
    evaluation = evaluate(run, pipeline.qrels("test"), settings.measures)
    asked = [query for query_id, query in pipeline.queries("test").items() if run[query_id]]
    limit = TEACHER_LATENCY_QUERIES if system.asks_teacher else settings.latency_queries
    latency = measure_latency(system.answer, asked[:limit], warmup=min(5, limit)) if asked else None
    return RunResult(system.name, evaluation, latency, system.bytes, system.description)


def _summary(pipeline: Pipeline) -> str:
    """A sentence on the collection and one on how the target was chosen."""
    name, quality = pipeline.target
    measure = pipeline.experiment.evaluation.measures[0]
    _, held = pipeline.held_out
    listed = ", ".join(f"{teacher} {value:.3f}" for teacher, value in sorted(quality.items(), key=lambda item: -item[1]))
    queries = {split: len(pipeline.queries(split)) for split in ("train", "test")}
    return (
        f"{pipeline.collection.name}: {len(pipeline.collection):,} documents, {queries['train']:,} train and {queries['test']:,} test queries. "
        f"{generation_note(pipeline.collection)}"
        f"Distilled from {name}: {pipeline.target_reason.removesuffix('.')}. {measure} of the teachers on {len(held)} held-out train queries: {listed}."
    )


def _distributions(pipeline: Pipeline) -> list[ScoreDistribution]:
    """Scores of teacher and student for judged-relevant and other candidates of the test queries."""
    target, qrels = pipeline.target_run("test"), pipeline.qrels("test")
    positive = relevant_pairs(target, qrels)
    encoder = pipeline.student
    if pipeline.reranks:
        student = AlignedScores.of([target, pipeline.reranked(encoder)]).scores[1]
    else:
        queries = encoder.encode_queries(list(pipeline.queries("test").values()))
        rows = pipeline.collection.rows_of(target.doc_ids)
        student = score_rows(encoder, queries, target.query_numbers, pipeline.encodings(encoder, "student"), rows)
    name, _ = pipeline.target
    unit = pipeline.units[name]
    sides = (("teacher", unit, target.scores), ("student", encoder.unit, student))
    return [score_distribution(name, unit, scores[positive], scores[~positive]) for name, unit, scores in sides]
