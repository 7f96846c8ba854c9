"""Every kind of student on doc2dial and scifact: its start, trained without the teacher, and distilled.

    python benchmarks/students.py                                     # all kinds on both: hours
    python benchmarks/students.py --datasets scifact --kinds sparse
    python benchmarks/students.py --set training.epochs=2 --no-results
    python benchmarks/students.py --scores benchmarks/scores          # what taught teachers said lies there: none is taught

Runs examples/<dataset>-<kind>.toml with evaluation.ablation = true. All kinds of a dataset share candidates and teacher scores, so
that teachers score once; benchmarks/scores has what the files' taught teachers said, which costs an hour of 2 cores a dataset. A result is
kept in benchmarks/results/students.json as soon as it is there; one that was kept with the same settings is not made again, and one
that was stopped goes on. Test queries choose nothing: targets and checkpoints are chosen on
held-out train queries. Needs ../shared/data/doc2dial and scifact, or --set collection.path=FOLDER with one dataset.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from record import MACHINE, keep, kept
from tables import students_table

from retriever.config import Experiment, read_experiment
from retriever.conversations.facets import NEW
from retriever.eval.report import ReportData, read_report
from retriever.eval.significance import compare
from retriever.files import fingerprint, write_json
from retriever.pipeline import Pipeline
from retriever.progress import Terminal
from retriever.runs import Run
from retriever.settings.teacher import RunSettings
from retriever.steps.evaluate import evaluate_experiment
from retriever.steps.step import Done, read_manifest
from retriever.steps.systems import train_other

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
KINDS = {
    "doc2dial": ("dense", "sparse", "late_interaction", "static", "cross_encoder"),
    "scifact": ("dense", "sparse", "late_interaction"),
}
SHARED = ("collection", "folds", "rewritten", "rewrite", "generated", "generate", "candidates", "encodings", "score", "ensemble")
COMPARED = (("student", "contrastive"), ("student", "student_before"), ("student", "bm25"))
"""The questions of a row, each (run, baseline); Holm's correction is over these three."""

SCORES_HELP = "of taught teachers: taken from this folder, or kept there once they are made"


def main() -> None:
    """Makes the results that are not there yet, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS["doc2dial"], default=KINDS["doc2dial"])
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-students"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--scores", type=Path, help=SCORES_HELP, metavar="FOLDER")
    parser.add_argument("--no-results", action="store_true", help="print only, keep nothing")
    arguments = parser.parse_args()
    results = {} if arguments.no_results else kept("students")
    for dataset in arguments.datasets:
        for kind in (kind for kind in KINDS[dataset] if kind in arguments.kinds):
            name = folder_of(dataset, kind)
            experiment = experiment_of(name, arguments.overrides)
            if results.get(name, {}).get("settings") != settings_of(experiment):
                results[name] = run_experiment(experiment, arguments.work, arguments.scores)
                if not arguments.no_results:
                    keep("students", {name: results[name]})
        print(students_table(results, dataset), end="\n\n")


def experiment_of(name: str, overrides: Sequence[str]) -> Experiment:
    """The experiment of an example file, in a folder of the file's name, with the run `contrastive`."""
    return read_experiment(EXAMPLES / f"{name}.toml", ["evaluation.ablation=true", *overrides, f'name="{name}"'])


def folder_of(dataset: str, kind: str) -> str:
    """The name of the example file and of the experiment's folder."""
    return f"{dataset}-{kind.replace('_', '-')}"


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """What its file says, so that a key which is new since leaves results alone; of the collection's path the last name, the same on every machine."""
    settings = experiment.model_dump(mode="json", exclude_unset=True)
    if path := experiment.collection.path:
        settings["collection"]["path"] = path.name
    return settings


def scores_file(experiment: Experiment, teacher: str, folder: Path) -> Path:
    """Where the scores of a taught teacher lie: under another name where it, its seed, the collection, candidates or generated queries have other settings.

    Students share them.
    """
    settings = next(one for one in experiment.teacher if one.label == teacher)
    whole = settings_of(experiment)
    decides = [settings.model_dump(mode="json", exclude_unset=True), experiment.seed, *(whole.get(part) for part in ("collection", "candidates", "generation"))]
    decides += [{key: value} for key, value in whole["training"].items() if key.startswith("validation_")]  # who is held out, and teaches no teacher
    return folder / f"{experiment.name.split('-', maxsplit=1)[0]}-{teacher}-{fingerprint(decides)[:8]}.parquet"


def with_scores(experiment: Experiment, folder: Path | None) -> Experiment:
    """The experiment with the scores of its taught teachers, where they lie in a folder, in the place of the teachers."""
    teachers = [
        RunSettings(name=one.label, path=scores_file(experiment, one.label, folder), missing="lowest", weight=one.weight)
        if folder and getattr(one, "train", None) and scores_file(experiment, one.label, folder).is_file()
        else one
        for one in experiment.teacher
    ]
    return experiment.model_copy(update={"teacher": tuple(teachers)})


