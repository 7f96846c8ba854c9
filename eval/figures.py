"""The report's pictures: SVG texts that stand inside the page and take their colours from it.

matplotlib draws with stand-in colours; they are replaced by the page's CSS variables, so that one picture serves light and dark pages. The same
data give the same bytes: no date, no random ids. Pictures are drawn at a phone's width, where their letters are as large as the page's.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retriever.eval.curves import ScoreDistribution, TrainingCurve
from retriever.eval.wording import signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

INK, MUTED, LINE, PAPER, GAIN, LOSS = "#000001", "#000002", "#000003", "#000004", "#000005", "#000006"
SERIES = tuple(f"#0000a{number}" for number in range(8))
CSS_COLOURS: Mapping[str, str] = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    PAPER: "var(--paper)",
    GAIN: "var(--gain)",
    LOSS: "var(--loss)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)},
}
MARKERS = "osD^v<>p"
WIDTH_INCHES = 4.4  # 317 units: about the width of a phone
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def cost_figure(name: str, points: Sequence[tuple[int, str, float, float, tuple[float, float]]], cost: str, measure: str, bold: str) -> str:
    """Effectiveness against a cost on a logarithmic axis, each run named at its point.

    Args:
        name: of the picture; its ids begin with it.
        points: for each run: its place among the runs, name, cost, mean and 95 % interval.
        cost: what the horizontal axis says.
        measure: what the vertical axis says.
        bold: the run whose name is printed bold.
    """
    with _figure(name, 3.0) as (figure, svg):
        axes = figure.add_subplot()
        axes.set_xscale("log")
        for place, _, x, mean, (low, high) in points:
            colour, marker = SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]
            axes.plot([x, x], [low, high], color=colour, linewidth=1.4, alpha=0.45, solid_capstyle="round")
            axes.plot([x], [mean], marker=marker, color=colour, markersize=8, markeredgecolor=PAPER, markeredgewidth=0.8, linestyle="none")
        _log_axis(axes, [point[2] for point in points])
        axes.margins(y=0.12)
        axes.set(xlabel=cost, ylabel=measure)
        figure.draw_without_rendering()
        _name_points(axes, [point[1:] for point in points], bold)
    return svg[0]


def differences_figure(name: str, differences: NDArray[np.float64], measure: str) -> str:
    """One bar per query, sorted from the most improved to the most hurt, and the mean as a line."""
    ordered = np.sort(differences)[::-1]
    with _figure(name, 3.5) as (figure, svg):
        axes = figure.add_subplot()
        places = np.arange(len(ordered))
        for mask, colour in ((ordered > 0, GAIN), (ordered < 0, LOSS)):
            axes.fill_between(*_bars(places[mask], ordered[mask]), color=colour, linewidth=0)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.axhline(ordered.mean(), color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        gained = ordered.mean() >= 0  # the name of the line stands where no bars are: above it on the right, or below it on the left
        place, shift = (1.0, 3) if gained else (0.01, -3)
        name_of_line = axes.annotate(f"mean {signed(float(ordered.mean()))}", (place, ordered.mean()), (0, shift), ("axes fraction", "data"), "offset points")
        name_of_line.set(ha="right" if gained else "left", va="bottom" if gained else "top")
        axes.set_xlim(-0.5, len(ordered) - 0.5)
        axes.grid(visible=False, axis="x")
        axes.set(xlabel="queries, most improved first", ylabel=f"difference in {measure}")
    return svg[0]


def training_figure(name: str, curve: TrainingCurve) -> str:
    """Losses above, the validation measure below, the kept checkpoint marked; whatever there is of the two."""
    panels = [panel for panel, there in ((_draw_losses, curve.losses and curve.steps), (_draw_validation, curve.validation_steps)) if there]
    with _figure(name, 2.2 * len(panels) + 0.3) as (figure, svg):
        rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(rows, panels, strict=True):
            panel(axes, curve)
        rows[-1].set_xlabel("step")
    return svg[0]


def distribution_figure(name: str, distribution: ScoreDistribution) -> str:
    """Shares of positives and of negatives over the score."""
    with _figure(name, 2.0) as (figure, svg):
        axes = figure.add_subplot()
        groups = ((distribution.negatives, LOSS, "negatives"), (distribution.positives, GAIN, "positives"))
        for shares, colour, label in groups:
            axes.stairs([100 * share for share in shares], distribution.edges, fill=True, color=colour, alpha=0.35, linewidth=0)
            axes.stairs([100 * share for share in shares], distribution.edges, color=colour, linewidth=1.4, label=label, baseline=None)
        axes.set(xlabel=f"score ({distribution.unit.replace('_', ' ')})", ylabel="% of each kind", ylim=(0, None))
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0, handlelength=1.2)
    return svg[0]


def depth_figure(name: str, labels: Sequence[tuple[str, int]], lines: Sequence[tuple[int, str, Sequence[float]]], measure: str, bold: str) -> str:
    """A measure over the course of a conversation, a line for each run.

    Args:
        name: of the picture; its ids begin with it.
        labels: each turn's label and number of queries.
        lines: for each run: its place among the runs, name, and mean at each label.
        measure: what the vertical axis says.
        bold: the run whose line is thick.
    """
    with _figure(name, 2.7 + 0.17 * len(lines)) as (figure, svg):
        axes = figure.add_subplot()
        for place, label, values in lines:
            axes.plot(
                range(len(labels)),
                values,
                color=SERIES[place % len(SERIES)],
                marker=MARKERS[place % len(MARKERS)],
                label=label,
                linewidth=2.6 if label == bold else 1.2,
                markersize=6 if label == bold else 4.5,
                zorder=3 if label == bold else 2,
            )
        axes.set_xticks(range(len(labels)), [f"{label}\n{queries:,}" for label, queries in labels])
        axes.margins(x=0.05, y=0.1)
        axes.grid(visible=False, axis="x")
        axes.set(xlabel="turn of the user, below it the number of queries", ylabel=measure)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0, handlelength=1.8, columnspacing=1.2)
    return svg[0]


def conversations_figure(name: str, groups: Sequence[tuple[int, str, Sequence[float]]], measure: str) -> str:
    """Shares of conversations over their mean of a measure, one outline for each run.

    Args:
        name: of the picture; its ids begin with it.
        groups: for each run: its place among the runs, name, and mean of each conversation.
        measure: what the horizontal axis says; between 0 and 1.
    """
    edges = np.linspace(0, 1, 21 if len(groups[0][2]) >= 100 else 11)
    with _figure(name, 2.5) as (figure, svg):
        axes = figure.add_subplot()
        for place, label, means in groups:
            colour, shares = SERIES[place % len(SERIES)], 100 * np.histogram(means, edges)[0] / len(means)
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.3, linewidth=0)
            axes.stairs(shares, edges, color=colour, linewidth=1.4, label=label, baseline=None)
        axes.set(xlabel=f"mean {measure} of a conversation", ylabel="% of conversations", xlim=(0, 1), ylim=(0, None))
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0, handlelength=1.2)
    return svg[0]


def reliability_figure(name: str, bins: Sequence[tuple[float, float, int]]) -> str:
    """The share of relevant pairs over the calibrated probability, a point for each bin, larger with more pairs; on the diagonal is true.

    Args:
        name: of the picture.
        bins: mean probability, share of relevant pairs and number of pairs of each.
    """
    with _figure(name, 3.0) as (figure, svg):
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        probability, share, pairs = (np.array(column) for column in zip(*bins, strict=True))
        axes.scatter(probability, share, s=20 + 180 * pairs / pairs.max(), color=SERIES[0], edgecolor=PAPER, linewidth=0.8, zorder=3)
        axes.set(xlabel="probability from the score", ylabel="share that is relevant", xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
    return svg[0]


@contextmanager
def _figure(name: str, height: float) -> Iterator[tuple[Figure, list[str]]]:
    """A figure to draw on, and a list that holds its SVG text once the block has ended."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    svg: list[str] = []
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        yield figure, svg
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg.append(_for_the_page(stream.getvalue(), name))


