"""What queries add that nobody judged: doc2dial with the judgements of a few train queries, and all others beside them.

    python benchmarks/unjudged.py                              # 500 judged ones: about an hour on 2 quiet cores; goes on after a stop
    python benchmarks/unjudged.py --judged 250 --no-results
    python benchmarks/unjudged.py --set training.epochs=2

Of doc2dial's dialogues with train queries some, drawn by the seed, keep their judgements, until so many queries have one; the judgements of
the others are taken away. Nobody has more than these, the taught teacher of examples/doc2dial-dense.toml neither. Compared on the test queries: the
start, the training on the judged queries without the teacher (contrastive), distilled on the judged ones (judged), and distilled on all of them
(student). Needs ../shared/data/doc2dial, or --set collection.path=FOLDER.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from record import MACHINE, keep
from students import EXAMPLES, settings_of

from retriever.collection import Collection, open_collection, with_queries
from retriever.config import Experiment, read_experiment
from retriever.eval.report import ReportData, read_report
from retriever.eval.significance import compare
from retriever.evaluate_step import evaluate_experiment
from retriever.pipeline import Pipeline
from retriever.progress import Terminal
from retriever.training.samples import hold_out
from retriever.types import Qrels, Query

COMPARED = (("student", "judged"), ("student", "contrastive"), ("student", "student_before"), ("contrastive", "student_before"))
"""The questions, each (run, baseline); Holm's correction is over these four."""


def main() -> None:
    """Makes the collection, runs the experiment and prints what each run found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judged", type=int, default=500, help="train queries that keep their judgements, and the rest of the last one's dialogue")
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-unjudged"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--no-results", action="store_true", help="print only, keep nothing")
    arguments = parser.parse_args()
    whole = read_experiment(EXAMPLES / "doc2dial-dense.toml", arguments.overrides)
    experiment = with_few_judged(whole, arguments.work, arguments.judged)
    pipeline = Pipeline(experiment, arguments.work, Terminal())
    report = read_report(evaluate_experiment(pipeline).folder)
    judged = len(pipeline.qrels("train"))
    found = {
        **measured(report),
        "judged": judged,
        "unjudged": len(pipeline.unjudged),
        "target": pipeline.target.name,
        "held_out": pipeline.target.held_out,
        "seed": experiment.seed,
        "settings": settings_of(whole),
        "machine": MACHINE,
    }
    for name, mean in found["means"].items():
        print(f"{name:16} {mean:.3f}")
    for asked, (difference, p_value) in found["p_values"].items():
        print(f"{asked}: {difference:+.3f} (p = {p_value:.2g})")
    print(f"{judged:,} judged and {len(pipeline.unjudged):,} unjudged train queries, {found['queries']:,} test queries, {found['measure']}")
    if not arguments.no_results:
        keep("unjudged", {f"{arguments.judged} judged": found})


def with_few_judged(experiment: Experiment, work: Path, count: int) -> Experiment:
    """The experiment on a copy of its collection in which few train queries, whole dialogues of them, are judged, and the others are there all the same."""
    name, settings = f"{experiment.name}-{count}-judged", experiment.collection
    folder = work / f"{name}-collection"
    if not folder.exists():
        whole = open_collection(settings, work / "whole")
        talks = {query_id: query.conversation for query_id, query in whole.queries(settings.train).items()}
        _, kept = hold_out(talks, 1.0, count, np.random.default_rng(experiment.seed))
        judged = whole.qrels(settings.train)
        qrels = {settings.train: {query_id: judged[query_id] for query_id in kept}, settings.test: whole.qrels(settings.test)}
        write_beir(whole, whole.all_queries(), qrels, folder)
    collection = settings.model_copy(update={"path": folder.resolve(), "unjudged": True})
    evaluation = experiment.evaluation.model_copy(update={"ablation": True})
    return experiment.model_copy(update={"name": name, "collection": collection, "evaluation": evaluation})


def write_beir(whole: Collection, queries: Iterable[Query], qrels: Mapping[str, Qrels], folder: Path) -> None:
    """A BEIR folder of a collection's documents with other queries and judgements."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as prepared:
        with_queries(whole, Path(prepared) / "few", queries, qrels, whole.source).to_beir(folder)


def measured(report: ReportData) -> dict[str, Any]:
    """The means of all runs by the first measure, and the paired tests."""
    measure = report.measures[0]
    runs = {run.name: run.evaluation for run in report.runs}
    tests = compare(runs, COMPARED, [measure], report.seed, report.clusters)
    return {
        "measure": measure,
        "queries": len(report.runs[0].evaluation),
        "means": {name: evaluation.means[measure] for name, evaluation in runs.items()},
        "p_values": {f"{one.run} > {one.baseline}": [one.difference, one.p_value_corrected] for one in tests},
    }


if __name__ == "__main__":
    main()
