"""A teacher that remembers what it was asked for, as `kind = "tests.counting_teacher"` in an experiment file."""

from __future__ import annotations

from retriever.resources import Resources
from retriever.settings.teacher import PrivateSettings
from tests.scoring_material import LoggingTeacher


def load(settings: PrivateSettings, resources: Resources) -> LoggingTeacher:
    """The teacher of an experiment file; its scores are those of `score_of`."""
    del resources
    return LoggingTeacher(shard_pairs=20, name=settings.label)
