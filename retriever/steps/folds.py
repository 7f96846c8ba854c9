"""Cross-validation by conversation: every part of one split is scored by a student that learned from the others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retriever.collection import Collection, with_queries
from retriever.eval.measures import Evaluation
from retriever.eval.report import RunResult, read_report
from retriever.queries import kept_together, parts_of
from retriever.settings.evaluation import EvaluationSettings
from retriever.steps.systems import readings_of

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline


def fold_pipelines(pipeline: Pipeline) -> list[Pipeline]:
    """The experiment once for each part, on a collection whose train split are the other parts; their document encodings are shared."""
    folds, seed = pipeline.experiment.collection.folds or 0, pipeline.experiment.seed
    queries, qrels = pipeline.conversations("train"), pipeline.qrels("train")

    def work(folder: Path) -> None:
        for number, part in enumerate(parts_of(kept_together(queries, qrels), folds, seed, "collection.folds"), 1):
            tested = set(part)
            splits = {
                "train": {query_id: judged for query_id, judged in qrels.items() if query_id not in tested},
                "test": {query_id: qrels[query_id] for query_id in part},
            }
            with_queries(pipeline.documents, folder / str(number), queries.values(), splits, {"format": "fold", "fold": number, "folds": folds})

    inputs = {"collection": pipeline.documents.fingerprint, "judgements": pipeline.judgements}
    inputs |= {"queries": pipeline.collection.queries_fingerprint(pipeline.experiment.collection.train)}
    made, _ = pipeline.open_step(
        lambda: pipeline.step("folds", inputs, {"folds": folds}, work), lambda folder: [Collection(folder / str(number + 1)) for number in range(folds)]
    )
    evaluation = _evaluation_of_parts(pipeline)
    return [_fold(pipeline, made.folder / str(number), number, evaluation) for number in range(1, folds + 1)]


def _fold(pipeline: Pipeline, folder: Path, number: int, evaluation: EvaluationSettings) -> Pipeline:
    source = {"path": folder, "format": None, "train": "train", "test": "test"}
    changes = {"rewriter": (), "evaluation": evaluation}  # the queries in the folder have their rewrites
    return pipeline.on(f"fold-{number}", source, changes, pipeline.folder)


def _evaluation_of_parts(pipeline: Pipeline) -> EvaluationSettings:
    """What is measured in every part: the readings are those of the whole split, and fields tell apart the results of all parts together.

    A part may have no turn, no rewrite or no field where others have them; its runs must be theirs.
    """
    readings = readings_of(pipeline, pipeline.conversations("test"))
    return pipeline.experiment.evaluation.model_copy(update={"readings": readings, "by": (), "zero_shot": None})


def joined(folders: list[Path], runs: Path) -> list[RunResult]:
    """The results of all parts as one: every query has the value of the student that did not see its conversation.

    Args:
        folders: of the parts' evaluate steps.
        runs: gets every system's run over all parts, in TREC form.
    """
    reports = [read_report(folder) for folder in folders]
    runs.mkdir(parents=True, exist_ok=True)
    results = []
    for result in reports[0].runs:
        parts = [found for report in reports if (found := report.run(result.name))]
        lines = "".join((folder / "runs" / f"{result.name}.trec").read_text(encoding="utf-8") for folder in folders)
        (runs / f"{result.name}.trec").write_text(lines, encoding="utf-8")
        results.append(dataclasses.replace(result, evaluation=_together([part.evaluation for part in parts])))
    return results


def _together(parts: list[Evaluation]) -> Evaluation:
    query_ids = [query_id for part in parts for query_id in part.query_ids]
    order = np.argsort(np.array(query_ids), kind="stable")
    values = {measure: np.concatenate([part.values[measure] for part in parts])[order] for measure in parts[0].values}
    return Evaluation(parts[0].run, tuple(query_ids[place] for place in order), values)
