"""The report: report.json for programs, report.html for people, per_query.json for the next question.

report.html can be drawn again from the two JSON files (`redraw_report`), so that a better page needs no new run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retriever.errors import DataError
from retriever.eval.facets import FacetTable, facet_table_from_json, per_conversation
from retriever.eval.latency import Latency
from retriever.eval.measures import Evaluation
from retriever.eval.significance import Clusters, Comparison, generator_for, mean_interval
from retriever.eval.transfer import Transfer, transfer_from_json
from retriever.files import write_json, write_text

NOT_LOSSES = frozenset({"step", "validation", "learning_rate", "grad_norm", "epoch"})


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A run as the report shows it.

    Attributes:
        name: the row's name and the key in report.json.
        evaluation: its values per query.
        latency: of its search, where one was timed.
        bytes: of its index, where it has one.
        description: half a sentence on what it is.
    """

    name: str
    evaluation: Evaluation
    latency: Latency | None = None
    bytes: int | None = None
    description: str = ""

    def interval(self, measure: str, seed: int, clusters: Clusters | None = None) -> tuple[float, float]:
        """The 95 % bootstrap interval of the mean, over whole conversations where `clusters` names them; the same for the same values, name and seed."""
        found = self.evaluation
        return mean_interval(found.query_ids, found.values[measure], clusters, generator_for(seed, "interval", self.name, measure))


@dataclasses.dataclass(frozen=True)
class TrainingCurve:
    """How training went.

    Attributes:
        steps: where losses were logged.
        losses: name of a loss term -> its value at each of `steps`.
        validation_steps: where the student was validated.
        validation: the value at each of them.
        validation_measure: what was validated, for example "nDCG@10 on held-out train queries".
        chosen_step: of the checkpoint that was kept.
    """

    steps: Sequence[int]
    losses: Mapping[str, Sequence[float]]
    validation_steps: Sequence[int]
    validation: Sequence[float]
    validation_measure: str
    chosen_step: int | None


@dataclasses.dataclass(frozen=True)
class ScoreDistribution:
    """How a ranker's scores of positives lie against those of negatives.

    Attributes:
        name: the ranker's.
        unit: of its scores.
        edges: [bins + 1].
        positives: [bins], share of the positives in each bin.
        negatives: [bins], share of the negatives in each bin.
        separation: how often a random positive outscores a random negative (a tie counts half).
    """

    name: str
    unit: str
    edges: Sequence[float]
    positives: Sequence[float]
    negatives: Sequence[float]
    separation: float


@dataclasses.dataclass(frozen=True)
class ReportData:
    """All that a report shows; what is absent (no curve, no latency) leaves its section out.

    Attributes:
        title: for example the experiment's name.
        runs: in the order of the table.
        comparisons: as `significance.compare` makes them.
        measures: in the order of the columns; the first is the one that the verdict and the pictures use.
        settings: the filled-in configuration, JSON-like.
        versions: package -> version.
        seed: of intervals, and of the experiment.
        summary: a sentence on the collection, below the title.
        subject: the run that the verdict is about.
        baseline: what it is held against.
        query_texts: query id -> text, for the lists of the most improved and most hurt.
        training: the student's.
        distributions: of the teacher and the student.
        collection: name and split of what was searched, where `transfer` holds others against it.
        clusters: query id -> conversation, the ones that `comparisons` were made with; None where queries stand alone.
        depths: query id -> turns of the user so far, where known.
        facets: results apart for groups of queries.
        transfer: results on other collections.
        folds: of how many students each scored the conversations that it was not trained on; None where one student scored all.
    """

    title: str
    runs: Sequence[RunResult]
    comparisons: Sequence[Comparison]
    measures: Sequence[str]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    seed: int
    summary: str = ""
    subject: str = "student"
    baseline: str = "student_before"
    query_texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    training: TrainingCurve | None = None
    distributions: Sequence[ScoreDistribution] = ()
    collection: str = ""
    clusters: Clusters | None = None
    depths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    facets: Sequence[FacetTable] = ()
    transfer: Sequence[Transfer] = ()
    folds: int | None = None

    def run(self, name: str) -> RunResult | None:
        """The run of that name, if there is one."""
        return next((run for run in self.runs if run.name == name), None)

    def interval(self, run: RunResult, measure: str) -> tuple[float, float]:
        """The 95 % interval of a run's mean, as everything in the report is drawn."""
        return run.interval(measure, self.seed, self.clusters)

    @property
    def best_baseline(self) -> RunResult | None:
        """Of the runs that the subject was compared with, teachers left out, the one with the highest first measure."""
        names = {one.baseline for one in self.comparisons if one.run == self.subject} - {"teacher"}
        return max((run for run in self.runs if run.name in names), key=lambda run: run.evaluation.means[self.measures[0]], default=None)

    @property
    def conversations(self) -> dict[str, dict[str, float]]:
        """The subject and its best baseline -> conversation -> mean of the first measure; empty where there are none of them."""
        pair = (self.run(self.subject), self.best_baseline)
        means = {run.name: per_conversation(run.evaluation, self.clusters or {}, self.measures[0]) for run in pair if run}
        return means if len(means) == 2 and all(means.values()) else {}


