"""Who can make something of an image: what of an experiment reads texts alone is refused once its collection is known to have images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from retriever.errors import ConfigError

if TYPE_CHECKING:
    from retriever.collection import Collection
    from retriever.config import Experiment

WORD_SOURCES = ("bm25", "lucene")
"""Sources of candidates, and rankers of stages, that find by words."""

TEXT_STUDENTS = ("dense", "sparse", "late_interaction", "static", "cross_encoder")
TEXT_TEACHERS = ("lexical", "cross_encoder", "llm", "llm_listwise")
TEXT_FAMILIES = ("dense", "sparse", "late_interaction", "static")
"""Of embedding teachers that name a model."""


def check_readers(experiment: Experiment, collection: Collection) -> None:
    """Sees to it that nothing of the experiment is asked what an image without a text says, unless it sees.

    Raises:
        ConfigError: something reads texts alone; the message says what can take its place.
    """
    if collection.has_images and (problem := next(_problems(experiment), None)):
        counts = collection.counts
        found = f"{counts['images']:,} documents and {counts['image_queries']:,} queries that are images without a text"
        raise ConfigError(f'{problem[0]}, and the collection "{collection.name}" has {found}. {problem[1]}')


def _problems(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """What reads texts alone, and what to do about it."""
    for source in experiment.candidates.sources:
        if source in WORD_SOURCES:
            yield f'candidates.sources: "{source}" finds by words', 'Set candidates.sources = ["student"], or name a run\'s file'
    if experiment.student.kind in TEXT_STUDENTS:
        yield f'student.kind: a student of the kind "{experiment.student.kind}" reads texts alone', 'Set student.kind = "image_text"'
    for teacher in experiment.teacher:
        own_model = getattr(teacher, "model", None) not in (None, "student")
        family = str(getattr(teacher, "family", "")) if own_model else ""
        if teacher.kind in TEXT_TEACHERS or (teacher.kind == "embedding" and family in TEXT_FAMILIES):
            what = f'kind "{teacher.kind}"' + f' and the family "{family}"' * bool(family)
            instead = 'Take kind = "embedding" with family = "image_text", kind = "fusion", or kind = "run" for scores made elsewhere'
            yield f"teacher {teacher.label}: one of the {what} reads texts alone", instead
    for number, stage in enumerate(experiment.stage):
        if "bm25" in stage.by:
            yield f'stage.{number}.by: "bm25" finds by words', 'Name "student" there'
