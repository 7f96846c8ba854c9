"""The audit as a step of an experiment: teachers.json and teachers.html, made once for the same scores and judgements."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retriever.audit.agreement import agreement, overlaps
from retriever.audit.calibration import calibration
from retriever.audit.cost import ensemble_cost, measure_cost
from retriever.audit.lists import spread
from retriever.audit.material import HeldOutTargets, Material, compare_all, gather
from retriever.audit.suspects import false_negatives, mislabelled, ruined_queries
from retriever.audit.verdict import Candidate, judge
from retriever.collection import Collection
from retriever.eval.audit import Audit, BaselineFindings, Cost, Ruined, Suspects, TeacherFindings, Texts, read_audit, write_audit
from retriever.eval.curves import score_distribution
from retriever.eval.directions import direction_of, in_words
from retriever.eval.report import RunResult
from retriever.eval.significance import Comparison
from retriever.eval.wording import count, shortened
from retriever.files import fingerprint
from retriever.pipeline import Pipeline
from retriever.queries import reading_input
from retriever.runs import Run
from retriever.steps.cascade import asked_pairs, cascades
from retriever.steps.step import Done, versions

LONGEST_DOCUMENT = 500
LONGEST_QUERY = 300


def audit_teachers(pipeline: Pipeline) -> tuple[Done, Audit]:
    """The finished audit of an experiment's teachers: its step and what it found.

    Everything is measured on the train queries that are held out from teaching and training (`Pipeline.held_out`), where every ranker orders the
    same retrieved candidates; nothing else is scored, and test judgements are not read.
    """
    _, held = pipeline.held_out
    targets = HeldOutTargets.of(pipeline)
    inputs = {f"scores of {name}": run.fingerprint for name, run in targets.runs.items()}
    inputs |= {f"teacher {name}": identity.fingerprint for name, identity in pipeline.identities.items()}
    inputs |= {"start": pipeline.start.identity, "collection": pipeline.collection.fingerprint}
    inputs |= {"candidates": pipeline.judged(pipeline.candidates["train"]).fingerprint}
    inputs |= {"queries": fingerprint(held), "judgements": pipeline.judgements, **reading_input(pipeline)}
    candidates = pipeline.experiment.candidates
    settings = {"measures": list(pipeline.experiment.evaluation.measures), **candidates.model_dump(mode="json", include={"k1", "b", "language"})}

    def work(folder: Path) -> dict[str, Any]:
        audit = make_audit(pipeline, targets)
        write_audit(folder, audit)
        return {"verdict": dataclasses.asdict(audit.verdict), "chosen": targets.chosen}

    return pipeline.open_step(lambda: pipeline.step("teachers", inputs, settings, work), read_audit)


def make_audit(pipeline: Pipeline, targets: HeldOutTargets) -> Audit:
    """Measures everything."""
    pipeline.reporter.say("teachers: measuring, comparing and timing them on the held-out train queries")
    material = gather(pipeline, targets)
    deciding, others = compare_all(material)
    costs = costs_of(pipeline, material)
    teachers = findings(pipeline, material, costs)
    suspects = (false_negatives(material.lists, material.teachers), mislabelled(material.lists, material.teachers))
    return Audit(
        title=pipeline.experiment.name,
        summary=summary(pipeline, material),
        measures=material.measures,
        queries=len(material.qrels),
        teachers=teachers,
        baselines={name: baseline(material, name, "the starting checkpoint" if name == material.start else "BM25, no model") for name in material.baselines},
        deciding=tuple(deciding),
        comparisons=tuple(others),
        false_negatives=suspects[0],
        mislabelled=suspects[1],
        verdict=judge(verdict_candidates(material, deciding, others), between_teachers(material, others)),
        texts=texts(pipeline, teachers.values(), suspects),
        seed=material.seed,
        versions=versions(),
        directions=directions(material),
    )


def verdict_candidates(material: Material, deciding: Sequence[Comparison], others: Sequence[Comparison]) -> list[Candidate]:
    """The targets with the numbers that the verdict is judged from."""
    first = material.measures[0]
    found = {(one.run, one.baseline): one for one in others if one.measure == first}
    return [
        Candidate(
            name=one.run,
            mean=material.evaluations[one.run].means[first],
            against_start=one,
            members=material.members.get(one.run, ()),
            against_members={member: found[one.run, member] for member in material.members.get(one.run, ())},
        )
        for one in deciding
    ]


def between_teachers(material: Material, others: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of two single teachers in the first measure."""
    return [one for one in others if {one.run, one.baseline} <= set(material.teachers) and one.measure == material.measures[0]]


def costs_of(pipeline: Pipeline, material: Material) -> dict[str, Cost]:
    """Every target's cost; the teachers are timed one after the other."""
    with pipeline.reporter.bar("timing the teachers", len(material.teachers)) as advance:
        costs = {}
        for name, teacher in pipeline.teachers.items():
            costs[name] = measure_cost(teacher, pipeline.store, material.lists.pairs, pipeline.queries_of(name, "train"))
            advance(1)
    return costs | {name: ensemble_cost({member: costs[member] for member in members}) for name, members in material.members.items()}


