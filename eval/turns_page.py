"""The report's sections on conversations: results by turn and by whatever else tells queries apart, and on other collections."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from retriever.eval import wording
from retriever.eval.directions import direction_of, system_of
from retriever.eval.facets import TURN_DEPTH, FacetGroup, FacetTable
from retriever.eval.figures import SERIES, conversations_figure, depth_figure
from retriever.eval.report import ReportData
from retriever.eval.significance import Comparison
from retriever.eval.template import Picture, picture

GROUPS_SHOWN = 12


@dataclasses.dataclass(frozen=True)
class Cell:
    """A number with smaller lines below it, each with its tone: "gain", "loss" or none."""

    label: str
    value: str
    lines: Sequence[tuple[str, str]] = ()
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """A run, or a run against another; only a run has the number of its colour."""

    name: str
    small: str
    cells: Sequence[Cell]
    series: int | None = None
    subject: bool = False


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table of runs by groups of queries; each heading has a smaller line below it."""

    title: str
    headings: Sequence[tuple[str, str]]
    rows: Sequence[Row]
    note: str


def by_turn(data: ReportData) -> dict[str, Any] | None:
    """The section's title, pictures and tables; None where queries are not told apart."""
    pictures = [*_depth_pictures(data), *_conversation_pictures(data)]
    if not data.facets and not pictures:
        return None
    return {"title": "By turn" if pictures else "By group", "pictures": pictures, "tables": [_facet_grid(data, table) for table in data.facets]}


def elsewhere(data: ReportData) -> Grid | None:
    """Runs by collections in the first measure, the one that was trained for first; None where there is no other."""
    if not data.transfer:
        return None
    measure = data.measures[0]
    places = data.places
    names = dict.fromkeys([*places, *(name for transfer in data.transfer for name in transfer.means)])
    headings = [
        ("in domain", data.collection),
        *((transfer.name, wording.queries(transfer.queries, transfer.clusters, data.clustered_by)) for transfer in data.transfer),
    ]
    here = {run.name: (run.evaluation.means[measure], data.interval(run, measure)) for run in data.runs}
    there = [{name: (found[measure], transfer.intervals[name][measure]) for name, found in transfer.means.items()} for transfer in data.transfer]
    columns = [(here, data.comparisons), *((found, transfer.comparisons) for found, transfer in zip(there, data.transfer, strict=True))]

    def cells(name: str) -> list[Cell]:
        return [_collection_cell(data, heading, name, found, tested) for (heading, _), (found, tested) in zip(headings, columns, strict=True)]

    note = (
        f"{measure}, below it the 95\N{NO-BREAK SPACE}% bootstrap interval; the best of each collection is bold. What {data.subject} gains on a run or loses "
        "against it stands in the run's row, coloured where the p-value of the paired randomisation test, after Holm's correction over the comparisons of "
        "that collection, is below 0.05. Nothing was trained or chosen on the other collections."
    )
    return Grid(f"{measure} out of domain", headings, [_run_row(data, name, cells(name), places.get(name)) for name in names], note)


def _collection_cell(
    data: ReportData, heading: str, name: str, found: Mapping[str, tuple[float, tuple[float, float]]], comparisons: Iterable[Comparison]
) -> Cell:
    """A run on a collection, and what the subject gains on it there."""
    if name not in found:
        return Cell(heading, "")
    mean, (low, high) = found[name]
    lines = [(f"{low:.3f} to {high:.3f}", "")]
    for one in comparisons:
        if (system_of(one.run), one.baseline, one.measure) == (data.subject, name, data.measures[0]):
            tone = ("gain" if one.difference > 0 else "loss") if wording.is_significant(one) else ""
            lines.append((f"{data.subject} {wording.signed(one.difference)}", tone))
    rivals = [mean for other, (mean, _) in found.items() if direction_of(other) == direction_of(name)]
    return Cell(heading, f"{mean:.3f}", lines, best=mean == max(rivals))


