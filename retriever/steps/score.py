"""Scoring an experiment's pairs: all of them into its store, or one of several parts into a store of its own; here or by Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from retriever.errors import ConfigError
from retriever.progress import Advance
from retriever.runs import Run
from retriever.scores.scoring import part_of, scored_shard
from retriever.scores.shards import ShardProblem
from retriever.scores.store import ScoreStore
from retriever.steps.candidates import SPLITS
from retriever.steps.cascade import asked_pairs
from retriever.types import Teacher, Usage, usage_of
from retriever.workers.loader import Loader, engine_of

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline


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
        _score(
            pipeline, store, name, {split: pipeline.store.missing(identity, of_split, pipeline.queries_of(name, split)) for split, of_split in pairs.items()}
        )
    return store.folder


def _score(pipeline: Pipeline, store: ScoreStore, name: str, pairs: Mapping[str, Run]) -> None:
    """Scores each split's pairs with one teacher."""
    teacher, reporter = pipeline.teachers[name], pipeline.reporter

    def tell_damage(problem: ShardProblem) -> None:
        reporter.say(f"score: {problem}; it was renamed to *.damaged, and its pairs are scored again")

    pending = {split: store.plan(teacher.identity, of_split, pipeline.queries_of(name, split)).pending for split, of_split in pairs.items()}
    if any(pending.values()):
        tell_notes(pipeline, teacher)
    load = Loader.of(pipeline, type(pipeline).load_teacher, pipeline.taught[name])
    with engine_of(pipeline.experiment.scoring, load, scored_shard, f'teacher "{name}"') as engine:
        for split, of_split in pairs.items():
            with reporter.bar(f"scoring {split} pairs ({teacher.identity.name})", pending[split]) as advance:
                store.score(teacher, of_split, pipeline.queries_of(name, split), _advancing(pipeline, advance, teacher), tell_damage, engine)


def _advancing(pipeline: Pipeline, advance: Advance, teacher: Teacher) -> Advance:
    """Moves the bar, and writes beside it what a language model was asked for so far."""

    def moved(count: int) -> None:
        advance(count)
        if (usage := usage_of(teacher)) != Usage():
            pipeline.reporter.update(str(usage))

    return moved
