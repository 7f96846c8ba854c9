"""The report's words: numbers as people read them, and the one sentence that says what came out."""

from __future__ import annotations

import dataclasses
from typing import Literal

from retriever.eval.report import ReportData
from retriever.eval.significance import Comparison

SIGNIFICANT = 0.05


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One sentence, and how it should look."""

    sentence: str
    tone: Literal["gain", "loss", "unclear"]


def verdict(data: ReportData) -> Verdict:
    """What the first measure says of the subject against its baseline, honestly when it lost or nothing is shown."""
    measure = data.measures[0]
    found = next((one for one in data.comparisons if (one.run, one.baseline, one.measure) == (data.subject, data.baseline, measure)), None)
    if found is None:
        return Verdict(_leader(data), "unclear")
    subject, baseline = _subject(found.run), _baseline(found.baseline)
    corrected = " after correction for several comparisons" if len(data.comparisons) > 1 else ""
    evidence = f"({p_value(found.p_value_corrected)}{corrected}, {count(found.queries, 'query', 'queries')})"
    if found.difference == 0 and found.better == found.worse == 0:
        return Verdict(f"{subject} and {baseline} have the same {measure} on every query ({count(found.queries, 'query', 'queries')}).", "unclear")
    if not is_significant(found):
        whom = f"{subject[0].lower()}{subject[1:]} against {baseline}"
        return Verdict(f"No gain or loss is shown: {signed(found.difference)} {measure} for {whom} {evidence}.", "unclear")
    if found.difference > 0:
        return Verdict(f"{subject} gains {signed(found.difference)} {measure} over {baseline} {evidence}.", "gain")
    return Verdict(f"{subject} loses {abs(found.difference):.3f} {measure} against {baseline} {evidence}.", "loss")


def is_significant(comparison: Comparison) -> bool:
    """Whether the corrected p-value is below 0.05."""
    return comparison.p_value_corrected < SIGNIFICANT


def signed(value: float) -> str:
    """A difference with its sign, three decimals and a true minus sign; "0.000" where nothing is left of it."""
    rounded = round(value, 3)
    return "0.000" if rounded == 0 else f"{rounded:+.3f}".replace("-", "\N{MINUS SIGN}")


def p_value(value: float) -> str:
    """A p-value as a paper prints it, not to be broken over lines: "p = 0.034", "p < 0.0001"."""
    if value < 0.0001:
        return "p\N{NO-BREAK SPACE}<\N{NO-BREAK SPACE}0.0001"
    return f"p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{value:.{4 if value < 0.01 else 3 if value < 0.1 else 2}f}"


def milliseconds(value: float) -> str:
    """A time with three figures: "0.85 ms", "12.3 ms", "1,240 ms"."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


def speed(per_second: float) -> str:
    """How many in a second: "0.42", "23.1", "12,400"; a dash where nothing was measured."""
    if not per_second:
        return "\N{EN DASH}"
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.1f}" if per_second >= 10 else f"{per_second:.2f}"


def size(value: float) -> str:
    """Bytes in decimal units: "512 B", "7.9 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def count(number: int, one: str, several: str) -> str:
    """A number with its noun: "1 query", "6,980 queries"."""
    return f"{number:,} {one if number == 1 else several}"


def shortened(text: str, longest: int) -> str:
    """A text on one line, cut after a word where it is longer than `longest` characters."""
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= longest else one_line[:longest].rsplit(" ", 1)[0] + " …"


def _leader(data: ReportData) -> str:
    measure = data.measures[0]
    if not data.runs:
        return "There is no run to report."
    best = max(data.runs, key=lambda run: run.evaluation.means[measure])
    value, queries = best.evaluation.means[measure], count(len(best.evaluation), "query", "queries")
    return f"{_subject(best.name)} has the highest {measure}, {value:.3f} ({queries}); {data.subject} was not tested against {data.baseline}."


def _subject(name: str) -> str:
    return "The student" if name == "student" else name


def _baseline(name: str) -> str:
    return "its start" if name == "student_before" else name
