"""A teacher in folds: several models, each taught without a part of the train queries, which it then scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retriever.queries import kept_together, parts_of
from retriever.settings.teacher import CrossFittedSettings, TaughtSettings
from retriever.steps.step import remove_leftovers

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline


def parts_to_score(pipeline: Pipeline, label: str, folds: int | None) -> list[list[str]]:
    """The train queries in as many parts as `train.folds` says; none where it is left out. Held-out queries are in none, as they teach nothing."""
    if folds is None:
        return []
    queries = {query_id: pipeline.conversations("train")[query_id] for query_id in pipeline.held_out[0]}
    together = kept_together(queries, pipeline.qrels("train"), pipeline.experiment.training.validation_documents)
    return parts_of(together, folds, pipeline.experiment.seed, f"teacher {label}: train.folds")


def teach_without_each(parts: Sequence[Sequence[str]], folder: Path, teach: Callable[[int, Sequence[str], Path], object]) -> None:
    """Teaches a model for each part, without it; a stop keeps the models that are whole, and goes on with the one that is not.

    Args:
        parts: the queries that each model will score.
        folder: of the step; model 1 lies in `fold-1/model` then.
        teach: leaves a model in `folder / "model"`, of the number, the part that it must not see, and the folder; goes on there with what a stop left.
    """
    for number, part in enumerate(parts, 1):
        whole, begun = folder / f"fold-{number}", folder / f".fold-{number}"
        if whole.exists():
            continue
        begun.mkdir(parents=True, exist_ok=True)
        teach(number, part, begun)
        remove_leftovers(begun)
        begun.rename(whole)


def fold_settings(label: str, number: int, folder: Path) -> dict[str, str]:
    """What the settings of a teacher's model of one fold have of their own: its name, and where it lies."""
    return {"name": f"{label}, fold {number}", "model": str(folder / "model")}


def cross_fitted(settings: TaughtSettings, parts: Sequence[Sequence[str]], folder: Path) -> CrossFittedSettings:
    """The settings of the teacher whose models lie in a step's folder.

    Args:
        settings: of the taught teacher, as they would be of one model.
        parts: the queries that each model scores.
        folder: of the step.
    """
    numbers = range(1, len(parts) + 1)
    models = tuple(settings.model_copy(update=fold_settings(settings.label, number, folder / f"fold-{number}")) for number in numbers)
    told = settings.model_dump(include={"name", "reads", "normalise", "temperature", "weight"})
    return CrossFittedSettings(**told, model=str(folder), parts=models, fold_of={query_id: place for place, part in enumerate(parts) for query_id in part})
