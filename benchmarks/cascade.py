"""What a cascade costs a student: the same training from all scores of a slow teacher, and from those of a part of the pairs.

    python benchmarks/cascade.py
    python benchmarks/cascade.py --share 0.2 --set ensemble.select=cross_encoder-all-MiniLM-L6-v2
    python benchmarks/cascade.py EXPERIMENT.toml --teacher NAME          # the last teacher of the file, unless one is named

Without a file: scifact with BM25, the starting checkpoint and a cross-encoder that is taught first. Both students have the
same seed and the same kind of target, the one that is chosen with all scores; the cascade is on the store of the first, of
which it reads the chosen pairs only. Prints the calls, nDCG@10 on the test queries and the paired difference, and adds to
benchmarks/results/cascade.json. Hours on 2 cores, most of them the slow teacher's; a stop loses little.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from record import MACHINE, keep

from retriever.config import Experiment, read_experiment
from retriever.eval.measures import Evaluation
from retriever.eval.report import read_report
from retriever.eval.significance import compare
from retriever.pipeline import Pipeline
from retriever.progress import Terminal
from retriever.scores.store import ScoreStore
from retriever.steps.candidates import SPLITS
from retriever.steps.cascade import asked_pairs
from retriever.steps.evaluate import evaluate_experiment

SCIFACT = Path(__file__).resolve().parent.parent / "examples" / "scifact.toml"
CROSS_ENCODER = '{kind="cross_encoder", model="sentence-transformers/all-MiniLM-L6-v2", train={epochs=2, learning_rate=5e-5}}'
TEACHERS = f'teacher=[{{kind="lexical"}}, {{kind="embedding", model="student"}}, {CROSS_ENCODER}]'
TRAINED = ("train", "index", "evaluate")


def main() -> None:
    """Trains both students, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, nargs="?", help="an experiment file with a slow teacher and others")
    parser.add_argument("--teacher", help="the name of the slow one")
    parser.add_argument("--share", type=float, default=0.3, help="of each list that it reads")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-cascade"))
    arguments = parser.parse_args()
    path, settings = arguments.experiment or SCIFACT, [*([] if arguments.experiment else [TEACHERS]), *arguments.set]
    place = place_of(read_experiment(path, settings), arguments.teacher)
    full = Pipeline(read_experiment(path, settings), arguments.work, Terminal())
    slow, name = list(full.teachers)[place], f"{full.experiment.name}-cascade-{arguments.share}"
    if full.target.name not in (slow, "ensemble"):
        raise SystemExit(f"the target is {full.target.name}, in which {slow} has no part: add --set ensemble.select=all, or ={slow}")
    student = evaluated(full)
    share_steps(full.folder, arguments.work / name)
    changes = [f'name="{name}"', f"teacher.{place}.cascade={arguments.share}", f'ensemble.select="{selection(full)}"']
    part = Pipeline(read_experiment(path, [*settings, *changes]), arguments.work, Terminal())
    result = compared(full, part, {"all": student, "cascade": evaluated(part)}, slow)
    keep("cascade", {f"{full.experiment.name}: {arguments.share} of {slow} for {full.target.name}": result})
    print(table(result))


def place_of(experiment: Experiment, name: str | None) -> int:
    """Which of the file's teachers is the slow one."""
    names = [teacher.label for teacher in experiment.teacher]
    if name is not None and name not in names:
        raise SystemExit(f"--teacher {name}: it is none of {', '.join(names)}")
    return names.index(name) if name else len(names) - 1


def selection(pipeline: Pipeline) -> str:
    """The target that was distilled, as `ensemble.select` names it."""
    name = pipeline.target.name
    return "all" if name == "ensemble" else name


def evaluated(pipeline: Pipeline) -> Evaluation:
    """The trained student on the test queries."""
    report = read_report(evaluate_experiment(pipeline).folder)
    return next(run.evaluation for run in report.runs if run.name == "student")


def share_steps(source: Path, target: Path) -> None:
    """Hard-links what does not depend on the training, the store among it."""
    for folder in source.iterdir():
        if folder.is_dir() and folder.name not in (*TRAINED, "ensemble") and not folder.name.startswith(".") and not (target / folder.name).exists():
            shutil.copytree(folder, target / folder.name, copy_function=os.link)


def calls(pipeline: Pipeline, name: str) -> int:
    """How often a teacher is asked when nothing is stored: pairs with equal texts count once."""
    with tempfile.TemporaryDirectory() as folder:
        store = ScoreStore.open(Path(folder), pipeline.documents)
        pairs = dict(asked_pairs(pipeline, {split: pipeline.pairs(split) for split in SPLITS}, [pipeline.store]))[name]
        return sum(store.plan(pipeline.identities[name], pairs[split], pipeline.queries(split)).pending for split in SPLITS)


def compared(full: Pipeline, part: Pipeline, students: dict[str, Evaluation], slow: str) -> dict[str, Any]:
    """Calls and means of both, and the paired difference."""
    measure, seed = full.experiment.evaluation.measures[0], full.experiment.seed
    (test,) = compare(students, [("cascade", "all")], [measure], seed)
    asked = {"all": calls(full, slow), "cascade": calls(part, slow)}
    return {
        "target": full.target.name,
        "measure": measure,
        "calls": asked,
        "fewer": asked["all"] / asked["cascade"],
        "mean": {name: evaluation.means[measure] for name, evaluation in students.items()},
        "teacher": {name: pipeline.target.held_out for name, pipeline in (("all", full), ("cascade", part))},
        "difference": test.difference,
        "interval": test.interval,
        "p_value": test.p_value,
        "queries": test.queries,
        "seed": seed,
        "machine": MACHINE,
    }


def table(result: dict[str, Any]) -> str:
    """Two lines of Markdown and the difference."""
    lines = [f"| scores of the slow teacher | calls | student's {result['measure']} |", "|---|---|---|"]
    lines += [f"| {name} | {result['calls'][name]:,} | {result['mean'][name]:.4f} |" for name in ("all", "cascade")]
    low, high = result["interval"]
    lines.append(f"\n{result['fewer']:.2f} times fewer calls; difference {result['difference']:+.4f} [{low:+.4f}, {high:+.4f}], p = {result['p_value']:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
