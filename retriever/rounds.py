"""Rounds of training: what each student finds is scored by the teachers and teaches the next one.

Hard negatives that the student itself retrieves are what its later training lacks most (Xiong et al. 2021, arXiv:2007.00808).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from retriever.candidates import index_run, reciprocal_rank_fusion, with_positives
from retriever.cascade_step import stored_scores
from retriever.plugins import load_kind
from retriever.runs import Run
from retriever.score_step import score_pairs_of
from retriever.store import TeacherScores

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline


def mined_pairs(pipeline: Pipeline, name: str, student: Any, before: Run) -> Run:
    """The train queries' pairs with what a student retrieves added, as its own step.

    Args:
        pipeline: the experiment.
        name: the step's.
        student: what searches.
        before: the pairs so far; none of them is left out.
    """
    depth, queries, collection = pipeline.experiment.candidates.depth, pipeline.queries("train"), pipeline.collection

    def work(folder: Path) -> None:
        engine = load_kind("indexing", pipeline.experiment.index_kind, "index.kind")
        found = index_run(name, student, engine.of_vectors(pipeline.encodings(student, name)), collection, queries, depth)
        with_positives(reciprocal_rank_fusion(name, [before, found]), pipeline.qrels("train")).write_parquet(folder / "train.parquet")

    inputs = {"student": student.identity, "pairs": before.fingerprint, "judgements": pipeline.judgements}
    _, run = pipeline.open_step(lambda: pipeline.step(name, inputs, {"depth": depth}, work), lambda folder: Run.read_parquet(folder / "train.parquet"))
    added = run.n_pairs - before.n_pairs
    pipeline.reporter.say(f"{name}: {added:,} pairs that were not among the {before.n_pairs:,}")
    return run


def target_of(pipeline: Pipeline, pairs: Run) -> TeacherScores:
    """The chosen target's scores of some pairs of the train queries; those that are not in the store are scored now."""
    score_pairs_of(pipeline, {"train": pairs})
    return pipeline.target_scores_of(stored_scores(pipeline, "train", pairs), "train")
