"""The main job as one function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retriever.config import Experiment, experiment_from, read_experiment
from retriever.eval.report import ReportData, read_report
from retriever.pipeline import Pipeline
from retriever.progress import Reporter, quiet_libraries
from retriever.search import SearchIndex, open_index
from retriever.steps.evaluate import evaluate_experiment
from retriever.workers.processes import training_together


@dataclasses.dataclass(frozen=True)
class Distilled:
    """What a finished experiment leaves.

    Attributes:
        folder: the experiment's, under the work folder.
        student: the trained student's stock sentence-transformers folder.
        report: means, intervals, comparisons; `report_path` is the page for people.
        index: opened, ready to search; None for a student that re-ranks.
    """

    folder: Path
    student: Path
    report: ReportData
    report_path: Path
    index: SearchIndex | None

    def __repr__(self) -> str:
        measure = self.report.measures[0]
        means = ", ".join(f"{run.name} {run.evaluation.means[measure]:.3f}" for run in self.report.runs)
        return f"Distilled({self.folder}; {measure}: {means})"


def distill(
    experiment: Experiment | Mapping[str, Any] | Path | str, work: Path | str = "work", overrides: Sequence[str] = (), reporter: Reporter | None = None
) -> Distilled:
    """Candidates, scores, student, index and report of an experiment; what is on disk already is not made again.

    Args:
        experiment: a checked one, its keys as nested mappings, or the path of an experiment file.
        work: the folder that holds a folder for each experiment.
        overrides: "key=value" as `--set` takes them; for a file only.
        reporter: where progress is told; nowhere when left out.

    Started by torchrun, each process calls this: the first one makes the steps, the others train along and open what there is at the end.

    Raises:
        RetrieverError: a mistake in the experiment or its data.
    """
    if isinstance(experiment, str | Path):
        experiment = read_experiment(Path(experiment), overrides)
    elif not isinstance(experiment, Experiment):
        experiment = experiment_from(experiment)
    with quiet_libraries():
        pipeline = Pipeline(experiment, Path(work), reporter)
        with training_together(pipeline) as first:
            if first:
                evaluate_experiment(pipeline)
            folder = pipeline.folder
            index = None if pipeline.reranks else pipeline.index if first else open_index(folder / "index")
        return Distilled(folder, folder / "train" / "student", read_report(folder / "evaluate"), folder / "evaluate" / "report.html", index)
