"""The cascade of an experiment: which pairs its slow teachers are asked for, and their scores with the others filled in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retriever.config import Experiment
from retriever.errors import ConfigError, StoreError
from retriever.files import fingerprint
from retriever.runs import Run
from retriever.scores.calibration import relevant_pairs
from retriever.scores.cascade import choose, fill
from retriever.scores.store import ScoreStore
from retriever.steps.candidates import SPLITS
from retriever.steps.ensemble import pairs_in
from retriever.teachers.ensemble import mean_of_z_scores

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline


def cascades(experiment: Experiment) -> dict[str, float]:
    """Name -> the share of each list that it reads, for the teachers with a `cascade`."""
    return {teacher.label: share for teacher in experiment.teacher if (share := getattr(teacher, "cascade", None))}


def cascade_inputs(pipeline: Pipeline) -> dict[str, str]:
    """What decides, apart from scores and shares, which pairs are read; nothing without a cascade."""
    return {"judgements": pipeline.judgements, "held": fingerprint(pipeline.held_out[1])} if cascades(pipeline.experiment) else {}


def asked_pairs(pipeline: Pipeline, pairs: Mapping[str, Run], stores: Sequence[ScoreStore]) -> Iterator[tuple[str, Mapping[str, Run]]]:
    """Each teacher's name with the pairs it is asked for, the teachers with a `cascade` last.

    Args:
        pipeline: the experiment.
        pairs: split -> all of its pairs, or some of its lists.
        stores: where the cheap teachers' scores are by the time that the first teacher with a `cascade` is asked for, between them.

    Raises:
        ConfigError: a teacher with a `cascade` orders lists; nothing is asked of any.
        StoreError: the stores lack scores of the cheap teachers.
    """
    shares = cascades(pipeline.experiment)
    for name in shares:
        if pipeline.identities[name].orders_lists:
            raise ConfigError(f"teacher {name}: it orders whole lists, so it cannot read a part of one. Take its cascade away")
    others = [name for name in pipeline.teachers if name not in shares]
    yield from ((name, pairs) for name in others)
    if shares:
        cheap = {split: cheap_ranking([_read(pipeline, name, split, of_split, stores) for name in others]) for split, of_split in pairs.items()}
        yield from ((name, {split: chosen_pairs(pipeline, name, split, ranked) for split, ranked in cheap.items()}) for name in shares)


def planned_pairs(pipeline: Pipeline) -> dict[str, Mapping[str, Run]]:
    """The same before anything is scored, in the file's order.

    Where the cheap teachers have not scored everything, the candidates' own order stands in for theirs: as many pairs, perhaps others.
    """
    pairs = {split: pipeline.pairs(split) for split in SPLITS}
    try:
        asked = dict(asked_pairs(pipeline, pairs, [pipeline.store]))
    except StoreError:
        shares = cascades(pipeline.experiment)
        chosen = {name: {split: chosen_pairs(pipeline, name, split, run) for split, run in pairs.items()} for name in shares}
        asked = {name: chosen.get(name, pairs) for name in pipeline.teachers}
    return {name: asked[name] for name in pipeline.teachers}


def stored_scores(pipeline: Pipeline, split: str, pairs: Run) -> dict[str, Run]:
    """Teacher -> pairs of a split's queries with its scores from the experiment's store; what a teacher with a `cascade` did not read is filled in.

    Only the pairs that its share chooses are taken, so that a file gives the same scores whatever else the store has.

    Raises:
        StoreError: scores are missing.
    """
    shares, store = cascades(pipeline.experiment), [pipeline.store]
    found = {name: _read(pipeline, name, split, pairs, store) for name in pipeline.identities if name not in shares}
    if shares:
        cheap = cheap_ranking(list(found.values()))
        for name in shares:
            read = _read(pipeline, name, split, chosen_pairs(pipeline, name, split, cheap), store)
            pipeline.reporter.say(f"score: {name}: {read.n_pairs:,} of {pairs.n_pairs:,} {split} pairs read, the others filled in")
            found[name] = fill_in(read, cheap, always_read(pipeline, split, cheap))
    return {name: found[name] for name in pipeline.identities}


def chosen_pairs(pipeline: Pipeline, name: str, split: str, cheap: Run) -> Run:
    """The pairs of a split that a teacher with a `cascade` is asked for.

    Args:
        pipeline: the experiment.
        name: the teacher's.
        split: of the pairs.
        cheap: the pairs as `cheap_ranking` orders them.
    """
    return cheap.keep(choose(cheap.offsets, always_read(pipeline, split, cheap), cascades(pipeline.experiment)[name]))


def cheap_ranking(runs: Sequence[Run]) -> Run:
    """The pairs with the mean of their z-scores by the teachers that read all of them, best first."""
    return mean_of_z_scores("the cheap teachers", runs, [1.0] * len(runs))


def always_read(pipeline: Pipeline, split: str, pairs: Run) -> NDArray[np.bool_]:
    """[n], the judged positives that are read whatever the cheap teachers think of them; no test judgement is looked at.

    Of the queries that teach these are all, because every sample has one. Of the held-out queries only those that no source
    retrieved, which no measure counts: a teacher that read the others because they are relevant would look better than it is.
    """
    if split != "train":
        return np.zeros(pairs.n_pairs, dtype=np.bool_)
    held = set(pipeline.held_out[1])
    teaches = np.array([query_id not in held for query_id in pairs], dtype=np.bool_)[pairs.query_numbers]
    positive = relevant_pairs(pairs, pipeline.qrels(split))
    return np.asarray(positive & (teaches | ~pairs_in(pairs, pipeline.candidates[split])))


def fill_in(read: Run, cheap: Run, always: NDArray[np.bool_]) -> Run:
    """All pairs with a teacher's scores, given those that it read.

    Args:
        read: the pairs that it read, with its scores.
        cheap: all pairs, as `cheap_ranking` orders them.
        always: [n], as `always_read` says of them.
    """
    scores = read.to_dict()
    known = [scores[query_id].get(doc_id, np.nan) for query_id in cheap for doc_id, _ in cheap[query_id]]
    return cheap.with_scores(read.name, fill(cheap.scores, cheap.offsets, np.array(known, dtype=np.float32), always))


def _read(pipeline: Pipeline, name: str, split: str, pairs: Run, stores: Sequence[ScoreStore]) -> Run:
    """A teacher's scores of pairs, each from the first store that has it."""
    identity, queries, runs, left = pipeline.identities[name], pipeline.queries_of(name, split), [], pairs
    for store in stores[:-1]:
        runs.append(store.read(identity, left, queries, allow_missing=True).run)
        left = store.missing(identity, left, queries)
    runs.append(stores[-1].read(identity, left, queries).run)
    if len(runs) == 1:
        return runs[0].rename(name)
    return Run.from_dict(name, {query_id: dict(pair for run in runs for pair in run[query_id]) for query_id in pairs})
