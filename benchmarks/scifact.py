"""The bar on scifact: what distillation gives, beside supervised training alone, on 300 test queries.

    python benchmarks/scifact.py                  # the experiment of examples/scifact.toml, timed from nothing
    python benchmarks/scifact.py --variants       # and: contrastive alone, distillation alone, each teacher alone
    python benchmarks/scifact.py --only fusion+contrastive

Every variant shares the first one's candidates, scores and encodings, and differs in its training only.
Prints a table and writes benchmarks/results/scifact.json. Needs ../shared/data/scifact, or --set collection.path=FOLDER.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from record import MACHINE, keep

from retriever.config import read_experiment
from retriever.eval.report import read_report
from retriever.pipeline import Pipeline
from retriever.progress import Terminal
from retriever.steps.evaluate import evaluate_experiment

HERE = Path(__file__).resolve().parent
EXPERIMENT = HERE.parent / "examples" / "scifact.toml"
SHARED = ("collection", "candidates", "encodings", "score", "start", "index_before")
VARIANTS = {
    "fusion+contrastive": (),
    "contrastive alone": ("training.losses={contrastive=1.0}",),
    "fusion alone": ("training.losses={kl_divergence=1.0}",),
    "BM25+contrastive": ('ensemble.select="lexical"',),
    "margin-MSE+contrastive": ("training.losses={margin_mse=0.2, contrastive=0.5}", "training.teacher_scale=1"),
}


def main() -> None:
    """Runs the variants that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-scifact"))
    parser.add_argument("--variants", action="store_true", help="run every variant")
    parser.add_argument("--only", choices=VARIANTS, help="run this one")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    names = [arguments.only] if arguments.only else list(VARIANTS) if arguments.variants else list(VARIANTS)[:1]
    results: dict[str, Any] = {}
    for name in names:
        begun = (arguments.work / folder_of(name)).exists()
        results[name] = run_variant(name, arguments.work, [*VARIANTS[name], *arguments.overrides])
        if begun:
            print(f"{name}: the work folder held steps already, so its minutes say nothing and benchmarks/results keeps what it has", file=sys.stderr)
        else:
            keep("scifact", results)
    print(table(results))


def run_variant(name: str, work: Path, overrides: list[str]) -> dict[str, Any]:
    """Means, intervals and p-values of one variant, with the minutes it took (what others made before it not counted)."""
    first = name == next(iter(VARIANTS))
    folder_name = folder_of(name)
    if not first:
        share(work / "scifact", work / folder_name)
    experiment = read_experiment(EXPERIMENT, [*overrides, f'name="{folder_name}"'])
    start = time.perf_counter()
    pipeline = Pipeline(experiment, work, Terminal())
    report = read_report(evaluate_experiment(pipeline).folder)
    minutes = (time.perf_counter() - start) / 60
    target, held_out = pipeline.target.name, pipeline.target.held_out
    return {
        "minutes": round(minutes, 1),
        "target": target,
        "held_out": held_out,
        "runs": {run.name: {"mean": run.evaluation.means, "interval": run.interval(report.measures[0], report.seed)} for run in report.runs},
        "p_values": {
            f"{one.run} > {one.baseline}": [one.difference, one.p_value, one.p_value_corrected]
            for one in report.comparisons
            if one.measure == report.measures[0]
        },
        "queries": len(report.runs[0].evaluation),
        "seed": experiment.seed,
        "machine": MACHINE,
    }


def folder_of(name: str) -> str:
    """The experiment's name for a variant."""
    return "scifact" if name == next(iter(VARIANTS)) else f"scifact-{name.replace(' ', '-').replace('+', '-').lower()}"


def share(source: Path, target: Path) -> None:
    """Hard-links what does not depend on training."""
    for part in SHARED:
        if (source / part).exists() and not (target / part).exists():
            shutil.copytree(source / part, target / part, copy_function=os.link)


def table(results: dict[str, Any]) -> str:
    """One line a variant, Markdown."""
    lines = [
        "| variant | start | BM25 | teacher | student | hybrid | student - start (p) | student - BM25 (p) | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        means = {run: values["mean"]["nDCG@10"] for run, values in result["runs"].items()}
        gains = [result["p_values"][f"student > {baseline}"] for baseline in ("student_before", "bm25")]
        cells = [f"{means[run]:.3f}" for run in ("student_before", "bm25", "teacher", "student", "hybrid")]
        cells += [f"{gain:+.3f} ({p:.4f})" for gain, p, _ in gains]
        lines.append(f"| {name} | {' | '.join(cells)} | {result['minutes']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
