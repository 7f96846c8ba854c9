"""Scoring an experiment's pairs: all of them into its store, or one of several parts into a store of its own; here or by Ray."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from retriever.candidate_step import SPLITS
from retriever.cascade_step import asked_pairs
from retriever.config import Experiment
from retriever.errors import ConfigError
from retriever.progress import Advance
from retriever.runs import Run
from retriever.scoring import ScoringEngine, local_engine, part_of
from retriever.shards import ShardProblem
from retriever.store import ScoreStore
from retriever.teacher_settings import TeacherSettings
from retriever.types import Teacher, Usage, usage_of

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class TeacherLoader:
    """Loads one teacher of an experiment in another process, from its files.

    Attributes:
        experiment: the checked file.
        work: the folder that holds the experiment's folder; other machines must see it under the same name.
        settings: the teacher's, already taught.
    """

    experiment: Experiment
    work: Path
    settings: TeacherSettings

    def __call__(self) -> Teacher:
        """The loaded teacher."""
        from retriever.pipeline import Pipeline

        return Pipeline(self.experiment, self.work).load_teacher(self.settings)


@contextlib.contextmanager
def engine_of(pipeline: Pipeline, name: str) -> Iterator[ScoringEngine]:
    """Who asks the teacher of that name, as the section [scoring] says."""
    scoring = pipeline.experiment.scoring
    if scoring.engine == "local":
        yield local_engine
        return
    from retriever.ray_engine import ray_engine

    with ray_engine(scoring, TeacherLoader(pipeline.experiment, pipeline.folder.parent.resolve(), pipeline.taught[name])) as engine:
        yield engine


def score_pairs_of(pipeline: Pipeline, pairs: Mapping[str, Run]) -> None:
    """Scores those of each split's pairs that are missing in the experiment's store."""
    for name, asked in asked_pairs(pipeline, pairs, [pipeline.store]):
        _score(pipeline, pipeline.store, name, asked)


def tell_notes(pipeline: Pipeline, teacher: Teacher) -> None:
    """What a teacher wants to be known before it scores, such as what rounding to 8 bits costs."""
    for note in getattr(teacher, "notes", ()):
        pipeline.reporter.say(note)


def score_part(pipeline: Pipeline, number: int, parts: int) -> Path:
    """Scores a part of each teacher's pairs, those left out that the experiment's store has, into a store of its own.

    A store for each part needs no agreement between processes: `retriever store merge` copies their shards together.

    Args:
        pipeline: the experiment; its candidates are made first where they are missing.
        number: which part, 1 to `parts`.
        parts: how many there are.

    Returns:
        The part's store, beside the experiment's.

    Raises:
        ConfigError: there is no such part.
    """
    if not 1 <= number <= parts:
        raise ConfigError(f"part {number} of {parts}: parts are numbered from 1 to their count, for example --shard 1/{max(parts, 1)}")
    store = ScoreStore.open(pipeline.folder / f"score-{number}-of-{parts}", pipeline.collection)
    mine = {split: part_of(pipeline.pairs(split), pipeline.queries(split), number, parts) for split in SPLITS}
    for name, pairs in asked_pairs(pipeline, mine, [pipeline.store, store]):
        identity = pipeline.identities[name]
        _score(pipeline, store, name, {split: pipeline.store.missing(identity, of_split, pipeline.queries(split)) for split, of_split in pairs.items()})
    return store.folder


def _score(pipeline: Pipeline, store: ScoreStore, name: str, pairs: Mapping[str, Run]) -> None:
    """Scores each split's pairs with one teacher."""
    teacher, reporter = pipeline.teachers[name], pipeline.reporter

    def tell_damage(problem: ShardProblem) -> None:
        reporter.say(f"score: {problem}; it was renamed to *.damaged, and its pairs are scored again")

    pending = {split: store.plan(teacher.identity, of_split, pipeline.queries(split)).pending for split, of_split in pairs.items()}
    if any(pending.values()):
        tell_notes(pipeline, teacher)
    with engine_of(pipeline, name) as engine:
        for split, of_split in pairs.items():
            with reporter.bar(f"scoring {split} pairs ({teacher.identity.name})", pending[split]) as advance:
                store.score(teacher, of_split, pipeline.queries(split), _advancing(pipeline, advance, teacher), tell_damage, engine)


def _advancing(pipeline: Pipeline, advance: Advance, teacher: Teacher) -> Advance:
    """Moves the bar, and writes beside it what a language model was asked for so far."""

    def moved(count: int) -> None:
        advance(count)
        if (usage := usage_of(teacher)) != Usage():
            pipeline.reporter.update(str(usage))

    return moved
