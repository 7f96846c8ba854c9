"""What the audit is made from: everyone's scores, orders and measures on the held-out queries, and their tests."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from retriever.audit.lists import ScoredLists
from retriever.eval.directions import directions_of, in_direction, pairs_in_directions
from retriever.eval.measures import Evaluation, evaluate, parse_measure
from retriever.eval.significance import Clusters, Comparison, compare, holm
from retriever.pipeline import Pipeline
from retriever.plugins import load_kind
from retriever.runs import Run
from retriever.scores.scoring import CandidatePairs, score_pairs
from retriever.settings.teacher import EmbeddingSettings, LexicalSettings, TeacherSettings
from retriever.steps.ensemble import choose_target, ensemble_on_held_out, fit_targets, target_units
from retriever.steps.image_report import wholes_of
from retriever.steps.target import lists_of
from retriever.teachers._fitting import JudgedLists
from retriever.types import Unit


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOutTargets:
    """What may be distilled, on the held-out queries alone: no other query need be scored before it is known which teacher is worth that.

    Targets are fitted as they are for training, but for the view "standardised", which takes mean and deviation of these scores here.

    Attributes:
        runs: name -> its scores of their pairs.
        units: of these.
        lists: that the targets are fitted on.
        chosen: what is distilled if nobody asks for another.
    """

    runs: Mapping[str, Run]
    units: Mapping[str, Unit]
    lists: JudgedLists
    chosen: str

    @classmethod
    def of(cls, pipeline: Pipeline) -> HeldOutTargets:
        """Scored, as far as they are not, and fitted."""
        experiment, identities = pipeline.experiment, pipeline.identities
        target_units(experiment, identities)  # refuses units that do not mix before anything is scored
        raw = pipeline.held_out_scores
        lists = lists_of(pipeline, raw, pipeline.held_out[1])
        targets, found = fit_targets(experiment, identities, lists)
        chosen, _ = choose_target(experiment.ensemble.select, found["held_out"], experiment.evaluation.measures[0], len(lists.queries))
        return cls(targets.runs(raw, lists.queries), targets.units, lists, chosen)


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """What the findings are made from.

    Attributes:
        lists: the held-out queries' pairs with the scores of teachers, ensembles and the two baselines.
        qrels: of the held-out queries.
        units: target -> the unit of its scores.
        teachers: names of the single teachers.
        members: ensemble -> its teachers.
        bm25: the name under which BM25 is in `lists`; None where there are images without words.
        start: that of the starting student.
        runs: name -> the retrieved candidates in its order.
        evaluations: name -> its measures.
        measures: as text.
        seed: of tests and intervals.
        ways: direction -> ids of its queries; {"": all ids} where they go one way.
        clusters: conversations, or images with their captions, which tests and intervals take as wholes; None where queries stand alone.
    """

    lists: ScoredLists
    qrels: Mapping[str, Mapping[str, int]]
    units: Mapping[str, Unit]
    teachers: tuple[str, ...]
    members: Mapping[str, tuple[str, ...]]
    bm25: str | None
    start: str
    runs: Mapping[str, Run]
    evaluations: Mapping[str, Evaluation]
    measures: tuple[str, ...]
    seed: int
    ways: Mapping[str, Sequence[str]]
    clusters: Clusters | None

    @property
    def baselines(self) -> tuple[str, ...]:
        """What the targets are held against: BM25 where there is one, and the start."""
        return (self.start,) if self.bm25 is None else (self.bm25, self.start)

    @property
    def targets(self) -> tuple[str, ...]:
        """What may be distilled: the teachers, then the ensembles."""
        return (*self.teachers, *self.members)

    @cached_property
    def in_directions(self) -> dict[str, Evaluation]:
        """NAME.DIRECTION -> the measures of everyone's queries of it; empty where queries go one way."""
        found = {}
        for way, query_ids in self.ways.items() if len(self.ways) > 1 else ():
            qrels = {query_id: self.qrels[query_id] for query_id in query_ids}
            for name in (*self.baselines, *self.targets):
                found[in_direction(name, way)] = evaluate(self.runs[name].select(query_ids).rename(in_direction(name, way)), qrels, self.measures)
        return found