def training_curve(points: Iterable[Mapping[str, float]], validation_measure: str) -> TrainingCurve:
    """A curve of logged points, each with a "step" and either "validation" or loss terms; the first best validation was the one kept."""
    logged = list(points)
    lossy = [point for point in logged if "validation" not in point]
    validated = [point for point in logged if "validation" in point]
    names = dict.fromkeys(name for point in lossy for name in point if name not in NOT_LOSSES)
    values = [point["validation"] for point in validated]
    return TrainingCurve(
        steps=[int(point["step"]) for point in lossy],
        losses={name: [point.get(name, float("nan")) for point in lossy] for name in names},
        validation_steps=[int(point["step"]) for point in validated],
        validation=values,
        validation_measure=validation_measure,
        chosen_step=int(validated[int(np.argmax(values))]["step"]) if values else None,
    )


def score_distribution(name: str, unit: str, positives: ArrayLike, negatives: ArrayLike, bins: int = 40) -> ScoreDistribution:
    """Histograms of a ranker's scores over common bins, and how well they separate positives from negatives.

    Args:
        name: the ranker's.
        unit: of its scores.
        positives: scores of relevant documents, any number.
        negatives: scores of the others, any number; without one of either the separation is 0.5.
        bins: how many.
    """
    groups = [np.asarray(group, dtype=np.float64).ravel() for group in (positives, negatives)]
    together = np.concatenate(groups)
    edges = np.histogram_bin_edges(together, bins=bins) if len(together) else np.linspace(0, 1, bins + 1)
    shares = [(np.histogram(group, edges)[0] / max(len(group), 1)).tolist() for group in groups]
    return ScoreDistribution(name, unit, edges.tolist(), shares[0], shares[1], _separation(*groups))


def write_report(folder: Path, data: ReportData) -> Path:
    """Writes report.json, per_query.json and report.html into `folder`; returns the path of report.html."""
    write_json(folder / "per_query.json", _per_query_json(data))
    write_json(folder / "report.json", report_json(data))
    return _draw(folder, data)


def redraw_report(folder: Path) -> Path:
    """Draws report.html again from the report.json and per_query.json beside it; returns its path.

    Raises:
        DataError: one of the two files is missing or not what `write_report` wrote.
    """
    return _draw(folder, read_report(folder))


def read_report(folder: Path) -> ReportData:
    """What `write_report` wrote into `folder`.

    Raises:
        DataError: report.json or per_query.json is missing or not what `write_report` wrote.
    """
    report, per_query = (_read_json(folder / name) for name in ("report.json", "per_query.json"))
    try:
        return _from_json(report, per_query)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder}: report.json or per_query.json is not from this program ({type(error).__name__}: {error}). Run the evaluation again"
        ) from error


