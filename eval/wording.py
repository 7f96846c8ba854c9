"""The report's words: numbers as people read them, and the one sentence that says what came out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from retriever.eval.directions import direction_of, in_words, system_of
from retriever.eval.report import ReportData, RunResult
from retriever.eval.significance import Comparison, cluster_numbers

SIGNIFICANT = 0.05
HINTED = 6


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One sentence, and how it should look."""

    sentence: str
    tone: Literal["gain", "loss", "unclear"]


def verdict(data: ReportData) -> Verdict:
    """What the first measure says of the subject against its baseline, honestly when it lost or nothing is shown; of each direction in turn."""
    found = [(direction_of(subject), _verdict(data, subject, baseline)) for subject, baseline in data.held_against]
    if len(found) == 1:
        return found[0][1]
    sentences = [f"{in_words(direction).capitalize()}: {one.sentence[:1].lower()}{one.sentence[1:]}" for direction, one in found]
    tones = {one.tone for _, one in found}
    return Verdict(" ".join(sentences), tones.pop() if len(tones) == 1 else "unclear")


def _verdict(data: ReportData, subject_run: str, baseline_run: str) -> Verdict:
    """Of one direction."""
    measure = data.measures[0]
    found = next((one for one in data.comparisons if (one.run, one.baseline, one.measure) == (subject_run, baseline_run, measure)), None)
    if found is None:
        return Verdict(_leader(data, direction_of(subject_run)), "unclear")
    subject, baseline = _subject(system_of(found.run)), _baseline(system_of(found.baseline))
    corrected = " after correction for several comparisons" if len(data.comparisons) > 1 else ""
    asked = queries(found.queries, found.clusters, data.clustered_by)
    evidence = f"({p_value(found.p_value_corrected)}{corrected}, {asked})"
    if found.difference == 0 and found.better == found.worse == 0:
        return Verdict(f"{subject} and {baseline} have the same {measure} on every query ({asked}).", "unclear")
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


def queries(number: int, clusters: int | None = None, clustered_by: str = "conversation") -> str:
    """Queries and what they come from: "1,455 queries in 247 conversations", "60 queries of 20 images"; without that where each stands alone."""
    asked = count(number, "query", "queries")
    if clusters is None or (clustered_by == "image" and clusters == number):
        return asked
    return f"{asked} {'of' if clustered_by == 'image' else 'in'} {count(clusters, clustered_by, f'{clustered_by}s')}"


def clusters(data: ReportData, run: RunResult | None = None) -> int | None:
    """How many conversations the report's tests and intervals took as wholes, of a run's queries or of the first one's; None where single queries."""
    if data.clusters is None or not data.runs:
        return None
    return len(set(cluster_numbers((run or data.runs[0]).evaluation.query_ids, data.clusters).tolist()))


def means_over(data: ReportData) -> str:
    """What the means of the runs are over: their queries, in each direction."""
    first = [(way, run) for way in data.directions for run in data.runs_in(way)[:1]]
    asked = [(way, queries(len(run.evaluation), clusters(data, run), data.clustered_by)) for way, run in first]
    return " and ".join(f"{words} from {in_words(way)}" if way else words for way, words in asked)


def whole(clustered_by: str) -> str:
    """What intervals and tests took as wholes."""
    return "whole conversations" if clustered_by == "conversation" else f"{clustered_by}s with all their captions"


def why_clusters(data: ReportData) -> str:
    """Why single queries are not what is flipped and drawn."""
    if data.clustered_by == "image":
        return "Captions of one image are alike, so tests and intervals take images with all their captions."
    return (
        f"Turns of one conversation are alike, so tests and intervals take whole conversations, {clusters(data):,} in all; "
        "a query outside conversations counts as one."
    )


def folds(number: int) -> str:
    """What cross-validation by conversation means for the numbers."""
    return (
        f"The conversations were split into {number} folds, and every query was scored by a student that did not see its conversation: "
        f"the results are those of {number} students together."
    )


def hints(data: ReportData) -> list[str]:
    """For the terminal: the subject's zero-shot accuracy, its first measure in the groups of the first facet, and what else the report tells apart."""
    found = data.zero_shot
    named = found and found.accuracies.get(data.subject)
    lines = [f"zero-shot {found.field} of {data.subject}: {named.value:.3f} ({count(found.images, 'image', 'images')})"] if found and named else []
    if not data.facets:
        return lines
    table, *others = data.facets
    means = [(group.label, _of_subject(data, group.means).get(data.measures[0])) for group in table.groups[:HINTED]]
    told = [f"{label} {mean:.3f}" for label, mean in means if mean is not None] + (["..."] if len(table.groups) > HINTED else [])
    lines.append(f"{data.measures[0]} of {data.subject} by {table.name}: {', '.join(told)}")
    return lines + ([f"report.html has it by {', '.join(other.name for other in others)} too"] if others else [])


def _of_subject(data: ReportData, means: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
    """The subject's means among those of the runs of one direction."""
    return next((found for name, found in means.items() if system_of(name) == data.subject), {})


def shortened(text: str, longest: int) -> str:
    """A text on one line, cut after a word where it is longer than `longest` characters."""
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= longest else one_line[:longest].rsplit(" ", 1)[0] + " …"


def _leader(data: ReportData, direction: str = "") -> str:
    measure, runs = data.measures[0], data.runs_in(direction)
    if not runs:
        return "There is no run to report."
    best = max(runs, key=lambda run: run.evaluation.means[measure])
    value, asked = best.evaluation.means[measure], queries(len(best.evaluation), clusters(data, best), data.clustered_by)
    return f"{_subject(system_of(best.name))} has the highest {measure}, {value:.3f} ({asked}); {data.subject} was not tested against {data.baseline}."


def _subject(name: str) -> str:
    return "The student" if name == "student" else name


def _baseline(name: str) -> str:
    return "its start" if name == "student_before" else name
