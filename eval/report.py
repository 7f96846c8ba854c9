"""The report: report.json for programs, report.html for people, per_query.json for the next question.

report.html can be drawn again from the two JSON files (`redraw_report`), so that a better page needs no new run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retriever.errors import DataError
from retriever.eval.curves import ScoreDistribution, TrainingCurve
from retriever.eval.directions import direction_of, directions_in, in_direction, system_of
from retriever.eval.facets import FacetTable, facet_table_from_json, per_conversation
from retriever.eval.latency import Latency
from retriever.eval.measures import Evaluation
from retriever.eval.ranks import FIRST_RANK, MedianRank, median_rank
from retriever.eval.shown import Shown, shown_from_json
from retriever.eval.significance import Clusters, Comparison, generator_for, mean_interval
from retriever.eval.transfer import Transfer, transfer_from_json
from retriever.eval.zero_shot import ZeroShot, zero_shot_from_json
from retriever.files import write_json, write_text

SHOWN = "shown.json"


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A run as the report shows it.

    Attributes:
        name: the row's name and the key in report.json: NAME, or NAME.DIRECTION where directions are told apart.
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

    def median_rank(self, seed: int, clusters: Clusters | None = None) -> MedianRank | None:
        """The median rank of the first relevant document; None where the evaluation has no ranks."""
        found, ranks = self.evaluation, self.evaluation.values.get(FIRST_RANK)
        if ranks is None:
            return None
        return median_rank(found.query_ids, ranks, clusters, generator_for(seed, "interval", self.name, FIRST_RANK))


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
        subject: the run that the verdict is about; where directions are told apart, its name without them.
        baseline: what it is held against.
        query_texts: query id -> text or image's name, for the lists of the most improved and most hurt.
        training: the student's.
        distributions: of the teacher and the student.
        collection: name and split of what was searched, where `transfer` holds others against it.
        clusters: query id -> conversation, the ones that `comparisons` were made with; None where queries stand alone.
        clustered_by: what a cluster is, "conversation" or "image".
        depths: query id -> turns of the user so far, where known.
        facets: results apart for groups of queries.
        transfer: results on other collections.
        folds: of how many students each scored the conversations that it was not trained on; None where one student scored all.
        shown: images and captions beside the queries that changed most.
        zero_shot: how often the students name what is in an image.
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
    clustered_by: str = "conversation"
    shown: Shown | None = None
    zero_shot: ZeroShot | None = None

    def run(self, name: str) -> RunResult | None:
        """The run of that name, if there is one."""
        return next((run for run in self.runs if run.name == name), None)

    def interval(self, run: RunResult, measure: str) -> tuple[float, float]:
        """The 95 % interval of a run's mean, as everything in the report is drawn; drawn once."""
        key = run.name, measure
        if key not in self._intervals:
            self._intervals[key] = run.interval(measure, self.seed, self.clusters)
        return self._intervals[key]

    @cached_property
    def _intervals(self) -> dict[tuple[str, str], tuple[float, float]]:
        return {}

    @property
    def directions(self) -> tuple[str, ...]:
        """Those that the runs are told apart by; ("",) where they are not."""
        return directions_in(run.name for run in self.runs)

    @property
    def held_against(self) -> list[tuple[str, str]]:
        """(subject, baseline) of each direction."""
        return [(in_direction(self.subject, way), in_direction(self.baseline, way)) for way in self.directions]

    @property
    def places(self) -> dict[str, int]:
        """Run -> the place of its system among all of them, which is its colour."""
        systems = list(dict.fromkeys(system_of(run.name) for run in self.runs))
        return {run.name: systems.index(system_of(run.name)) for run in self.runs}

    def runs_in(self, direction: str) -> list[RunResult]:
        """The runs of a direction."""
        return [run for run in self.runs if direction_of(run.name) == direction]

    def is_best(self, run: RunResult, measure: str) -> bool:
        """Whether no run of its direction has a higher mean."""
        return run.evaluation.means[measure] == max(other.evaluation.means[measure] for other in self.runs_in(direction_of(run.name)))

    def begins(self, run: RunResult) -> bool:
        """Whether a run is the first of another direction than the runs before it."""
        return run is not self.runs[0] and run is self.runs_in(direction_of(run.name))[0]

    @cached_property
    def median_ranks(self) -> dict[str, MedianRank]:
        """Run -> the median rank of its first relevant documents, of the runs whose evaluation has ranks."""
        return {run.name: found for run in self.runs if (found := run.median_rank(self.seed, self.clusters))}

    @property
    def best_baseline(self) -> RunResult | None:
        """Of the runs that the subject was compared with, teachers left out, the one with the highest first measure."""
        names = {one.baseline for one in self.comparisons if one.run == self.subject} - {"teacher"}
        return max((run for run in self.runs if run.name in names), key=lambda run: run.evaluation.means[self.measures[0]], default=None)

    @property
    def conversations(self) -> dict[str, dict[str, float]]:
        """The subject and its best baseline -> conversation -> mean of the first measure; empty where there are none of them."""
        if self.clustered_by != "conversation":
            return {}
        pair = (self.run(self.subject), self.best_baseline)
        means = {run.name: per_conversation(run.evaluation, self.clusters or {}, self.measures[0]) for run in pair if run}
        return means if len(means) == 2 and all(means.values()) else {}


def write_report(folder: Path, data: ReportData) -> Path:
    """Writes report.json, per_query.json, report.html and, where images are shown, shown.json into `folder`; returns the path of report.html."""
    write_json(folder / "per_query.json", _per_query_json(data))
    if data.shown:
        write_json(folder / SHOWN, dataclasses.asdict(data.shown))
    write_json(folder / "report.json", report_json(data))
    return _draw(folder, data)


def redraw_report(folder: Path) -> Path:
    """Draws report.html again from the JSON files beside it; returns its path.

    Raises:
        DataError: one of the files is missing or not what `write_report` wrote.
    """
    return _draw(folder, read_report(folder))


def read_report(folder: Path) -> ReportData:
    """What `write_report` wrote into `folder`.

    Raises:
        DataError: report.json or per_query.json is missing, or one of the files is not what `write_report` wrote.
    """
    report, per_query = (_read_json(folder / name) for name in ("report.json", "per_query.json"))
    shown = _read_json(folder / SHOWN) if (folder / SHOWN).is_file() else None
    try:
        return dataclasses.replace(_from_json(report, per_query), shown=shown and shown_from_json(shown))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder}: report.json, per_query.json or {SHOWN} is not from this program ({type(error).__name__}: {error}). Run the evaluation again"
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
        "clustered_by": data.clustered_by if data.clusters else None,
        "directions": [way for way in data.directions if way],
        "zero_shot": data.zero_shot and dataclasses.asdict(data.zero_shot),
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
    latency, rank = run.latency, data.median_ranks.get(run.name)
    return {
        "description": run.description,
        "median_rank": rank and dataclasses.asdict(rank),
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
                "values": {measure: run.evaluation.values[measure].tolist() for measure in _kept(data, run)},
            }
            for run in data.runs
        },
    }


def _kept(data: ReportData, run: RunResult) -> list[str]:
    """The names of a run's values per query."""
    return [*data.measures, *([FIRST_RANK] if FIRST_RANK in run.evaluation.values else [])]


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
        clustered_by=report.get("clustered_by") or "conversation",
        zero_shot=zero_shot_from_json(found) if (found := report.get("zero_shot")) else None,
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