def findings(pipeline: Pipeline, material: Material, costs: Mapping[str, Cost]) -> dict[str, TeacherFindings]:
    """All about each target."""
    taus = agreement(material.lists, material.targets)
    shared = overlaps({name: material.runs[name] for name in material.targets})
    return {name: _findings_of(pipeline, material, name, costs[name], (taus[name], shared[name])) for name in material.targets}


def _findings_of(pipeline: Pipeline, material: Material, name: str, cost: Cost, agreed: tuple[dict[str, float | None], dict[str, float]]) -> TeacherFindings:
    lists, unit, measured = material.lists, material.units[name], baseline(material, name, "")
    scores, relevant = lists.scores[name], lists.relevant
    return TeacherFindings(
        **dataclasses.asdict(cost),
        kind="ensemble" if name in material.members else pipeline.teachers[name].identity.kind,
        members=material.members.get(name, ()),
        unit=unit,
        mean=measured.mean,
        interval=measured.interval,
        agreement=agreed[0],
        overlap=agreed[1],
        spread=spread(scores, lists.pairs.offsets),
        distribution=score_distribution(name, unit, scores[relevant], scores[~relevant]),
        calibration=calibration(lists, name),
        ruined=tuple(lost for against in material.baselines for lost in _ruined(material, name, against)),
    )


def baseline(material: Material, name: str, description: str) -> BaselineFindings:
    """A run's means and intervals."""
    result = RunResult(name, {**material.evaluations, **material.in_directions}[name])
    intervals = {measure: result.interval(measure, material.seed, material.clusters) for measure in material.measures}
    return BaselineFindings(description, dict(result.evaluation.means), intervals)


def directions(material: Material) -> dict[str, BaselineFindings]:
    """Everyone's means and intervals in each direction, direction by direction."""
    sizes = {way: f"{in_words(way)}, {count(len(query_ids), 'query', 'queries')}" for way, query_ids in material.ways.items()}
    return {name: baseline(material, name, sizes[direction_of(name)]) for name in material.in_directions}


def summary(pipeline: Pipeline, material: Material) -> str:
    """What was looked at, in two sentences, and one on each teacher that did not read all of it."""
    lists = material.lists
    found = int((lists.relevant & lists.retrieved).sum()) / max(sum(grade > 0 for grades in material.qrels.values() for grade in grades.values()), 1)
    queries = count(len(material.qrels), "held-out train query", "held-out train queries")
    return (
        f"{pipeline.collection.name}: {queries}, {count(lists.pairs.n_pairs, 'pair', 'pairs')}, {count(int(lists.judged.sum()), 'judgement', 'judgements')}. "
        f"Every ranker orders the same candidates, which hold {100 * found:.0f} % of the relevant documents."
        f"{_read_in_part(pipeline, lists.pairs)}"
    )


def _read_in_part(pipeline: Pipeline, pairs: Run) -> str:
    """A sentence on each teacher whose `cascade` let it read a part of the pairs only."""
    asked = dict(asked_pairs(pipeline, {"train": pairs}, [pipeline.store]))
    return "".join(f" {name} read {asked[name]['train'].n_pairs:,} of the pairs, the others are filled in." for name in cascades(pipeline.experiment))


def texts(pipeline: Pipeline, teachers: Iterable[TeacherFindings], suspects: Sequence[Suspects]) -> Texts:
    """The queries and documents that the findings name, shortened."""
    ruined = [lost for found in teachers for lost in found.ruined]
    listed = [one for found in suspects for one in found.listed]
    query_ids = sorted({lost.query_id for lost in ruined} | {one.query_id for one in listed})
    named = [doc_id for lost in ruined for doc_id in (lost.relevant, lost.first)] + [doc_id for one in listed for doc_id in (one.doc_id, one.positive)]
    doc_ids = sorted({doc_id for doc_id in named if doc_id is not None})
    queries = pipeline.queries("train")
    return Texts(
        {query_id: shortened(queries[query_id].shown, LONGEST_QUERY) for query_id in query_ids},
        {doc_id: shortened(text, LONGEST_DOCUMENT) for doc_id, text in _shown(pipeline.collection, doc_ids).items()},
    )


def _shown(collection: Collection, doc_ids: Sequence[str]) -> dict[str, str]:
    documents = collection.documents_by_row(collection.rows_of(list(doc_ids)).tolist())
    return {doc_id: document.shown for doc_id, document in zip(doc_ids, documents, strict=True)}


def _ruined(material: Material, name: str, against: str) -> tuple[Ruined, ...]:
    teacher, other = ((material.runs[one], material.evaluations[one]) for one in (name, against))
    return ruined_queries(teacher, other, material.qrels, material.measures[0])