def keep_scores(pipeline: Pipeline, folder: Path | None) -> None:
    """Writes the scores of the teachers that were taught, of both splits, for `with_scores`."""
    if folder is None:
        return
    for teacher in pipeline.experiment.teacher:
        if getattr(teacher, "train", None):
            both = {query_id: found for split in pipeline.scores.values() for query_id, found in split[teacher.label].to_dict().items()}
            path = scores_file(pipeline.experiment, teacher.label, folder)
            Run.from_dict(teacher.label, both).write_parquet(path, pipeline.identities[teacher.label].unit)


def run_experiment(experiment: Experiment, work: Path, scores: Path | None = None) -> dict[str, Any]:
    """Everything that the table says of one kind, and with which settings."""
    share_steps(work, experiment.name)
    pipeline = Pipeline(with_scores(experiment, scores), work, Terminal())
    pipeline.target.scores("train")  # candidates and teachers: their minutes are not the student's
    keep_scores(pipeline, scores)
    minutes = {
        "contrastive": timed(pipeline.folder, "train_contrastive", lambda: train_other(pipeline, "contrastive")),
        "student": timed(pipeline.folder, "train", lambda: pipeline.trained),
    }
    report = read_report(evaluate_experiment(pipeline).folder)
    target, held_out = pipeline.target.name, pipeline.target.held_out
    return {
        "documents": len(pipeline.collection),
        "queries": len(report.runs[0].evaluation),
        "seed": experiment.seed,
        "target": target,
        "held_out": held_out,
        "minutes": minutes,
        "validation": pipeline.trained.result["validation"],
        **measured(report),
        "settings": settings_of(experiment),
        "machine": MACHINE,
    }


def measured(report: ReportData, compared: Sequence[tuple[str, str]] = COMPARED) -> dict[str, Any]:
    """Means, intervals, latency and bytes of every run, and the paired tests of (run, baseline)."""
    measure = report.measures[0]
    runs = {
        run.name: {
            "mean": run.evaluation.means,
            "interval": report.interval(run, measure),
            "latency_ms": run.latency and run.latency.p50_ms,
            "bytes": run.bytes,
        }
        for run in report.runs
    }
    tests = compare({run.name: run.evaluation for run in report.runs}, compared, [measure], report.seed, report.clusters)
    return {
        "measure": measure,
        "runs": runs,
        "p_values": {f"{one.run} > {one.baseline}": [one.difference, one.p_value, one.p_value_corrected] for one in tests},
        **on_new_documents(report),
    }


def on_new_documents(report: ReportData) -> dict[str, Any]:
    """The means on queries none of whose relevant documents a judged train query had; nothing where there are none, or no others."""
    groups = [group for table in report.facets for group in table.groups if group.label == NEW]
    return {"new": {"queries": groups[0].queries, "means": {run: means[report.measures[0]] for run, means in groups[0].means.items()}}} if groups else {}


def share_steps(work: Path, name: str) -> None:
    """Hard-links what does not depend on the student from another kind's folder of the same dataset, where its teachers have scored.

    A step whose inputs or settings differ all the same is made anew, as always.
    """
    dataset = name.split("-", maxsplit=1)[0]
    finished = [folder for folder in sorted(work.glob(f"{dataset}-*")) if folder.name != name and read_manifest(folder / "score")]
    if not finished:
        return
    for folder in [finished[0], *sorted(finished[0].glob("fold-*"))]:
        for part in [folder / part for part in SHARED] + sorted(folder.glob("teach-*")):
            target = work / name / part.relative_to(finished[0])
            if part.exists() and not target.exists():
                shutil.copytree(part, target, copy_function=os.link)


def timed(folder: Path, step: str, train: Callable[[], Done]) -> float | None:
    """Minutes of a train step, what earlier calls did before they were stopped included; None where a part of it was not timed.

    Kept in `folder`. It is None while the step runs, so that a kill, after which nobody can add up, leaves it unknown.
    """
    path = folder / "minutes.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    begun = (folder / f".{step}.partial").exists()
    before = known.get(step) if begun else 0.0
    start, minutes = time.perf_counter(), known.get(step)

    def so_far() -> float | None:
        return None if before is None else round(before + (time.perf_counter() - start) / 60, 2)

    write_json(path, {**known, step: None})
    try:
        done = train()
        minutes = so_far() if done.done_now else minutes
    except BaseException:
        minutes = so_far()
        raise
    finally:
        write_json(path, {**known, step: minutes})
    return minutes


if __name__ == "__main__":
    main()
