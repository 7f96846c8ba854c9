"""The stages of an experiment: who they are, the weights of their fusion, and what the report measures of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retriever.conversations.reading import ConversationReader
from retriever.errors import ConfigError
from retriever.eval.measures import evaluate
from retriever.files import fingerprint
from retriever.plugins import load_kind
from retriever.queries import read_queries
from retriever.runs import Run
from retriever.scores.scoring import CandidatePairs, score_shard
from retriever.search import open_index
from retriever.settings.stage import NAMED_RANKERS
from retriever.stages import ByFunction, Indexed, Lexical, ReadingPairs, Stage, StagedSearch, fused, union
from retriever.steps.step import Done
from retriever.teachers._weights import choose_row, clearly_above, out_of_fold, weight_grid
from retriever.types import Query

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline

FOLDS = 5
"""Of the held-out queries, to see what choosing weights is worth."""

ASKED_TOGETHER = 1024
"""Pairs whose texts a teacher is given at a time; lists are not cut."""


def stages_of(pipeline: Pipeline) -> tuple[Stage, ...]:
    """The stages of the experiment file, ready to search, their weights fitted.

    Raises:
        ConfigError: a name leads nowhere, or to what cannot do its part.
    """
    stages: list[Stage] = []
    for number, settings in enumerate(pipeline.experiment.stage):
        rankers = tuple(_ranker(pipeline, name, f"stage.{number}.by") for name in settings.by)
        if number == 0 and (silent := [ranker.name for ranker in rankers if not hasattr(ranker, "search")]):
            raise ConfigError(f'stage.0.by: "{silent[0]}" retrieves nothing, it scores what is found. Put it into a later stage')
        stages.append(Stage(rankers, settings.keep, settings.fusion))
    weights = _weights(pipeline, stages)
    return tuple(dataclasses.replace(stage, weights=own) for stage, own in zip(stages, weights, strict=True))


def open_stages(pipeline: Pipeline) -> StagedSearch:
    """The experiment's stages, to be searched as an index is.

    Raises:
        ConfigError: the experiment file has no stages.
    """
    if not pipeline.experiment.stage:
        raise ConfigError(f"search: the experiment {pipeline.experiment.name} has no [[stage]]. Search its index: retriever search {pipeline.folder}")
    return StagedSearch(stages_of(pipeline), pipeline.collection)


def stages_fingerprint(pipeline: Pipeline) -> str:
    """Changes with anything that other experiments' folders, which stages name, hold."""
    named = sorted({name for stage in pipeline.experiment.stage for name in stage.by if name not in NAMED_RANKERS})
    files = [Path(name) / file for name in named for file in ("index/index.json", "index.json", "train/manifest.json")]
    return fingerprint([file.read_text(encoding="utf-8") for file in files if file.is_file()])


def _ranker(pipeline: Pipeline, name: str, where: str) -> Any:
    if name == "bm25":
        return Lexical(pipeline.bm25, pipeline.collection, reader=ConversationReader(pipeline.experiment.collection.conversation))
    if name == "teacher":
        return ByFunction("teacher", lambda queries, run: _teacher_scores(pipeline, queries, run))
    if name == "student":
        return ReadingPairs(pipeline.student, pipeline.collection, "student") if pipeline.reranks else Indexed(pipeline.index, pipeline.collection, "student")
    return _of_folder(pipeline, Path(name), where)


def _of_folder(pipeline: Pipeline, folder: Path, where: str) -> Any:
    """The student of another experiment: with its index where it has one, else one that reads pairs."""
    if (folder / "index" / "index.json").is_file() or (folder / "index.json").is_file():
        return Indexed(open_index(folder), pipeline.collection, _label(pipeline, folder))
    student = folder / "train" / "student"
    if not student.is_dir():
        raise ConfigError(f'{where}: "{folder}" is neither bm25, student or teacher nor the folder of a finished experiment. Distil that first')
    return ReadingPairs(load_kind("students", "cross_encoder", where).load_folder(student), pipeline.collection, _label(pipeline, folder))


def _label(pipeline: Pipeline, folder: Path) -> str:
    """What reports call a folder's student: the folder's name, or its path where the stages name another folder of that name."""
    named = {Path(name) for stage in pipeline.experiment.stage for name in stage.by if name not in NAMED_RANKERS}
    return str(folder) if any(other.name == folder.name for other in named - {folder}) else folder.name


