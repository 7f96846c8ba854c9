"""Zero-shot classification of the test images by the experiment's students: whether they name what is in an image without having learned the names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retriever.conversations.facets import labels_of
from retriever.errors import ConfigError
from retriever.eval.zero_shot import ZeroShot, accuracy
from retriever.steps.systems import train_other
from retriever.types import Document, Query

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline


def zero_shot_of(pipeline: Pipeline) -> ZeroShot | None:
    """What the file's [evaluation] zero_shot asks for, by the start, the trainings that the student is held against, and the student.

    Raises:
        ConfigError: as `zero_shot_names` says.
    """
    settings = pipeline.experiment.evaluation.zero_shot
    if settings is None:
        return None
    names = zero_shot_names(pipeline)
    images = [query for query in pipeline.student_queries("test").values() if query.image is not None]
    others = {name: pipeline.open_student(train_other(pipeline, name).folder / "student") for name in pipeline.experiment.trainings}
    students = {"student_before": pipeline.start, **others, "student": pipeline.student}
    return classify(students, images, names, settings.field, settings.template, pipeline.experiment.seed)


def zero_shot_names(pipeline: Pipeline) -> list[str]:
    """The names that images may be given; empty where the file asks for none. It needs no student, so that a mistake is told before hours of training.

    Raises:
        ConfigError: no image has the field, or the student encodes nothing.
    """
    settings, student = pipeline.experiment.evaluation.zero_shot, pipeline.experiment.student
    if settings is None:
        return []
    if student.kind == "cross_encoder":
        raise ConfigError(f"evaluation.zero_shot: a {student.kind} encodes no image by itself. Leave evaluation.zero_shot out")
    return names_of(pipeline.collection.all_queries(), pipeline.conversations("test").values(), settings.field)


def names_of(queries: Iterable[Query], tested: Iterable[Query], field: str) -> list[str]:
    """The values of a field of all images, in order.

    Args:
        queries: of all splits.
        tested: those of which the images are to be named.
        field: its name; a list counts in each of its values.

    Raises:
        ConfigError: no tested image has the field, or all images have the same value.
    """
    images, asked = ([query for query in some if query.image is not None] for some in (queries, tested))
    if not asked:
        raise ConfigError("evaluation.zero_shot: no query of the test split is an image, so there is nothing to name. Leave evaluation.zero_shot out")
    if not any(labels_of(query.fields.get(field)) for query in asked):
        known = ", ".join(sorted({name for query in asked for name in query.fields})) or "none"
        raise ConfigError(f'evaluation.zero_shot: no image of the test split has a field "{field}"; the fields are: {known}. Name one of them')
    names = sorted({label for query in images for label in labels_of(query.fields.get(field))})
    if len(names) == 1:
        raise ConfigError(f'evaluation.zero_shot: every image has the same {field}, "{names[0]}". Name a field that tells them apart')
    return names


def classify(students: Mapping[str, Any], images: Sequence[Query], names: Sequence[str], field: str, template: str, seed: int) -> ZeroShot:
    """How often each student finds the right one of the names' texts nearest to an image.

    Args:
        students: run -> student, with `encode_queries`, `encode_documents` and `score`.
        images: queries; those without the field are left out.
        names: all values of the field.
        field: its name.
        template: with {} where the name stands.
        seed: of the intervals.
    """
    asked = [query for query in images if labels_of(query.fields.get(field))]
    right: NDArray[np.bool_] = np.array([[name in labels_of(query.fields.get(field)) for name in names] for query in asked])
    texts = [Document(f"name-{number}", template.replace("{}", name)) for number, name in enumerate(names)]
    accuracies = {run: accuracy(run, _scores(student, asked, texts), right, seed) for run, student in students.items()}
    return ZeroShot(field, template, len(asked), list(names), float(right.mean(axis=0).max()), accuracies)


def _scores(student: Any, images: Sequence[Query], texts: Sequence[Document]) -> NDArray[np.float32]:
    """[I, N], of each image with each text."""
    asked, found = student.encode_queries(images), student.encode_documents(texts)
    return np.stack([student.score(asked[np.full(len(texts), number)], found) for number in range(len(images))])  # image by image: all pairs fill the memory
