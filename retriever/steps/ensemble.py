"""The ensemble step: the teachers' views and their combination, fitted on train queries, and which target is distilled."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.config import Experiment
from retriever.errors import ConfigError, DataError
from retriever.eval.measures import evaluate
from retriever.files import fingerprint, write_json
from retriever.runs import Run
from retriever.scores.calibration import relevant_pairs
from retriever.scores.units import accepts, check_unit
from retriever.scores.views import View, view_unit
from retriever.settings.training import TrainingSettings
from retriever.teachers._fitting import JudgedLists, Member, fit_ensemble, fit_member
from retriever.teachers.ensemble import AlignedScores, Ensemble, combined_unit
from retriever.types import Qrels, Query, TeacherIdentity, Unit

FOLDS = 5
Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Targets:
    """What can be distilled: each teacher, and their ensemble.

    Attributes:
        alone: teacher -> the view it is seen through when it is the target; "none" unless its table names one.
        ensemble: of two teachers and more, unless their units do not mix and none is asked for.
    """

    alone: Mapping[str, View]
    ensemble: Ensemble | None

    def runs(self, raw: Mapping[str, Run], queries: Mapping[str, Query]) -> dict[str, Run]:
        """Each target's scores of the pairs that the teachers scored, `raw` by teacher; of an ensemble where all of them did."""
        found = {
            name: raw[name] if view.name == "none" else raw[name].with_scores(name, view.apply(raw[name].scores, raw[name].offsets))
            for name, view in self.alone.items()
            if name in raw
        }
        if self.ensemble and len(found) == len(self.alone):
            found["ensemble"] = self.ensemble.run("ensemble", AlignedScores.of([raw[name] for name in self.alone]), queries)
        return found

    @property
    def units(self) -> dict[str, Unit]:
        """The unit of each target's scores."""
        return {name: view.unit for name, view in self.alone.items()} | ({"ensemble": self.ensemble.unit} if self.ensemble else {})

    def fingerprint(self, name: str, teachers: Mapping[str, TeacherIdentity]) -> str:
        """Sixteen hexadecimal digits that change with the target's teachers and what was fitted to them."""
        if name == "ensemble":
            return fingerprint({"teachers": [teachers[one].fingerprint for one in self.alone], "ensemble": self._plain()["ensemble"]})
        return teachers[name].fingerprint if self.alone[name].name == "none" else fingerprint([teachers[name].fingerprint, self._plain()["alone"][name]])

    def write(self, folder: Path) -> None:
        """Writes the fitted forms as JSON."""
        write_json(folder / "ensemble.json", self._plain())

    @classmethod
    def read(cls, folder: Path) -> Targets:
        """The targets that `write` wrote.

        Raises:
            DataError: the file is damaged.
        """
        path = folder / "ensemble.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            ensemble = Ensemble.from_json(values["ensemble"]) if values["ensemble"] else None
            return cls({name: View(**view) for name, view in values["alone"].items()}, ensemble)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a fitted ensemble ({error}). Remove {folder}: the step is done again") from error

    def _plain(self) -> dict[str, Any]:
        alone = {name: dataclasses.asdict(view) for name, view in self.alone.items()}
        return {"alone": alone, "ensemble": self.ensemble.to_json() if self.ensemble else None}


def members(experiment: Experiment, identities: Mapping[str, TeacherIdentity], alone: bool = False) -> list[Member]:
    """The teachers of an experiment as its ensemble takes them, or as each is taken `alone`: raw, unless its own table says how."""
    default = "none" if alone else experiment.ensemble.normalise
    return [Member(one.label, identities[one.label].unit, one.normalise or default, one.temperature, one.weight) for one in experiment.teacher]


def target_units(experiment: Experiment, identities: Mapping[str, TeacherIdentity]) -> dict[str, Unit]:
    """The unit of each target that the experiment can have, known before anything is scored.

    Raises:
        ConfigError: the ensemble would add up scores of different units, and no single teacher is asked for.
    """
    units = {member.name: view_unit(member.view, member.unit) for member in members(experiment, identities, alone=True)}
    together = members(experiment, identities)
    if len(together) > 1:
        try:
            combined = combined_unit(experiment.ensemble.combine, list(units), [view_unit(member.view, member.unit) for member in together])
            return units | {"ensemble": combined}
        except ConfigError:
            if experiment.ensemble.select in ("auto", "all"):
                raise
    return units


def check_target_units(experiment: Experiment, training: TrainingSettings, units: Mapping[str, Unit], chosen: str | None = None) -> None:
    """Sees to it that the losses can learn from the chosen target or, before one is chosen by hours of scoring, from one that may be.

    Raises:
        ConfigError: they cannot.
    """
    select = experiment.ensemble.select
    asked = [chosen] if chosen else {"auto": list(units), "all": [list(units)[-1]]}.get(select, [select])
    losses = [name for name, weight in training.losses.items() if weight]
    if not any(all(accepts(loss, units[name], training.teacher_temperature) for loss in losses) for name in asked):
        check_unit(units[asked[-1]], losses, training.teacher_temperature, f'target "{asked[-1]}"')


def step_settings(experiment: Experiment, identities: Mapping[str, TeacherIdentity]) -> dict[str, Any]:
    """What the step depends on, apart from scores and qrels; which target is asked for is no part of it."""
    return {
        "ensemble": experiment.ensemble.model_dump(exclude={"select"}),
        "measure": experiment.evaluation.measures[0],
        "teachers": {member.name: dataclasses.asdict(member) for member in members(experiment, identities)},
        "alone": {member.name: member.view for member in members(experiment, identities, alone=True)},
    }