def gather(pipeline: Pipeline, found: HeldOutTargets) -> Material:
    """Scores, orders and measures of everyone on the held-out queries; BM25 and the starting student score the same pairs as the teachers."""
    _, held = pipeline.held_out
    pairs, retrieved = pipeline.pairs("train").select(held), pipeline.candidates["train"].select(held)
    qrels = {query_id: pipeline.qrels("train")[query_id] for query_id in held}
    targets = {**found.runs, **fair_ensemble(pipeline, found.lists)}
    bm25, start = (name if name not in targets else f"{name} (baseline)" for name in ("bm25", "student_before"))
    lexical: dict[str, TeacherSettings] = {} if pipeline.collection.has_images else {bm25: LexicalSettings(name=bm25)}
    baselines = {**lexical, start: EmbeddingSettings(name=start, model="student")}
    targets |= {name: scored_by(pipeline, settings, pairs) for name, settings in baselines.items()}
    lists = ScoredLists.of(pairs, retrieved, qrels, targets)
    runs = {name: lists.run(name) for name in targets}
    queries = {query_id: query for query_id, query in pipeline.conversations("train").items() if query_id in qrels}
    measures = tuple(str(parse_measure(measure)) for measure in pipeline.experiment.evaluation.measures)
    return Material(
        lists=lists,
        qrels=qrels,
        units=found.units,
        teachers=tuple(pipeline.teachers),
        members={name: tuple(pipeline.teachers) for name in targets if name not in (*pipeline.teachers, *baselines)},
        bm25=bm25 if lexical else None,
        start=start,
        runs=runs,
        evaluations={name: evaluate(run, qrels, measures) for name, run in runs.items()},
        measures=measures,
        seed=pipeline.experiment.seed,
        ways=directions_of(queries),
        clusters=wholes_of(queries, qrels),
    )


def fair_ensemble(pipeline: Pipeline, lists: JudgedLists) -> dict[str, Run]:
    """The ensemble on the held-out queries, each by a fit to others of them: the one that is distilled was fitted to all, and would look too good."""
    run = ensemble_on_held_out(pipeline.experiment, pipeline.identities, lists)
    return {run.name: run} if run else {}


def scored_by(pipeline: Pipeline, settings: TeacherSettings, pairs: Run) -> Run:
    """The pairs with the scores of a teacher that is not the experiment's; they are not stored."""
    teacher = load_kind("teachers", settings.kind, settings.label).load(settings, pipeline.resources)
    queries = pipeline.student_queries("train") if isinstance(settings, EmbeddingSettings) else pipeline.queries("train")
    scored = score_pairs(teacher, CandidatePairs.of(pairs, queries, pipeline.collection).texts(np.arange(pairs.n_pairs)))
    return pairs.with_scores(settings.label, scored.scores)


def compare_all(material: Material) -> tuple[list[Comparison], list[Comparison]]:
    """The tests that decide, every target against the start in the first measure, corrected among themselves; and all others, likewise.

    The deciding question is fixed before anything is looked at, so it need not pay for the others.
    """
    first, *rest = material.measures
    against_start = [(name, material.start) for name in material.targets]
    against_bm25 = [(name, material.bm25) for name in material.targets if material.bm25 is not None]
    against_members = [(name, member) for name, members in material.members.items() for member in members]
    between = list(itertools.combinations(material.teachers, 2))
    clusters = material.clusters
    deciding = compare(material.evaluations, against_start, [first], material.seed, clusters)
    others = compare(material.evaluations, [*against_bm25, *against_members, *between], material.measures, material.seed, clusters)
    others += compare(material.evaluations, against_start, rest, material.seed, clusters)
    one_way = pairs_in_directions(material.in_directions, against_start) if material.in_directions else []
    others += compare(material.in_directions, one_way, material.measures, material.seed, clusters)
    corrected = holm([one.p_value for one in others])
    return deciding, [dataclasses.replace(one, p_value_corrected=p_value) for one, p_value in zip(others, corrected, strict=True)]
