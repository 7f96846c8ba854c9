"""What scoring would cost, measured on a few pairs, before any is scored."""

from __future__ import annotations

import dataclasses

from retriever.pipeline import Pipeline
from retriever.steps.cascade import planned_pairs
from retriever.steps.score import tell_notes


@dataclasses.dataclass(frozen=True)
class TeacherPlan:
    """A teacher's share of the work: pairs of both splits that are pending and done, seconds and bytes for the pending ones."""

    teacher: str
    pending: int
    done: int
    seconds: float
    bytes: int


def estimate(pipeline: Pipeline) -> list[TeacherPlan]:
    """One plan a teacher. Teachers are loaded, and taught if they must be, because only a measured speed is an estimate."""
    plans, asked = [], planned_pairs(pipeline)
    for name, teacher in pipeline.teachers.items():
        tell_notes(pipeline, teacher)
        parts = [(of_split, pipeline.queries_of(name, split)) for split, of_split in asked[name].items()]
        counts = [pipeline.store.plan(teacher.identity, *part) for part in parts]
        seconds = sum(pipeline.store.estimate_seconds(teacher, *part) for part in parts)
        plans.append(TeacherPlan(name, sum(c.pending for c in counts), sum(c.done for c in counts), seconds, sum(c.estimated_bytes for c in counts)))
    return plans