def judged_lists(experiment: Experiment, raw: Mapping[str, Run], queries: Mapping[str, Query], qrels: Qrels, retrieved: Run) -> JudgedLists:
    """The held-out lists that targets are fitted on and measured by. Nothing but train queries comes in.

    Args:
        experiment: the checked file.
        raw: teacher -> its scores of all pairs of the train queries.
        queries: the held-out ones, by id.
        qrels: grades of these at least.
        retrieved: the candidates they had; positives that were added to them are scored, and not measured.
    """
    aligned = AlignedScores.of([run.select(queries) for run in raw.values()])
    return JudgedLists(
        aligned=aligned,
        every=[run.scores for run in raw.values()],
        relevant=relevant_pairs(aligned.pairs, qrels),
        queries=queries,
        folds=_folds(len(queries), experiment.seed),
        measure=_measure(aligned.pairs, retrieved, qrels, experiment.evaluation.measures[0]),
    )


def fit_targets(experiment: Experiment, identities: Mapping[str, TeacherIdentity], lists: JudgedLists) -> tuple[Targets, dict[str, Any]]:
    """The targets, fitted, with what each is worth on the held-out queries and notes on the fits.

    What reads qrels is fitted on the held-out queries, because a teacher that was taught on the others is surer of them
    than it is of new ones; an ensemble that was fitted so is measured by fitting it again without a fifth of them, and
    measuring on that fifth.
    """
    aligned = lists.aligned
    everyone = np.ones(len(lists.queries), dtype=np.bool_)
    quality, notes, alone, ensemble = {}, {}, {}, None
    for member, own, every in zip(members(experiment, identities, alone=True), aligned.scores, lists.every, strict=True):
        view = alone[member.name] = fit_member(member, every, lists.judged(own, everyone))
        quality[member.name] = float(lists.measure(view.apply(own, aligned.pairs.offsets).astype(np.float64)).mean())
    if "ensemble" in target_units(experiment, identities):
        fitted = fit_ensemble(experiment.ensemble.combine, members(experiment, identities), lists)
        ensemble, notes, quality["ensemble"] = fitted.ensemble, fitted.notes, float(fitted.values.mean())
    return Targets(alone, ensemble), {"held_out": quality, "fit": notes}


def ensemble_on_held_out(experiment: Experiment, identities: Mapping[str, TeacherIdentity], lists: JudgedLists) -> Run | None:
    """The ensemble's scores of the held-out lists as they are fair to measure: none by a fit that saw the list's qrels; None without an ensemble."""
    if "ensemble" not in target_units(experiment, identities):
        return None
    return lists.aligned.pairs.with_scores("ensemble", fit_ensemble(experiment.ensemble.combine, members(experiment, identities), lists).scores)


def choose_target(select: str, quality: Mapping[str, float], measure: str, held: int) -> tuple[str, str]:
    """The target's name and the reason for it, by `ensemble.select` and what each target is worth on the held-out queries."""
    best = max(quality, key=lambda name: quality[name])
    if len(quality) == 1:
        return best, "it is the only teacher"
    if select == "auto":
        second = max((name for name in quality if name != best), key=lambda name: quality[name])
        return best, f"it ranks the {held} held-out train queries best: {measure} {quality[best]:.3f}, {second} {quality[second]:.3f}"
    name = "ensemble" if select == "all" else select
    return name, f'ensemble.select = "{select}" asks for it'


def fit_notes(notes: Mapping[str, Any], names: Sequence[str]) -> str:
    """What a fit found, in a sentence; "" where nothing was tried."""
    if "weights" in notes:
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(names, notes["weights"], strict=True))
        verdict = "" if notes["used"] else ", not clearly above it, so the weights stay equal"
        fitted, equal = notes["fitted_out_of_fold"], notes["equal_weights"]
        return f"Fitted weights reach {fitted:.3f} on queries they were not fitted on, equal ones {equal:.3f}{verdict}: {weights}."
    if "routed_out_of_fold" in notes:
        verdict = "" if notes["used"] else ", not clearly above it, so every query takes the mean"
        return f"Routing reaches {notes['routed_out_of_fold']:.3f} on queries it was not fitted on, the mean {notes['mean']:.3f}{verdict}."
    return ""


def pairs_in(run: Run, wanted: Run) -> NDArray[np.bool_]:
    """[n], whether `wanted` has each pair of `run` too."""
    kept = {query_id: dict(wanted[query_id]) for query_id in run}
    return np.array([doc_id in kept[query_id] for query_id in run for doc_id, _ in run[query_id]], dtype=np.bool_)


def keep_pairs(run: Run, wanted: Run) -> Run:
    """The pairs of `run` that `wanted` has too."""
    return run.keep(pairs_in(run, wanted))


def _measure(pairs: Run, wanted: Run, qrels: Qrels, name: str) -> Callable[[Floats], Floats]:
    """Scores [n] of the pairs -> the measure of each of their queries [Q], only retrieved documents counted."""
    keep = pairs_in(pairs, wanted)
    retrieved = pairs.keep(keep)
    grades = {query_id: qrels[query_id] for query_id in pairs}

    def measure(scores: Floats) -> Floats:
        found = evaluate(retrieved.with_scores("target", scores[keep]), grades, [name])
        by_query = dict(zip(found.query_ids, found.values[name], strict=True))
        return np.array([by_query[query_id] for query_id in pairs])

    return measure


def _folds(queries: int, seed: int) -> NDArray[np.int64]:
    """[Q], each query's fold: five of one size, or as many as there are queries."""
    return np.random.default_rng(seed).permutation(np.arange(queries) % min(FOLDS, max(queries, 1)))
