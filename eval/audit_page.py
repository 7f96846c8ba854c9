"""teachers.html: one page with everything that the audit of the teachers found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from retriever.eval import wording
from retriever.eval.audit import Audit, BaselineFindings, Suspect, Suspects, TeacherFindings
from retriever.eval.figures import SERIES, cost_figure, distribution_figure, reliability_figure
from retriever.eval.significance import Comparison
from retriever.eval.template import Picture, fill_template, picture


def render_audit(audit: Audit) -> str:
    """The page as one HTML text: no scripts, nothing loaded from elsewhere, the same for the same audit."""
    return fill_template(
        "audit.html.jinja",
        audit=audit,
        rows=_rows(audit),
        compared=_compared(audit),
        cost_picture=_cost_picture(audit),
        scores=[(name, found, _pictures(name, place, found)) for place, (name, found) in enumerate(audit.teachers.items())],
        has_ensemble=any(found.members for found in audit.teachers.values()),
        doubts={"false_negatives": _by_query(audit.false_negatives), "mislabelled": _by_query(audit.mislabelled)},
        ruined=[(name, _by_baseline(found)) for name, found in audit.teachers.items() if found.ruined],
    )


def _rows(audit: Audit) -> list[dict[str, Any]]:
    """Baselines and teachers with their numbers as words."""
    rows = []
    for place, (name, found) in enumerate(audit.everyone.items()):
        values = [
            {
                "measure": measure,
                "mean": f"{found.mean[measure]:.3f}",
                "interval": "{:.3f} to {:.3f}".format(*found.interval[measure]),
                "best": audit.best(name, measure),
            }
            for measure in audit.measures
        ]
        rows.append({"name": name, "series": place % len(SERIES), "description": _description(found), "values": values, "costs": _costs(audit, found)})
    return rows


def _description(found: BaselineFindings | TeacherFindings) -> str:
    if isinstance(found, BaselineFindings):
        return found.description
    return f"ensemble of {', '.join(found.members)}" if found.members else f"{found.kind.replace('_', ' ')}, {found.unit.replace('_', ' ')}"


def _costs(audit: Audit, found: BaselineFindings | TeacherFindings) -> list[tuple[str, str]]:
    """What a teacher costs, by heading, where there is anything to say of one of them; nothing for a baseline."""
    columns: list[tuple[str, Callable[[TeacherFindings], float], Callable[[float], str]]] = [
        ("pairs/s", lambda teacher: teacher.pairs_per_second, wording.speed),
        ("truncated", lambda teacher: teacher.truncated, _percent),
        ("mended", lambda teacher: teacher.mended, _percent),
        ("tokens", lambda teacher: teacher.tokens, lambda value: f"{value:,.0f}" if value else "\N{EN DASH}"),
        ("stored", lambda teacher: teacher.bytes, wording.size),
        ("price", lambda teacher: teacher.price, lambda value: f"{value:,.2f}"),
    ]
    shown = [column for column in columns if any(column[1](teacher) for teacher in audit.teachers.values())]
    return [(heading, words(value_of(found)) if isinstance(found, TeacherFindings) else "") for heading, value_of, words in shown]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def _compared(audit: Audit) -> list[tuple[str, str, list[Comparison]]]:
    """Run, baseline and their comparisons in the order of the measures; those with the start come first."""
    together = [*audit.deciding, *audit.comparisons]
    pairs = dict.fromkeys((one.run, one.baseline) for one in together)
    by_measure = {(one.run, one.baseline, one.measure): one for one in together}
    return [(run, baseline, [by_measure[run, baseline, measure] for measure in audit.measures]) for run, baseline in pairs]


def _cost_picture(audit: Audit) -> Picture | None:
    measure, first = audit.measures[0], len(audit.baselines)
    points = [
        (first + place, name, 1 / found.pairs_per_second, found.mean[measure], found.interval[measure])
        for place, (name, found) in enumerate(audit.teachers.items())
        if found.pairs_per_second
    ]
    if not points:
        return None
    bold = next(iter(audit.verdict.distil), "")
    svg = cost_figure(
        "cost", [(place, name, 1000 * cost, mean, interval) for place, name, cost, mean, interval in points], "milliseconds per pair", measure, bold
    )
    return picture(svg, f"{measure} against the time for a pair", "Up and to the left is better. Lines are 95 % intervals; what the verdict names is bold.")


def _pictures(name: str, place: int, found: TeacherFindings) -> list[Picture]:
    spread, separation = found.spread, 100 * found.distribution.separation
    caption = (
        f"Judged relevant documents against all other candidates; a relevant one outscores another {separation:.1f} % of the time. "
        f"Standard deviation {spread.within:.3g} within lists, {spread.between:.3g} between them."
    )
    pictures = [picture(distribution_figure(f"scores{place}", found.distribution), f"Scores of {name}", caption)]
    if fit := found.calibration:
        bins = [(one.probability, one.share, one.pairs) for one in fit.bins]
        caption = (
            f"After Platt's fit, on {wording.count(fit.pairs, 'judged pair', 'judged pairs')} ({fit.relevant:,} relevant), each from a fit to other queries. "
            f"Expected calibration error {fit.error:.3f}."
        )
        pictures.append(picture(reliability_figure(f"reliability{place}", bins), f"Reliability of {name}", caption))
    return pictures


def _by_baseline(found: TeacherFindings) -> list[tuple[str, Sequence[Any]]]:
    """Baseline and the queries that the teacher ranks worse."""
    baselines = dict.fromkeys(lost.baseline for lost in found.ruined)
    return [(baseline, [lost for lost in found.ruined if lost.baseline == baseline]) for baseline in baselines]


def _by_query(found: Suspects) -> list[tuple[str, list[Suspect]]]:
    """Query id and what is in doubt there, the clearest first."""
    query_ids = dict.fromkeys(one.query_id for one in found.listed)
    return [(query_id, [one for one in found.listed if one.query_id == query_id]) for query_id in query_ids]
