"""What is distilled: of the teachers, and of the ensemble of several, the one that ranks held-out train queries best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retriever.files import fingerprint
from retriever.runs import Run
from retriever.scores.store import TeacherScores
from retriever.settings.teacher import FusionTeachingSettings, TeachingSettings
from retriever.steps.ensemble import Targets, choose_target, fit_notes, fit_targets, judged_lists, step_settings, target_units
from retriever.steps.step import Done
from retriever.teachers._fitting import JudgedLists
from retriever.types import Query, Unit

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline


BY_HEART = 0.05
"""By how much a teacher ranks the queries it was taught on better than others before that is told."""


class Target:
    """The chosen one of an experiment, beside all that it was chosen from. Asking for a result makes what it needs."""

    def __init__(self, pipeline: Pipeline) -> None:
        """Chooses nothing yet."""
        self._pipeline = pipeline
        self._runs: dict[str, dict[str, Run]] = {}

    @property
    def name(self) -> str:
        """Of the teacher, or "ensemble"."""
        return self._choice[0]

    @property
    def reason(self) -> str:
        """Why that one, and what was fitted to reach it."""
        return self._choice[1]

    @property
    def held_out(self) -> dict[str, float]:
        """What each teacher, and the ensemble, reaches as a re-ranker of the held-out train queries' candidates."""
        found: dict[str, float] = self._fitted[0].result["held_out"]
        return found

    @property
    def units(self) -> dict[str, Unit]:
        """Of the scores in `runs`."""
        return self._fitted[1].units

    def runs(self, split: str) -> dict[str, Run]:
        """Each teacher's scores of a split's pairs, and the ensemble's where there are several."""
        if split not in self._runs:
            self._runs[split] = self._fitted[1].runs(self._pipeline.scores[split], self._pipeline.queries(split))
        return self._runs[split]

    def run(self, split: str) -> Run:
        """The chosen one's scores of a split's pairs."""
        return self.runs(split)[self.name]

    def run_of(self, raw: Mapping[str, Run], queries: Mapping[str, Query]) -> Run:
        """The same of any pairs of any queries, from each teacher's raw scores."""
        return self._fitted[1].runs(raw, queries)[self.name]

    def scores(self, split: str) -> TeacherScores:
        """As `run`, with their unit and what decides them."""
        return self.scores_of(self._pipeline.scores[split], split)

    def scores_of(self, raw: Mapping[str, Run], split: str) -> TeacherScores:
        """The same of any pairs of a split's queries, from each teacher's raw scores."""
        run = self.run_of(raw, self._pipeline.queries(split))
        return TeacherScores(run, self.units[self.name], self._fitted[1].fingerprint(self.name, self._pipeline.identities), self.name)

    @cached_property
    def _fitted(self) -> tuple[Done, Targets]:
        """The ensemble step: views and combination fitted on train queries, and what each target is worth on those held out."""
        pipeline = self._pipeline
        experiment, identities = pipeline.experiment, pipeline.identities
        target_units(experiment, identities)  # refuses units that do not mix before anything is scored
        raw = pipeline.scores["train"]
        inputs = {f"scores of {name}": pipeline.judged(run).fingerprint for name, run in raw.items()}
        inputs |= {"candidates": pipeline.judged(pipeline.candidates["train"]).fingerprint, "judgements": pipeline.judgements}
        inputs |= {"held": fingerprint(pipeline.held_out[1])}

        def work(folder: Path) -> dict[str, Any]:
            targets, found = fit_targets(experiment, identities, lists_of(pipeline, raw, pipeline.held_out[1]))
            targets.write(folder)
            return {**found, "by_heart": on_their_lessons(pipeline, raw)}

        return pipeline.open_step(lambda: pipeline.step("ensemble", inputs, step_settings(experiment, identities), work), Targets.read)

    @cached_property
    def _choice(self) -> tuple[str, str]:
        """The name and the reason."""
        done, targets = self._fitted
        experiment, held = self._pipeline.experiment, self._pipeline.held_out[1]
        name, reason = choose_target(experiment.ensemble.select, done.result["held_out"], experiment.evaluation.measures[0], len(held))
        notes = [fit_notes(done.result["fit"], list(targets.alone)), by_heart_note(done.result.get("by_heart", {}), done.result["held_out"])]
        told = " ".join(note for note in notes if note)
        return name, f"{reason}. {told}" if told else reason


def lists_of(pipeline: Pipeline, raw: Mapping[str, Run], query_ids: Sequence[str]) -> JudgedLists:
    """The lists of some judged train queries with teachers' scores; of those held out, they are what targets are fitted on and measured by.

    Args:
        pipeline: the experiment.
        raw: teacher -> its scores of train pairs, those of these queries among them.
        query_ids: which.
    """
    queries = {query_id: pipeline.queries("train")[query_id] for query_id in query_ids}
    return judged_lists(pipeline.experiment, raw, queries, pipeline.qrels("train"), pipeline.candidates["train"].select(query_ids))


def on_their_lessons(pipeline: Pipeline, raw: Mapping[str, Run]) -> dict[str, float]:
    """What each teacher that could have folds, and has none, reaches on the queries that it was taught on."""
    found = {}
    for teacher in pipeline.experiment.teacher:
        train = getattr(teacher, "train", None)
        if isinstance(train, TeachingSettings | FusionTeachingSettings) and not train.folds:
            lists = lists_of(pipeline, {teacher.label: raw[teacher.label]}, pipeline.held_out[0])
            found[teacher.label] = float(lists.measure(lists.aligned.scores[0].astype(np.float64)).mean())
    return found


def by_heart_note(lessons: Mapping[str, float], held_out: Mapping[str, float]) -> str:
    """Which teachers say little more of the train queries than their judgements, in a sentence; "" where none does."""
    surer = [f"{name} {value:.3f} against {held_out[name]:.3f}" for name, value in lessons.items() if value - held_out[name] > BY_HEART]
    return f"On the queries that they were taught on, teachers rank better than on those held out ({', '.join(surer)}); see train.folds." if surer else ""
