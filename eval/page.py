"""report.html: one page with everything in it, from the numbers of a report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retriever.eval import turns_page, wording
from retriever.eval.changes import Change, Changes, changes_of
from retriever.eval.directions import direction_of, in_words, system_of
from retriever.eval.figures import SERIES, cost_figure, differences_figure, distribution_figure, training_figure
from retriever.eval.report import ReportData, RunResult
from retriever.eval.shown import ShownDocument
from retriever.eval.significance import Comparison
from retriever.eval.template import Picture, fill_template, picture
from retriever.eval.zero_shot_page import zero_shot_grid

LONGEST_QUERY = 180
LONGEST_CAPTION = 60


@dataclasses.dataclass(frozen=True)
class ShownImage:
    """An image on the page; `uri` holds all of it, and is "" where there is no room for it."""

    uri: str
    name: str


@dataclasses.dataclass(frozen=True)
class FoundDocument:
    """A document below a query: an image or a caption, with its rank."""

    rank: str
    relevant: bool
    image: ShownImage | None
    text: str


@dataclasses.dataclass(frozen=True)
class QueryChange:
    """A query whose value changed from the baseline to the subject; for images and captions with what the subject found."""

    text: str
    before: float
    after: float
    image: ShownImage | None = None
    found: Sequence[FoundDocument] = ()


def render_page(data: ReportData) -> str:
    """The page as one HTML text: no scripts, nothing loaded from elsewhere, the same for the same data."""
    return fill_template(
        "report.html.jinja",
        data=data,
        verdict=wording.verdict(data),
        rows=[_row(data, run) for run in data.runs],
        means_over=wording.means_over(data),
        columns=_columns(data),
        compared=_compared(data),
        cost_pictures=_cost_pictures(data),
        by_turn=turns_page.by_turn(data),
        elsewhere=turns_page.elsewhere(data),
        zero_shot=zero_shot_grid(data),
        changes=[_changed(data, changes) for changes in changes_of(data)],
        training=_training_picture(data),
        distributions=_distribution_pictures(data),
        settings=json.dumps(data.settings, indent=2, ensure_ascii=False, default=str),
    )


def _columns(data: ReportData) -> list[str]:
    """Headings after the measures, for what at least one run has."""
    ranks = ["median rank"] if data.median_ranks else []
    latency = ["p50", "p99"] if any(run.latency for run in data.runs) else []
    return [*ranks, *latency, *(["index"] if any(run.bytes is not None for run in data.runs) else [])]


def _row(data: ReportData, run: RunResult) -> dict[str, Any]:
    means, rank = run.evaluation.means, data.median_ranks.get(run.name)
    further = {
        "median rank": f"{rank.value:g}" if rank else "",
        "p50": wording.milliseconds(run.latency.p50_ms) if run.latency else "",
        "p99": wording.milliseconds(run.latency.p99_ms) if run.latency else "",
        "index": wording.size(run.bytes) if run.bytes is not None else "",
    }
    values = []
    for measure in data.measures:
        low, high = data.interval(run, measure)
        interval, best = f"{low:.3f} to {high:.3f}", data.is_best(run, measure)
        values.append({"measure": measure, "mean": f"{means[measure]:.3f}", "interval": interval, "best": best})
    small = {"median rank": f"{rank.interval[0]:g} to {rank.interval[1]:g}"} if rank else {}
    return {
        "run": run,
        "series": data.places[run.name] % len(SERIES),
        "subject": system_of(run.name) == data.subject,
        "begins": data.begins(run),
        "values": values,
        "further": [(heading, further[heading], small.get(heading, "")) for heading in _columns(data)],
    }


def _compared(data: ReportData) -> list[tuple[str, str, list[Comparison]]]:
    """Run, baseline and their comparisons, in the order of the measures."""
    pairs = dict.fromkeys((one.run, one.baseline) for one in data.comparisons)
    return [(run, baseline, [one for one in data.comparisons if (one.run, one.baseline) == (run, baseline)]) for run, baseline in pairs]


def _cost_pictures(data: ReportData) -> list[Picture]:
    """A picture for each direction and cost."""
    costs: Sequence[tuple[str, str, str, Callable[[RunResult], float | None]]] = (
        ("latency", "latency of a query", "median milliseconds per query", lambda run: run.latency.p50_ms if run.latency else None),
        ("bytes", "size of the index", "megabytes", lambda run: run.bytes / 1e6 if run.bytes is not None else None),
    )
    measure, pictures = data.measures[0], []
    for direction in data.directions:
        for name, title, axis, cost_of in costs:
            found = [(run, cost) for run in data.runs_in(direction) if (cost := cost_of(run))]
            points = [(data.places[run.name], system_of(run.name), cost, run.evaluation.means[measure], data.interval(run, measure)) for run, cost in found]
            if points:
                svg = cost_figure(f"{name}{direction}", points, axis, measure, data.subject)
                pictures.append(picture(svg, f"{measure} against {title}{_way(direction)}", "Up and to the left is better. Lines are 95 % intervals."))
    return pictures


def _way(direction: str) -> str:
    """A direction at the end of a title."""
    return f", {in_words(direction)}" if direction else ""


def _changed(data: ReportData, changes: Changes) -> dict[str, Any]:
    """The picture of the per-query differences between subject and baseline, with the queries at both ends."""
    differences, direction = changes.differences, direction_of(changes.subject)
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    equal = len(differences) - better - worse
    caption = f"{wording.count(better, 'query', 'queries')} better, {worse:,} worse, {equal:,} unchanged."
    title = f"{data.subject} against {data.baseline}, query by query{_way(direction)}"
    return {
        "picture": picture(differences_figure(f"differences{direction}", differences, data.measures[0]), title, caption),
        "improved": [_query(data, change) for change in changes.improved],
        "hurt": [_query(data, change) for change in changes.hurt],
    }


def _query(data: ReportData, change: Change) -> QueryChange:
    query_id = change.query_id
    text = wording.shortened(data.query_texts.get(query_id, query_id), LONGEST_QUERY)
    shown = data.shown
    if shown is None:
        return QueryChange(text, change.before, change.after)
    image = ShownImage(shown.thumbnails.get(shown.queries[query_id], ""), text) if query_id in shown.queries else None
    return QueryChange(text, change.before, change.after, image, [_found(document, shown.thumbnails) for document in shown.found.get(query_id, ())])


def _found(document: ShownDocument, thumbnails: Mapping[str, str]) -> FoundDocument:
    image = None if document.text else ShownImage(thumbnails.get(document.thumbnail, ""), document.doc_id)
    rank = f"{document.rank:,}" if document.rank else "\N{EN DASH}"
    return FoundDocument(rank, document.relevant, image, wording.shortened(document.text, LONGEST_CAPTION))


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