def _facet_grid(data: ReportData, table: FacetTable) -> Grid:
    """Runs by groups, then the differences of the pairs."""
    largest = sorted(table.groups, key=lambda group: -group.queries)[:GROUPS_SHOWN]
    groups = [group for group in table.groups if group in largest]
    first, *others = table.measures
    places = data.places
    runs = list(groups[0].means) if groups else []
    pairs = dict.fromkeys((one.run, one.baseline) for group in groups for one in group.differences)

    def cell(group: FacetGroup, run: str) -> Cell:
        means = group.means[run]
        best = len(runs) > 1 and means[first] == max(found[first] for found in group.means.values())
        return Cell(_narrow(group), f"{means[first]:.3f}", [(f"{means[measure]:.3f}", "") for measure in others[:1]], best)

    return Grid(
        title=f"{table.name[:1].upper()}{table.name[1:]}",
        headings=[(group.label, wording.count(group.queries, "query", "queries")) for group in groups],
        rows=[
            *(_run_row(data, run, [cell(group, run) for group in groups], places.get(run)) for run in runs),
            *(Row(run, f"against {baseline}", [_difference_cell(group, run, baseline, first) for group in groups]) for run, baseline in pairs),
        ],
        note=" ".join(_facet_note(table, shown=len(groups), pairs=bool(pairs))),
    )


def _difference_cell(group: FacetGroup, run: str, baseline: str, measure: str) -> Cell:
    found = next((one for one in group.differences if (one.run, one.baseline, one.measure) == (run, baseline, measure)), None)
    if found is None:
        return Cell(_narrow(group), "")
    lines = [(f"{wording.signed(found.interval[0])} to {wording.signed(found.interval[1])}", "")] if found.interval else []
    return Cell(_narrow(group), wording.signed(found.difference), lines)


def _narrow(group: FacetGroup) -> str:
    """A group as a narrow page names it, which has no row of headings."""
    return f"{group.label} ({group.queries:,})"


def _facet_note(table: FacetTable, shown: int, *, pairs: bool) -> Iterable[str]:
    first, *others = table.measures
    yield f"{first}{f', below it {others[0]}' if others else ''}."
    if table.note:
        yield table.note
    if pairs:
        yield "Differences with 95\N{NO-BREAK SPACE}% bootstrap intervals, not corrected for their number; none where a group is a single one."
    if table.unlabelled:
        yield f"{wording.count(table.unlabelled, 'query', 'queries')} in no group."
    if shown < len(table.groups):
        yield f"The {shown} largest of {len(table.groups)} groups; report.json has all."


def _run_row(data: ReportData, name: str, cells: Sequence[Cell], place: int | None) -> Row:
    return Row(name, "", cells, None if place is None else place % len(SERIES), system_of(name) == data.subject)


def _depth_pictures(data: ReportData) -> list[Picture]:
    table = next((table for table in data.facets if table.name == TURN_DEPTH and len(table.groups) > 1), None)
    if table is None:
        return []
    measure = table.measures[0]
    labels = [(group.label, group.queries) for group in table.groups]
    there = [(data.places[run.name], run.name) for run in data.runs if run.name in table.groups[0].means]
    lines = [(place, name, [group.means[name][measure] for group in table.groups]) for place, name in there]
    svg = depth_figure("depth", labels, lines, measure, data.subject)
    return [picture(svg, f"{measure} by turn", "How each run does as the conversation goes on.")]


def _conversation_pictures(data: ReportData) -> list[Picture]:
    means = data.conversations
    if not means:
        return []
    places = data.places
    (subject, of_subject), (baseline, of_baseline) = means.items()
    gained = np.array([of_subject[conversation] - of_baseline[conversation] for conversation in of_subject])
    better, worse = int((gained > 1e-12).sum()), int((gained < -1e-12).sum())
    groups = [(places[name], name, list(found.values())) for name, found in ((baseline, of_baseline), (subject, of_subject))]
    caption = (
        f"Means over each of {wording.count(len(gained), 'conversation', 'conversations')}. Against {baseline}, the best baseline, {subject} is better in "
        f"{better:,}, worse in {worse:,} and equal in {len(gained) - better - worse:,}."
    )
    return [picture(conversations_figure("conversations", groups, data.measures[0]), "Conversation by conversation", caption)]
