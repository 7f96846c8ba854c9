"""Active dimensions of a trained sparse student: asked for, and found.

    python benchmarks/sparsity.py                                      # what students.py trained on doc2dial
    python benchmarks/sparsity.py examples/scifact-sparse.toml --work work
    python benchmarks/sparsity.py --step train_contrastive

Encodes all test queries and a sample of the documents with the student in the experiment's folder; trains nothing. The bar is within
10 % of student.query_dimensions and student.document_dimensions. Prints the table and the curve of the training, and writes
benchmarks/results/sparsity.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from record import MACHINE, keep
from students import EXAMPLES
from tables import markdown, sparsity_table

from retriever.config import read_experiment
from retriever.pipeline import Pipeline
from retriever.progress import Terminal
from retriever.settings.student import SparseSettings
from retriever.steps.train import read_curve

WITHIN = 0.1


def main() -> None:
    """Counts, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, nargs="?", default=EXAMPLES / "doc2dial-sparse.toml")
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-students"))
    parser.add_argument("--step", default="train", help="the train step, or train_contrastive")
    parser.add_argument("--documents", type=int, default=1000, help="of the sample, drawn by the experiment's seed")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--no-results", action="store_true", help="print only, keep nothing")
    arguments = parser.parse_args()
    pipeline = Pipeline(read_experiment(arguments.experiment, arguments.overrides), arguments.work, Terminal())
    folder = pipeline.folder / arguments.step
    if not isinstance(pipeline.experiment.student, SparseSettings) or not (folder / "student").is_dir():
        sys.exit(f"error: {folder}: no trained sparse student. Make it with: retriever distill {arguments.experiment} --work {arguments.work}")
    result = active_dimensions(pipeline, folder, arguments.documents)
    name = pipeline.experiment.name if arguments.step == "train" else f"{pipeline.experiment.name}, {arguments.step}"
    if not arguments.no_results:
        keep("sparsity", {name: result})
    print(curve_table(result["curve"]), end="\n\n")
    print(sparsity_table({name: result}), end="\n\n")
    print(f"within {WITHIN:.0%}: {'yes' if all(side['within'] for side in result['sides'].values()) else 'no'}")


def active_dimensions(pipeline: Pipeline, folder: Path, sample: int) -> dict[str, Any]:
    """What encoding gives at the end, on each side that is steered, and how training got there."""
    settings = pipeline.experiment.student
    if not isinstance(settings, SparseSettings):
        raise TypeError(f"a {settings.kind} student")
    student = pipeline.open_student(folder / "student")
    seed = pipeline.experiment.seed
    rows = np.sort(np.random.default_rng(seed).permutation(len(pipeline.collection))[:sample])
    queries = list(pipeline.queries("test").values())
    found = {"documents": (settings.document_dimensions, student.encode_documents(pipeline.collection.documents_by_row(rows)).counts)}
    if not settings.inference_free_queries:
        found["queries"] = (settings.query_dimensions, student.encode_queries(queries).counts)
    sides = {
        side: {"wanted": wanted, "found": float(counts.mean()), "texts": len(counts), "within": bool(abs(counts.mean() / wanted - 1) <= WITHIN)}
        for side, (wanted, counts) in found.items()
    }
    return {"sides": sides, "curve": steered(read_curve(folder)), "seed": seed, "machine": MACHINE}


def steered(curve: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The validations of a curve with the active dimensions of held-out queries and their documents."""
    keys = ("step", "validation", "active_queries", "active_documents")
    return [{key: round(point[key], 4) for key in keys if key in point} for point in curve if "active_documents" in point]


def curve_table(points: Sequence[Mapping[str, float]]) -> str:
    """A line for each validation."""
    heads = ["step", "held-out", "active in queries", "active in documents"]
    rows = [
        [f"{point['step']:,.0f}", f"{point['validation']:.4f}", f"{point.get('active_queries', float('nan')):.1f}", f"{point['active_documents']:.1f}"]
        for point in points
    ]
    return markdown(heads, rows)


if __name__ == "__main__":
    main()