def _teacher_scores(pipeline: Pipeline, queries: Mapping[str, Query], run: Run) -> NDArray[np.float32]:
    """The chosen target's scores of a run's pairs, asked for now, so that the time they take is what they cost."""
    known = pipeline.collection.rows_of(run.doc_ids) >= 0
    pairs = run.keep(known).rename("teacher")
    name = pipeline.target.name
    raw = {}
    for own, teacher in pipeline.teachers.items():
        if name in ("ensemble", own):
            read = read_queries(ConversationReader(pipeline.reads[own]), queries)
            texts = CandidatePairs.of(pairs, read, pipeline.collection, lists=teacher.identity.orders_lists)
            parts = [score_shard(teacher, texts, shard)[0].scores for shard in _whole_lists(pairs)]
            raw[own] = pairs.with_scores(own, np.concatenate([np.zeros(0, dtype=np.float32), *parts]))
    target = pipeline.target.run_of(raw, queries).to_dict()
    scores = np.full(run.n_pairs, np.nan, dtype=np.float32)
    scores[known] = [target[query_id][doc_id] for query_id in pairs for doc_id, _ in pairs[query_id]]
    return scores


def _whole_lists(run: Run) -> Iterator[NDArray[np.int64]]:
    """The pairs of a query or some more at a time."""
    start = 0
    for end in range(1, len(run) + 1):
        if end == len(run) or run.offsets[end] - run.offsets[start] >= ASKED_TOGETHER:
            if run.offsets[end] > run.offsets[start]:
                yield np.arange(run.offsets[start], run.offsets[end])
            start = end


def _weights(pipeline: Pipeline, stages: Sequence[Stage]) -> list[tuple[float, ...] | None]:
    """The weights of each stage that fuses several with fitted ones, as a step of their own."""
    fitted = [number for number, stage in enumerate(stages) if stage.fusion == "weighted" and len(stage.rankers) > 1]
    if not fitted:
        return [None] * len(stages)
    done = _fitted(pipeline, stages, fitted)
    chosen: dict[str, Any] = done.result["stages"]
    for number in fitted:
        note = chosen[str(number)]
        words = ", ".join(f"{weight:.2f} {ranker.name}" for weight, ranker in zip(note["weights"], stages[number].rankers, strict=True))
        pipeline.reporter.say(f"stage {number + 1}: {words} ({note['fitted_out_of_fold']:.4f} out of fold, {note['equal_weights']:.4f} with equal weights)")
    return [tuple(chosen[str(number)]["weights"]) if number in fitted else None for number in range(len(stages))]


def _fitted(pipeline: Pipeline, stages: Sequence[Stage], numbers: Sequence[int]) -> Done:
    _, held = pipeline.held_out
    queries = {query_id: pipeline.conversations("train")[query_id] for query_id in held}
    qrels = {query_id: pipeline.qrels("train")[query_id] for query_id in held}
    measure = pipeline.experiment.evaluation.measures[0]

    def work(folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        run, ready = None, list(stages)
        for number, stage in enumerate(stages):
            if number in numbers:
                pairs = union([ranker.search(queries, stage.keep) for ranker in stage.rankers]) if run is None else run
                found[str(number)] = fit_weights(stage, queries, pairs, qrels, measure)
                ready[number] = dataclasses.replace(stage, weights=tuple(found[str(number)]["weights"]))
            if number == max(numbers):
                break
            run = ready[number].retrieve(queries) if run is None else ready[number].rerank(queries, run)
        return {"stages": found}

    inputs = {"student": pipeline.student.identity, "collection": pipeline.collection.fingerprint, "judgements": pipeline.judgements}
    inputs |= {"held": fingerprint(held), "other students": stages_fingerprint(pipeline)}
    settings = {"stages": [stage.model_dump(mode="json") for stage in pipeline.experiment.stage], "measure": measure}
    return pipeline.step("stages", inputs, settings, work)


def fit_weights(stage: Stage, queries: Mapping[str, Query], pairs: Run, qrels: Mapping[str, Mapping[str, int]], measure: str) -> dict[str, Any]:
    """The weights of a grid that rank judged queries' pairs best, where choosing them is clearly above equal weights on queries that did not choose.

    Returns:
        weights, the measure of the choice out of fold and of equal weights, and whether the choice is used.
    """
    table = stage.table(queries, pairs)
    known = np.asarray(~np.isnan(table).any(axis=0))
    kept, scores = pairs.keep(known), table[:, known]
    grid = weight_grid(len(stage.rankers))
    values = np.stack([_measured(kept.with_scores("fused", fused("weighted", scores, kept.offsets, tuple(point))), qrels, measure) for point in grid])
    folds, everyone = np.arange(values.shape[1]) % FOLDS, np.ones(values.shape[1], dtype=np.bool_)
    chosen, equal = out_of_fold(values, folds, everyone), values[0]
    better = clearly_above(chosen, equal)
    weights = grid[choose_row(values, everyone) if better else 0]
    return {"weights": weights.tolist(), "fitted_out_of_fold": float(chosen.mean()), "equal_weights": float(equal.mean()), "used": better}


def _measured(run: Run, qrels: Mapping[str, Mapping[str, int]], measure: str) -> NDArray[np.float64]:
    """[Q], the measure of each judged query."""
    return np.asarray(evaluate(run, qrels, [measure]).values[measure], dtype=np.float64)
