"""Every way to make one target of an experiment's teachers, measured on its held-out train queries.

    python benchmarks/ensembles.py
    python benchmarks/ensembles.py --larger FOLDER                       # for example all-mpnet-base-v2
    python benchmarks/ensembles.py EXPERIMENT.toml --set KEY=VALUE ...   # the teachers of another file

Without a file: BM25, a taught cross-encoder (about 15 minutes on 2 cores) and, where one is named, a larger encoder, on
scifact. What is fitted on qrels is measured by fits to other queries, and test queries are not looked at. Prints the
first measure, for each ensemble with its difference to the best single teacher and the p-value of the paired test, and
adds to benchmarks/results/ensembles.json.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

from record import against, keep

from retriever.config import EnsembleSettings, read_experiment
from retriever.errors import ConfigError
from retriever.eval.measures import Evaluation, evaluate
from retriever.pipeline import Pipeline
from retriever.progress import Terminal
from retriever.runs import Run
from retriever.steps.ensemble import ensemble_on_held_out, judged_lists, keep_pairs
from retriever.types import Query

SCIFACT = Path(__file__).resolve().parent.parent / "examples" / "scifact.toml"
CROSS_ENCODER = '{kind="cross_encoder", model="sentence-transformers/all-MiniLM-L6-v2", train={epochs=2, learning_rate=5e-5}}'
VIEWS = ("none", "z_score", "standardised", "min_max", "calibration")
COMBINATIONS = ("mean", "weighted_mean", "softmax_mean", "routing")


def main() -> None:
    """Fits, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, nargs="?", help="an experiment file with two teachers or more")
    parser.add_argument("--larger", help="a larger encoder for scifact: folder, package or hub id")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-ensembles"))
    arguments = parser.parse_args()
    larger = f', {{kind="embedding", name="larger", model="{arguments.larger}", batch_size=16}}' if arguments.larger else ""
    teachers = [] if arguments.experiment else [f'teacher=[{{kind="lexical"}}, {CROSS_ENCODER}{larger}]']
    pipeline = Pipeline(read_experiment(arguments.experiment or SCIFACT, [*teachers, *arguments.set]), arguments.work, Terminal())
    found, measure = dict(evaluations(pipeline)), pipeline.experiment.evaluation.measures[0]
    best = max(pipeline.teachers, key=lambda name: found[name].means[measure])
    results = against(found, best, measure, pipeline.experiment.seed)
    keep("ensembles", {f"{pipeline.experiment.name}: {', '.join(pipeline.teachers)}": results})
    for name, row in results.items():
        print(f"{name:<32} {row['mean']:.4f}  against the best teacher {row['difference']:+.4f} (p = {row['p_value']:.3f})")


def evaluations(pipeline: Pipeline) -> Iterator[tuple[str, Evaluation]]:
    """Each teacher, then each combination of each view, re-ranking the candidates of the held-out queries."""
    _, held = pipeline.held_out
    qrels = {query_id: pipeline.qrels("train")[query_id] for query_id in held}
    queries = {query_id: pipeline.queries("train")[query_id] for query_id in held}
    retrieved = pipeline.candidates["train"].select(held)
    measures = [pipeline.experiment.evaluation.measures[0]]
    raw = dict(scored(pipeline, pipeline.pairs("train").select(held), queries))
    for name, run in raw.items():
        yield name, evaluate(keep_pairs(run, retrieved), qrels, measures)
    lists = judged_lists(pipeline.experiment, raw, queries, qrels, retrieved)
    for combine, view in [*itertools.product(COMBINATIONS, VIEWS), ("reciprocal_rank", "none")]:
        settings = EnsembleSettings(combine=combine, normalise=view)
        experiment = pipeline.experiment.model_copy(update={"ensemble": settings})
        try:
            run = ensemble_on_held_out(experiment, pipeline.identities, lists)
        except ConfigError:  # units that do not mix
            continue
        if run is not None:
            yield f"{combine}, {view}", evaluate(keep_pairs(run, retrieved).rename(f"{combine}, {view}"), qrels, measures)


def scored(pipeline: Pipeline, pairs: Run, queries: Mapping[str, Query]) -> Iterator[tuple[str, Run]]:
    """Each teacher's scores of the held-out lists alone: nothing else is needed here, and a slow teacher is slow."""
    for name, teacher in pipeline.teachers.items():
        with pipeline.reporter.bar(f"scoring held-out pairs ({name})", pairs.n_pairs) as advance:
            pipeline.store.score(teacher, pairs, queries, advance)
        yield name, pipeline.store.read(teacher.identity, pairs, queries).run.rename(name)


if __name__ == "__main__":
    main()
