"""What queries add that nobody judged: doc2dial with the judgements of a few train queries, and all others beside them.

    python benchmarks/unjudged.py                              # 500 judged ones, one epoch of all: about an hour on 2 quiet cores; goes on after a stop
    python benchmarks/unjudged.py --kinds sparse late_interaction static
    python benchmarks/unjudged.py --judged 250 --no-results
    python benchmarks/unjudged.py --set training.epochs=3
    python benchmarks/unjudged.py --scores benchmarks/scores     # what the taught teacher said lies there, or is kept there

Of doc2dial's dialogues with train queries some, drawn by the seed, keep their judgements, until so many queries have one; the judgements of
the others are taken away. Nobody has more than these, the taught teachers of examples/doc2dial-<kind>.toml neither, which go through them as
often as makes the steps of all; in one piece and not in folds, since most of what they score is new to them anyway. Compared on the test queries: the
start, the training on the judged queries without the teacher (contrastive), distilled on the judged ones (judged), both in as many steps as the third
has: distilled on all of them (student). Needs ../shared/data/doc2dial, or --set collection.path=FOLDER.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from record import MACHINE, keep
from students import EXAMPLES, KINDS, SCORES_HELP, folder_of, keep_scores, measured, settings_of, share_steps, with_scores

from retriever.collection import Collection, open_collection, with_queries
from retriever.config import Experiment, read_experiment
from retriever.eval.report import read_report
from retriever.pipeline import Pipeline
from retriever.progress import Terminal
from retriever.settings.teacher import TeacherSettings
from retriever.steps.evaluate import evaluate_experiment
from retriever.training.samples import hold_out
from retriever.types import Qrels, Query

COMPARED = (("student", "judged"), ("student", "contrastive"), ("student", "student_before"), ("contrastive", "student_before"))
"""The questions, each (run, baseline); Holm's correction is over these four."""


def main() -> None:
    """Makes the collection, runs the experiment and prints what each run found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS["doc2dial"], default=["dense"])
    parser.add_argument("--judged", type=int, default=500, help="train queries that keep their judgements, and the rest of the last one's dialogue")
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-unjudged"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--scores", type=Path, help=SCORES_HELP, metavar="FOLDER")
    parser.add_argument("--no-results", action="store_true", help="print only, keep nothing")
    arguments = parser.parse_args()
    for kind in arguments.kinds:
        whole = read_experiment(EXAMPLES / f"{folder_of('doc2dial', kind)}.toml", ["training.epochs=1", *arguments.overrides])
        found = run(whole, arguments.work, arguments.judged, arguments.scores)
        for name, one in found["runs"].items():
            print(f"{name:16} {one['mean'][found['measure']]:.3f}")
        for asked, (difference, _, p_value) in found["p_values"].items():
            print(f"{asked}: {difference:+.3f} (p = {p_value:.2g})")
        print(f"{kind}: {found['judged']:,} judged and {found['unjudged']:,} unjudged train queries, {found['queries']:,} test queries, {found['measure']}")
        if not arguments.no_results:
            keep("unjudged", {f"{kind}, {arguments.judged} judged": found})


def run(whole: Experiment, work: Path, count: int, scores: Path | None = None) -> dict[str, Any]:
    """What one kind of student learns from few judged queries, with the others and without; kinds share candidates, teachers and scores."""
    experiment = with_few_judged(whole, work, count)
    share_steps(work, experiment.name)
    pipeline = Pipeline(with_scores(experiment, scores), work, Terminal())
    pipeline.target.scores("train")
    keep_scores(pipeline, scores)
    report = read_report(evaluate_experiment(pipeline).folder)
    return {
        **measured(report, COMPARED),
        "queries": len(report.runs[0].evaluation),
        "judged": len(pipeline.qrels("train")),
        "unjudged": len(pipeline.unjudged),
        "target": pipeline.target.name,
        "held_out": pipeline.target.held_out,
        "seed": experiment.seed,
        "settings": settings_of(experiment),
        "machine": MACHINE,
    }


def with_few_judged(experiment: Experiment, work: Path, count: int) -> Experiment:
    """The experiment on a copy of its collection in which few train queries, whole dialogues of them, are judged, and the others are there all the same."""
    settings = experiment.collection
    folder, whole = work / f"collection-{count}-judged", open_collection(settings, work / "whole")
    queries, judged = whole.queries(settings.train), whole.qrels(settings.train)
    _, kept = hold_out({query_id: query.conversation for query_id, query in queries.items()}, 1.0, count, np.random.default_rng(experiment.seed))
    if not folder.exists():
        qrels = {settings.train: {query_id: judged[query_id] for query_id in kept}, settings.test: whole.qrels(settings.test)}
        write_beir(whole, whole.all_queries(), qrels, folder)
    taught = taught_otherwise(taught_longer(experiment, len(judged) / len(kept)), lambda _: {"folds": None})
    return taught.model_copy(
        update={
            "name": f"{experiment.name}-{count}-judged",
            "collection": settings.model_copy(update={"path": folder.resolve(), "unjudged": True}),
            "evaluation": experiment.evaluation.model_copy(update={"ablation": True}),
        }
    )


def taught_longer(experiment: Experiment, times: float) -> Experiment:
    """The experiment whose taught teachers go through their queries so many times as often: fewer queries, about as many steps."""
    return taught_otherwise(experiment, lambda train: {"epochs": round(train.epochs * times)})


def taught_otherwise(experiment: Experiment, changes: Callable[[Any], Mapping[str, Any]]) -> Experiment:
    """The experiment with what `changes` says of a teacher's `train` table, in each that there is."""

    def changed(teacher: TeacherSettings) -> TeacherSettings:
        train = getattr(teacher, "train", None)
        return teacher.model_copy(update={"train": train.model_copy(update=changes(train))}) if train else teacher

    return experiment.model_copy(update={"teacher": tuple(changed(teacher) for teacher in experiment.teacher)})


def write_beir(whole: Collection, queries: Iterable[Query], qrels: Mapping[str, Qrels], folder: Path) -> None:
    """A BEIR folder of a collection's documents with other queries and judgements."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as prepared:
        with_queries(whole, Path(prepared) / "few", queries, qrels, whole.source).to_beir(folder)


if __name__ == "__main__":
    main()
