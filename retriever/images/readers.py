"""Who can make something of an image: what reads texts alone is not asked what an image without a text says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from retriever.errors import ConfigError

if TYPE_CHECKING:
    from retriever.collection import Collection
    from retriever.config import Experiment
    from retriever.types import Query

WORD_SOURCES = ("bm25", "lucene")
"""Sources of candidates, and rankers of stages, that find by words."""

TEXT_ENCODERS = ("dense", "sparse", "late_interaction", "static")
"""Kinds of students, and families of embedding teachers that name a model."""

TEXT_STUDENTS = (*TEXT_ENCODERS, "cross_encoder")
TEXT_TEACHERS = ("lexical", "cross_encoder", "llm", "llm_listwise")


def check_readers(experiment: Experiment, collection: Collection) -> None:
    """Sees to it that nothing of the experiment is asked what an image without a text says, unless it sees.

    Raises:
        ConfigError: something reads texts alone; the message says what can take its place.
    """
    if collection.has_images and (problem := next(_problems(experiment), None)):
        counts = collection.counts
        found = f"{counts['images']:,} documents and {counts['image_queries']:,} queries that are images without a text"
        raise ConfigError(f'{problem[0]}, and the collection "{collection.name}" has {found}. {problem[1]}')


def refuse_images(encoder: Any, queries: Iterable[Query]) -> None:
    """Refuses queries that are images without a text where the student reads texts alone, which would take them for empty ones.

    Raises:
        ConfigError: there is one.
    """
    kind = getattr(encoder, "kind", None)
    if kind not in TEXT_ENCODERS:
        return
    if image := next((query.image for query in queries if query.image is not None and not query.text.strip()), None):
        raise ConfigError(f'{image}: the student of this index is a {kind} one, which reads no images. Search with a text, or train one of kind = "image_text"')


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
        if teacher.kind in TEXT_TEACHERS or (teacher.kind == "embedding" and family in TEXT_ENCODERS):
            what = f'kind "{teacher.kind}"' + f' and the family "{family}"' * bool(family)
            instead = 'Take kind = "embedding" with family = "image_text", kind = "fusion", or kind = "run" for scores made elsewhere'
            yield f"teacher {teacher.label}: one of the {what} reads texts alone", instead
    if experiment.generation is not None:  # a query written for a caption would ask for that caption, which is no direction of such a collection
        yield (
            "generation: queries are written of texts and find texts",
            "There, captions are the queries of images already: leave [generation] out, and let a [[captioner]] write more of them for reinforced training",
        )
    for number, stage in enumerate(experiment.stage):
        if "bm25" in stage.by:
            yield f'stage.{number}.by: "bm25" finds by words', 'Name "student" there'
