"""The audit of the teachers as a table in the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from retriever.eval.audit import Audit, TeacherFindings
from retriever.eval.directions import system_of
from retriever.eval.wording import is_significant, speed


def audit_table(audit: Audit) -> Table:
    """Baselines and teachers by measures, speed and truncation; the best of each measure in bold, a star where the start is beaten significantly."""
    queries = f"{audit.queries:,} held-out train queries"
    table = Table(title=f"{audit.title}: teachers on {queries}", title_justify="left", caption=_caption(audit), caption_justify="left")
    table.add_column("ranker", overflow="fold")
    for heading in (*audit.measures, "pairs/s", "truncated", "unit"):
        table.add_column(heading, justify="left" if heading == "unit" else "right", no_wrap=True)
    starred = {
        (one.run, one.measure)
        for one in (*audit.deciding, *audit.comparisons)
        if system_of(one.baseline) == _start(audit) and one.difference > 0 and is_significant(one)
    }
    for name, found in audit.everyone.items():
        values = [
            Text(f"{found.mean[measure]:.3f}{'*' if (name, measure) in starred else ' '}", style="bold" if audit.best(name, measure) else "")
            for measure in audit.measures
        ]
        costs = (speed(found.pairs_per_second), f"{100 * found.truncated:.1f} %", found.unit) if isinstance(found, TeacherFindings) else ("", "", "")
        table.add_row(Text(name), *values, *(Text(cost) for cost in costs))
    return table


def _start(audit: Audit) -> str:
    """The name of the starting student among the baselines."""
    return audit.deciding[0].baseline


def _caption(audit: Audit) -> str:
    return f"* better than {_start(audit)}, corrected p < 0.05"
