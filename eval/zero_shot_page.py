"""The report's table of zero-shot classification."""

from __future__ import annotations

from retriever.eval import wording
from retriever.eval.directions import system_of
from retriever.eval.figures import SERIES
from retriever.eval.report import ReportData
from retriever.eval.turns_page import Cell, Grid, Row


def zero_shot_grid(data: ReportData) -> Grid | None:
    """The accuracy of each student; None where nothing was classified."""
    found = data.zero_shot
    if found is None:
        return None
    colours = {system_of(run): place % len(SERIES) for run, place in data.places.items()}
    best = max((one.value for one in found.accuracies.values()), default=0.0)

    def row(name: str) -> Row:
        one = found.accuracies[name]
        interval = f"{one.interval[0]:.3f} to {one.interval[1]:.3f}"
        return Row(name, "", [Cell("accuracy", f"{one.value:.3f}", [(interval, "")], one.value == best)], colours.get(name), name == data.subject)

    note = (
        f'The name of an image is the one of {len(found.names)} whose text is nearest to it: "{found.template}", filled with each {found.field}. '
        f"Below the accuracy its 95\N{NO-BREAK SPACE}% bootstrap interval. The most frequent name alone is right {found.most_frequent:.3f} of the time."
    )
    heading = ("accuracy", wording.count(found.images, "image", "images"))
    return Grid(f"{found.field[:1].upper()}{found.field[1:]}", [heading], [row(name) for name in found.accuracies], note)
