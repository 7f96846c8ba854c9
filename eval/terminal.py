"""The report as a table in the terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table
from rich.text import Text

from retriever.eval.directions import system_of
from retriever.eval.report import ReportData, RunResult
from retriever.eval.wording import hints, is_significant, milliseconds, size


def terminal_table(data: ReportData) -> Table:
    """Runs by measures, latency and size; the best of each measure in bold, a star where the run beats its baseline significantly; below it the facets."""
    table = Table(title=data.title, title_justify="left", caption=_caption(data), caption_justify="left")
    table.add_column("run", no_wrap=True)
    for measure in data.measures:
        table.add_column(measure, justify="right", no_wrap=True)
    extra = _extra_columns(data)
    for heading, _ in extra:
        table.add_column(heading, justify="right", no_wrap=True)
    for run in data.runs:
        if data.begins(run):
            table.add_section()
        values = [_value(data, run, measure) for measure in data.measures]
        table.add_row(Text(run.name), *values, *(Text(cell(run)) for _, cell in extra))
    return table


def _value(data: ReportData, run: RunResult, measure: str) -> Text:
    mean = run.evaluation.means[measure]
    starred = any(
        one.run == run.name and one.measure == measure and one.difference > 0 and is_significant(one)
        for one in data.comparisons
        if system_of(one.baseline) == data.baseline
    )
    return Text(f"{mean:.3f}{'*' if starred else ' '}", style="bold" if data.is_best(run, measure) else "")


def _extra_columns(data: ReportData) -> list[tuple[str, Callable[[RunResult], str]]]:
    columns: list[tuple[str, Callable[[RunResult], str]]] = []
    ranks = data.median_ranks
    if ranks:
        columns.append(("median rank", lambda run: f"{ranks[run.name].value:g}" if run.name in ranks else ""))
    if any(run.latency for run in data.runs):
        columns += [
            ("p50", lambda run: milliseconds(run.latency.p50_ms) if run.latency else ""),
            ("p99", lambda run: milliseconds(run.latency.p99_ms) if run.latency else ""),
        ]
    if any(run.bytes is not None for run in data.runs):
        columns.append(("index", lambda run: size(run.bytes) if run.bytes is not None else ""))
    return columns


def _caption(data: ReportData) -> str | None:
    tested = any(system_of(one.baseline) == data.baseline for one in data.comparisons)
    lines = [f"* better than {data.baseline}, corrected p < 0.05"] if tested else []
    return "\n".join([*lines, *hints(data)]) or None