def report_json(data: ReportData) -> dict[str, Any]:
    """The report as plain values: what report.json holds."""
    return {
        "title": data.title,
        "summary": data.summary,
        "subject": data.subject,
        "baseline": data.baseline,
        "measures": list(data.measures),
        "runs": {run.name: _run_json(run, data) for run in data.runs},
        "comparisons": [dataclasses.asdict(comparison) for comparison in data.comparisons],
        "training": _training_json(data.training),
        "score_distributions": [dataclasses.asdict(distribution) for distribution in data.distributions],
        "collection": data.collection,
        "conversations": {"measure": data.measures[0], "means": data.conversations} if data.conversations else None,
        "facets": [dataclasses.asdict(table) for table in data.facets],
        "transfer": [dataclasses.asdict(transfer) for transfer in data.transfer],
        "folds": data.folds,
        "per_query": "per_query.json",
        "settings": dict(data.settings),
        "versions": dict(data.versions),
        "seed": data.seed,
    }


def _draw(folder: Path, data: ReportData) -> Path:
    from retriever.eval.page import render_page

    path = folder / "report.html"
    write_text(path, render_page(data))
    return path


def _run_json(run: RunResult, data: ReportData) -> dict[str, Any]:
    latency = run.latency
    return {
        "description": run.description,
        "mean": {measure: run.evaluation.means[measure] for measure in data.measures},
        "interval": {measure: list(data.interval(run, measure)) for measure in data.measures},
        "queries": len(run.evaluation),
        "latency_ms": latency and {"p50": latency.p50_ms, "p99": latency.p99_ms, "mean": latency.mean_ms, "queries": latency.queries},
        "bytes": run.bytes,
    }


def _per_query_json(data: ReportData) -> dict[str, Any]:
    return {
        "texts": dict(data.query_texts),
        "conversations": None if data.clusters is None else dict(data.clusters),
        "depths": dict(data.depths),
        "runs": {
            run.name: {
                "query_ids": list(run.evaluation.query_ids),
                "values": {measure: run.evaluation.values[measure].tolist() for measure in data.measures},
            }
            for run in data.runs
        },
    }


def _training_json(curve: TrainingCurve | None) -> dict[str, Any] | None:
    """A curve as plain values; a loss that was not a number is null."""
    if curve is None:
        return None
    losses = {name: [float(value) if np.isfinite(value) else None for value in values] for name, values in curve.losses.items()}
    return {**dataclasses.asdict(curve), "losses": losses}


def _from_json(report: Mapping[str, Any], per_query: Mapping[str, Any]) -> ReportData:
    curve = report["training"]
    if curve is not None:
        losses = {name: [float("nan") if value is None else value for value in values] for name, values in curve["losses"].items()}
        curve = TrainingCurve(**{**curve, "losses": losses})
    return ReportData(
        title=report["title"],
        runs=[_run_from_json(name, run, per_query["runs"][name]) for name, run in report["runs"].items()],
        comparisons=[Comparison(**{**comparison, "interval": tuple(comparison["interval"])}) for comparison in report["comparisons"]],
        measures=report["measures"],
        settings=report["settings"],
        versions=report["versions"],
        seed=report["seed"],
        summary=report["summary"],
        subject=report["subject"],
        baseline=report["baseline"],
        query_texts=per_query["texts"],
        training=curve,
        distributions=[ScoreDistribution(**distribution) for distribution in report["score_distributions"]],
        collection=report.get("collection", ""),  # reports that were written before there were conversations have none of these
        clusters=per_query.get("conversations"),
        depths=per_query.get("depths", {}),
        facets=[facet_table_from_json(table) for table in report.get("facets", ())],
        transfer=[transfer_from_json(transfer) for transfer in report.get("transfer", ())],
        folds=report.get("folds"),
    )


def _run_from_json(name: str, run: Mapping[str, Any], per_query: Mapping[str, Any]) -> RunResult:
    times = run["latency_ms"]
    values = {measure: np.array(numbers, dtype=np.float64) for measure, numbers in per_query["values"].items()}
    return RunResult(
        name=name,
        evaluation=Evaluation(name, tuple(per_query["query_ids"]), values),
        latency=times and Latency(times["p50"], times["p99"], times["mean"], times["queries"]),
        bytes=run["bytes"],
        description=run["description"],
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}). Run the evaluation again") from error


def _separation(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> float:
    if not len(positives) or not len(negatives):
        return 0.5
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, side="left") + np.searchsorted(ordered, positives, side="right")
    return float(below.mean() / 2 / len(negatives))