def _for_the_page(svg: str, name: str) -> str:
    """The <svg> element alone, with the page's colours and letters and with ids that no other picture has."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>\s*", "", element, flags=re.DOTALL)
    element = re.sub(r'\bid="', f'id="{name}-', element)
    element = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", element)
    element = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", element, count=1), count=1)
    for stand_in, colour in CSS_COLOURS.items():
        element = element.replace(stand_in, colour)
    return element.replace("'DejaVu Sans'", "var(--letters)").strip()


def _draw_losses(axes: Axes, curve: TrainingCurve) -> None:
    values = np.array([value for series in curve.losses.values() for value in series])
    positive = values[np.isfinite(values) & (values > 0)]
    if len(positive) and (values[np.isfinite(values)] > 0).all() and positive.max() > 30 * positive.min():
        axes.set_yscale("log")
    for place, (label, series) in enumerate(curve.losses.items()):
        axes.plot(curve.steps, series, color=SERIES[place % len(SERIES)], label=label.replace("_", " "))
    axes.set_ylabel("loss")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0, handlelength=1.2, columnspacing=1.2)


def _draw_validation(axes: Axes, curve: TrainingCurve) -> None:
    axes.plot(curve.validation_steps, curve.validation, color=SERIES[0], marker="o", markersize=4)
    axes.set_ylabel(curve.validation_measure.split(" ")[0])
    axes.margins(y=0.2)
    if curve.chosen_step is None or curve.chosen_step not in curve.validation_steps:
        return
    value = curve.validation[list(curve.validation_steps).index(curve.chosen_step)]
    axes.plot([curve.chosen_step], [value], marker="o", markersize=10, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.5)
    middle = (curve.validation_steps[0] + curve.validation_steps[-1]) / 2
    right = curve.chosen_step > middle
    axes.annotate(f"kept: {value:.3f}", (curve.chosen_step, value), (-9 if right else 9, 5), textcoords="offset points", ha="right" if right else "left")


def _bars(places: NDArray[np.int64], heights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The outline of bars that touch: a thousand bars are one shape instead of a thousand."""
    return np.repeat(places, 2) + np.tile([-0.5, 0.5], len(places)), np.repeat(heights, 2)


