"""Which teacher to distil, decided by stated rules from held-out numbers, and the reason in sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from retriever.eval.audit import AuditVerdict
from retriever.eval.significance import Comparison
from retriever.eval.wording import count, is_significant, p_value, signed


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What may be distilled.

    Attributes:
        name: of a teacher or an ensemble.
        mean: of the first measure over the held-out queries.
        against_start: its comparison with the starting student in that measure.
        members: an ensemble's teachers; empty for a single one.
        against_members: member -> the ensemble's comparison with it.
    """

    name: str
    mean: float
    against_start: Comparison
    members: tuple[str, ...] = ()
    against_members: Mapping[str, Comparison] = dataclasses.field(default_factory=dict)


def judge(candidates: Sequence[Candidate], between: Sequence[Comparison] = ()) -> AuditVerdict:
    """Distil the best of those that are above the starting student; nothing when none is.

    Above the start means: more in the mean, and significant after correction for all candidates. The best has the highest mean; of equal ones a
    single teacher goes before an ensemble. An ensemble that is not above each of its members in the mean is not chosen while another may be, and
    the reason says so of every such ensemble.

    Args:
        candidates: one at least.
        between: every two single teachers in the first measure, for the sentence that orders them.
    """
    above = [one for one in candidates if one.against_start.difference > 0 and is_significant(one.against_start)]
    worth_it = [one for one in above if not _members_not_below(one)] or above
    if not worth_it:
        return AuditVerdict((), " ".join([_why_none(candidates), *_failed_ensembles(candidates), *_order(candidates, between)]))
    best = max(worth_it, key=lambda one: (one.mean, not one.members))
    return AuditVerdict((best.name,), " ".join([_why(best), *_failed_ensembles(candidates), *_order(candidates, between)]), best.members)


def _why(best: Candidate) -> str:
    what = f"{best.name}, the ensemble of {', '.join(best.members)}" if best.members else best.name
    sentence = f"Distil {what}: {_difference(best.against_start)} over the starting student on {_queries(best)}."
    if not best.members or _members_not_below(best):
        return sentence
    name, nearest = min(best.against_members.items(), key=lambda item: item[1].difference)
    shown = "" if is_significant(nearest) else ", which may be chance: distilling that member alone is as well supported"
    return f"{sentence} It is above each of its members; the nearest is {name}, by {_difference(nearest)}{shown}."


def _why_none(candidates: Sequence[Candidate]) -> str:
    best = max(candidates, key=lambda one: (one.mean, not one.members))
    found = best.against_start
    which = f"the teacher {best.name} is not" if len(candidates) == 1 else "no teacher is"
    sentence = f"Distil none: {which} shown to be above the starting student on {_queries(best)}."
    if found.difference <= 0:
        return f"{sentence} The best, {best.name}, differs by {_difference(found)}."
    return (
        f"{sentence} The best, {best.name}, gains {_difference(found)}; so small a gain needs more held-out queries to be shown "
        "(training.validation_fraction and training.validation_queries), or a better teacher."
    )


def _failed_ensembles(candidates: Sequence[Candidate]) -> list[str]:
    """A sentence on every ensemble that is not above each of its members."""
    sentences = []
    for one in candidates:
        failed = _members_not_below(one)
        if failed:
            listed = ", ".join(f"{name} ({_difference(one.against_members[name])})" for name in failed)
            named = "The ensemble" if one.name == "ensemble" else f"The ensemble {one.name}"
            sentences.append(f"{named} is not above each of its members: not above {listed}.")
    return sentences


def _order(candidates: Sequence[Candidate], between: Sequence[Comparison]) -> list[str]:
    """A sentence that holds every single teacher against the best of them; none where there is one."""
    p_values = {frozenset((one.run, one.baseline)): one.p_value_corrected for one in between}
    best, *others = sorted((one for one in candidates if not one.members), key=lambda one: -one.mean)
    listed = [
        f"{one.name} {signed(one.mean - best.mean)} ({p_value(p_values[pair])})" for one in others if (pair := frozenset((best.name, one.name))) in p_values
    ]
    return [f"Of the single teachers {best.name} ranks best, {best.against_start.measure} {best.mean:.3f}; {', '.join(listed)}."] if listed else []


def _members_not_below(ensemble: Candidate) -> list[str]:
    return [name for name, comparison in ensemble.against_members.items() if comparison.difference <= 0]


def _difference(found: Comparison) -> str:
    low, high = found.interval
    return f"{signed(found.difference)} {found.measure} (95\N{NO-BREAK SPACE}% interval {signed(low)} to {signed(high)}, {p_value(found.p_value_corrected)})"


def _queries(candidate: Candidate) -> str:
    return count(candidate.against_start.queries, "held-out query", "held-out queries")
