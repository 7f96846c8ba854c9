"""report.html: one page with everything in it, from the numbers of a report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from retriever.eval import turns_page, wording
from retriever.eval.figures import SERIES, cost_figure, differences_figure, distribution_figure, training_figure
from retriever.eval.report import ReportData, RunResult
from retriever.eval.significance import Comparison, differences_between
from retriever.eval.template import Picture, fill_template, picture

QUERIES_LISTED = 5
LONGEST_QUERY = 180


@dataclasses.dataclass(frozen=True)
class QueryChange:
    """A query whose value changed from the baseline to the subject."""

    text: str
    before: float
    after: float


def render_page(data: ReportData) -> str:
    """The page as one HTML text: no scripts, nothing loaded from elsewhere, the same for the same data."""
    return fill_template(
        "report.html.jinja",
        data=data,
        verdict=wording.verdict(data),
        rows=[_row(data, place, run) for place, run in enumerate(data.runs)],
        columns=_columns(data),
        compared=_compared(data),
        cost_pictures=_cost_pictures(data),
        by_turn=turns_page.by_turn(data),
        elsewhere=turns_page.elsewhere(data),
        changes=_changes(data),
        training=_training_picture(data),
        distributions=_distribution_pictures(data),
        settings=json.dumps(data.settings, indent=2, ensure_ascii=False, default=str),
    )


def _columns(data: ReportData) -> list[str]:
    """Headings after the measures, for what at least one run has."""
    latency = ["p50", "p99"] if any(run.latency for run in data.runs) else []
    return [*latency, *(["index"] if any(run.bytes is not None for run in data.runs) else [])]


def _row(data: ReportData, place: int, run: RunResult) -> dict[str, Any]:
    means = run.evaluation.means
    costs = {
        "p50": wording.milliseconds(run.latency.p50_ms) if run.latency else "",
        "p99": wording.milliseconds(run.latency.p99_ms) if run.latency else "",
        "index": wording.size(run.bytes) if run.bytes is not None else "",
    }
    values = []
    for measure in data.measures:
        low, high = data.interval(run, measure)
        best = means[measure] == max(other.evaluation.means[measure] for other in data.runs)
        values.append({"measure": measure, "mean": f"{means[measure]:.3f}", "interval": f"{low:.3f} to {high:.3f}", "best": best})
    return {"run": run, "series": place % len(SERIES), "values": values, "costs": [(heading, costs[heading]) for heading in _columns(data)]}


def _compared(data: ReportData) -> list[tuple[str, str, list[Comparison]]]:
    """Run, baseline and their comparisons, in the order of the measures."""
    pairs = dict.fromkeys((one.run, one.baseline) for one in data.comparisons)
    return [(run, baseline, [one for one in data.comparisons if (one.run, one.baseline) == (run, baseline)]) for run, baseline in pairs]


def _cost_pictures(data: ReportData) -> list[Picture]:
    measure = data.measures[0]
    costs: Sequence[tuple[str, str, str, Callable[[RunResult], float | None]]] = (
        ("latency", "latency of a query", "median milliseconds per query", lambda run: run.latency.p50_ms if run.latency else None),
        ("bytes", "size of the index", "megabytes", lambda run: run.bytes / 1e6 if run.bytes is not None else None),
    )
    pictures = []
    for name, title, axis, cost_of in costs:
        found = [(place, run, cost_of(run)) for place, run in enumerate(data.runs)]
        points = [(place, run.name, cost, run.evaluation.means[measure], data.interval(run, measure)) for place, run, cost in found if cost]
        if points:
            svg = cost_figure(name, points, axis, measure, data.subject)
            pictures.append(picture(svg, f"{measure} against {title}", "Up and to the left is better. Lines are 95 % intervals."))
    return pictures


def _changes(data: ReportData) -> dict[str, Any] | None:
    """The picture of the per-query differences between subject and baseline, with the queries at both ends."""
    subject, baseline, measure = data.run(data.subject), data.run(data.baseline), data.measures[0]
    if subject is None or baseline is None:
        return None
    differences = differences_between(subject.evaluation, baseline.evaluation, measure)
    before, after = baseline.evaluation.values[measure], subject.evaluation.values[measure]
    query_ids = subject.evaluation.query_ids
    order = sorted(range(len(differences)), key=lambda number: (-differences[number], query_ids[number]))

    def listed(numbers: Sequence[int]) -> list[QueryChange]:
        return [
            QueryChange(wording.shortened(data.query_texts.get(query_ids[n], query_ids[n]), LONGEST_QUERY), float(before[n]), float(after[n])) for n in numbers
        ]

    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    equal = len(differences) - better - worse
    caption = f"{wording.count(better, 'query', 'queries')} better, {worse:,} worse, {equal:,} unchanged."
    return {
        "picture": picture(differences_figure("differences", differences, measure), f"{data.subject} against {data.baseline}, query by query", caption),
        "improved": listed([number for number in order[:QUERIES_LISTED] if differences[number] > 0]),
        "hurt": listed([number for number in order[::-1][:QUERIES_LISTED] if differences[number] < 0]),
    }


def _training_picture(data: ReportData) -> Picture | None:
    curve = data.training
    if curve is None or not (curve.steps or curve.validation_steps):
        return None
    kept = f" The checkpoint of step {curve.chosen_step:,} was kept." if curve.chosen_step is not None else ""
    return picture(training_figure("training", curve), "Training", f"Validation: {curve.validation_measure}.{kept}")


def _distribution_pictures(data: ReportData) -> list[Picture]:
    return [
        picture(
            distribution_figure(f"scores{place}", distribution),
            f"Scores of the {distribution.name}" if distribution.name in ("teacher", "student") else f"Scores of {distribution.name}",
            f"A random positive outscores a random negative {100 * distribution.separation:.1f} % of the time.",
        )
        for place, distribution in enumerate(data.distributions)
    ]