def _log_axis(axes: Axes, costs: Sequence[float]) -> None:
    """Room on both sides for names, and 1, 2, 5 as plain numbers where the axis spans little."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(costs), max(costs)
    room = max(1.6, (high / low) ** 0.2)
    axes.set_xlim(low / room, high * room)
    short = high / low < 30
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if short else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _name_points(axes: Axes, points: Sequence[tuple[str, float, float, tuple[float, float]]], bold: str) -> None:
    """Prints each name beside its point, at the first place where it covers no other name, no point, no line and no edge."""
    from matplotlib.transforms import Bbox

    at = [axes.transData.transform((x, mean)) for _, x, mean, _ in points]
    lines = [axes.transData.transform([(x, low), (x, high)]) for _, x, _, (low, high) in points]
    taken = [Bbox.from_extents(x - 7, y - 7, x + 7, y + 7) for x, y in at] + [Bbox.from_extents(x - 2, low, x + 2, high) for (x, low), (_, high) in lines]
    for (label, *_), (x, y) in zip(points, at, strict=True):
        text = axes.text(0, 0, label, transform=None, fontsize=9, fontweight="bold" if label == bold else "normal", va="center", zorder=5)
        size = text.get_window_extent()
        box = next(_places(axes.bbox, taken, x, y, size.width, size.height))
        text.set_transform(axes.transAxes)
        left, middle = axes.transAxes.inverted().transform((box.x0, (box.y0 + box.y1) / 2))
        text.set_position((float(left), float(middle)))
        taken.append(box)


def _places(frame: Bbox, taken: Sequence[Bbox], x: float, y: float, width: float, height: float) -> Iterator[Bbox]:
    """Places for a name near (x, y), free ones only; the plain one to the right when none is free."""
    from matplotlib.transforms import Bbox

    for up in sorted(np.linspace(-4, 4, 17) * height, key=abs):
        for left in (x + 9, x - 9 - width, x - width / 2):
            box = Bbox.from_bounds(left, y + up - height / 2, width, height)
            if frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 and not box.count_overlaps(taken):
                yield box
    yield Bbox.from_bounds(x + 9, y - height / 2, width, height)
