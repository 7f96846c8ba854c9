"""The store of teacher scores: append-only, exact about what is scored, and whole after a stop at any instant.

    <folder>/store.json                                            format, the collection's name and fingerprint
    <folder>/scores/teacher=<fingerprint>/teacher.json             who the teacher is, statistics of its scores
    <folder>/scores/teacher=<fingerprint>/<number>-<sha256>.parquet

A teacher's folder says everything about it and a shard's name proves its bytes: there is no index that could disagree,
and two stores of a collection are merged by copying the folders under `scores`.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retriever.errors import StoreError
from retriever.files import lock, write_json
from retriever.runs import Run
from retriever.scores.files import FORMAT, StoreFiles
from retriever.scores.scoring import CandidatePairs, PairKeys, ScoringEngine, estimate_seconds, local_engine
from retriever.scores.shards import (
    DamagedShardError,
    PairColumns,
    ShardProblem,
    encode_shard,
    free_numbers,
    list_shards,
    read_shard,
    remove_temporaries,
    scores_in,
    set_aside,
    write_shard,
)
from retriever.types import ListTeacher, Query, ScoredPairs, Teacher, TeacherIdentity, Unit

if TYPE_CHECKING:
    from retriever.collection import Collection

SAMPLE_SHARD = 10_000
"""Pairs of the sample shard that a plan's bytes are measured on."""


@dataclasses.dataclass(frozen=True)
class TeacherScores:
    """What one teacher says of the pairs of a run, raw.

    Attributes:
        run: the pairs with the teacher's scores.
        unit: what the scores mean.
        teacher: the teacher's fingerprint.
        name: what the user calls it.
    """

    run: Run
    unit: Unit
    teacher: str
    name: str


@dataclasses.dataclass(frozen=True)
class ScoringPlan:
    """What scoring a run would do; pairs with equal texts count once.

    Attributes:
        pending: pairs to score.
        done: pairs that are stored already.
        estimated_bytes: what the pending pairs will take on the disk.
        damaged: shards that will be set aside and scored again.
    """

    pending: int
    done: int
    estimated_bytes: int
    damaged: tuple[ShardProblem, ...] = ()


def warn_of_damage(problem: ShardProblem) -> None:
    """Issues a warning that names the shard."""
    warnings.warn(f"{problem}. It was renamed to *.damaged, and its pairs are scored again", stacklevel=2)


@dataclasses.dataclass(frozen=True)
class ScoreStore(StoreFiles):
    """The scores that teachers gave to pairs of one collection; made by `ScoreStore.open`.

    The key of a pair is (query variant, document variant, teacher fingerprint): the same texts under other ids are
    the same pair and are scored once. A teacher that orders lists is asked for a whole list again whenever the set of its
    documents' texts is another one; how the candidates order them does not matter once they are stored.
    """

    collection: Collection

    @classmethod
    def open(cls, folder: Path, collection: Collection) -> ScoreStore:
        """The store in a folder, made there when it is not.

        Raises:
            StoreError: the store belongs to another collection or another version of the format, or cannot be made.
        """
        path = folder / "store.json"
        wanted = {"format": FORMAT, "collection": collection.fingerprint, "name": collection.name}
        if not path.exists():
            try:
                write_json(path, wanted)
            except OSError as error:
                raise StoreError(f"{folder}: no store can be made here ({error}). Name another folder") from error
        found = StoreFiles(folder).facts()
        if found.get("collection") != collection.fingerprint:
            raise StoreError(
                f'{folder}: the scores belong to the collection "{found.get("name")}" ({found.get("collection")}), '
                f'not to "{collection.name}" ({collection.fingerprint}). Give the experiment another name or work folder, or the collection as it was'
            )
        return cls(folder, collection)

    # Scoring

    def plan(self, teacher: TeacherIdentity, candidates: Run, queries: Mapping[str, Query]) -> ScoringPlan:
        """What `score` would do, without a teacher and without changing anything."""
        pairs = self._pairs(teacher, candidates, queries)
        pending, done, damaged = self._pending(teacher.fingerprint, pairs)
        return ScoringPlan(len(pending), done, _estimate_bytes(pairs.columns(pending[:SAMPLE_SHARD]), len(pending)), tuple(damaged))

    def estimate_seconds(self, teacher: Teacher | ListTeacher, candidates: Run, queries: Mapping[str, Query], sample_pairs: int = 64) -> float:
        """Seconds that `score` would need here, measured on a sample of the pending pairs; nothing is stored."""
        pairs = self._pairs(teacher.identity, candidates, queries)
        return estimate_seconds(teacher, pairs, self._pending(teacher.identity.fingerprint, pairs)[0], sample_pairs)

    def score(
        self,
        teacher: Teacher | ListTeacher,
        candidates: Run,
        queries: Mapping[str, Query],
        progress: Callable[[int], None] | None = None,
        on_damage: Callable[[ShardProblem], None] = warn_of_damage,
        engine: ScoringEngine = local_engine,
    ) -> None:
        """Scores the pairs that are not stored yet, in the order of the candidates, `teacher.shard_pairs` at a time.

        A stop at any instant loses at most the shard in flight, and the same call again ends with the same bytes. So
        it is with damaged shards: they are set aside and redone under their numbers. (A damaged shard of earlier, other
        candidates is redone in the order of these: the same pairs and scores, perhaps cut into other shards.)

        Args:
            teacher: asked for `shard_pairs` pairs at a time.
            candidates: the pairs; their scores and the run's name do not matter.
            queries: at least those of the candidates.
            progress: called with the number of pairs of each shard when it is on the disk.
            on_damage: called with each damaged shard.
            engine: who asks the teacher, here or on other machines; writing is done here, in the same order and bytes.

        Raises:
            StoreError: the teacher gave a wrong number of scores or one that is not finite, or the candidates name an
                unknown query or document. The store is as it was before the shard.
            RetrieverError: another process scores with this teacher here, or the disk is full.
        """
        identity = teacher.identity
        if teacher.shard_pairs < 1:
            raise StoreError(f'teacher "{identity.name}": shard_pairs is {teacher.shard_pairs}; it must be at least 1')
        folder = self.folder_of(identity.fingerprint)
        with lock(folder / ".lock", f'scoring with "{identity.name}"'):
            remove_temporaries(folder)
            pairs = self._pairs(identity, candidates, queries)
            pending, _, damaged = self._pending(identity.fingerprint, pairs)
            for problem in damaged:
                set_aside(problem.path)
                on_damage(problem)
            numbers = free_numbers(folder)
            shards = list(pairs.cut(pending, teacher.shard_pairs))
            for positions, shard in zip(shards, engine(teacher, pairs, shards), strict=True):
                self.introduce(identity)
                write_shard(folder, next(numbers), encode_shard(pairs.columns(positions), shard.scored, identity.fingerprint, shard.lists))
                self.add_usage(identity.fingerprint, shard.usage)
                if progress is not None:
                    progress(len(positions))
            self.introduce(identity)
            self.summarise(identity.fingerprint)

    def missing(self, teacher: TeacherIdentity, candidates: Run, queries: Mapping[str, Query]) -> Run:
        """The candidates without the pairs that are stored; every query stays, perhaps without documents."""
        scores, _ = self._stored_scores(teacher.fingerprint, self._pairs(teacher, candidates, queries))
        return candidates.keep(~np.isfinite(scores))

    def _pairs(self, teacher: TeacherIdentity, candidates: Run, queries: Mapping[str, Query]) -> CandidatePairs:
        return CandidatePairs.of(candidates, queries, self.collection, lists=teacher.orders_lists)

    def _pending(self, teacher: str, pairs: CandidatePairs) -> tuple[NDArray[np.int64], int, list[ShardProblem]]:
        """The pairs of the run to be scored, how many are stored, and the shards that are damaged."""
        keys = pairs.keys()
        done = np.zeros(len(keys.keys), dtype=np.bool_)
        damaged = self._visit(teacher, pairs, keys, lambda places, _: done.__setitem__(places, True))
        return keys.pending(done), int(done.sum()), damaged

    def _visit(
        self, teacher: str, pairs: CandidatePairs, keys: PairKeys, visit: Callable[[NDArray[np.int64], NDArray[np.float32]], None]
    ) -> list[ShardProblem]:
        """Shows the places and scores of the stored pairs that are among the keys; returns the damaged shards."""
        damaged = []
        asked = "query_variant" if pairs.list_variants is None else "list_id"
        for path in list_shards(self.folder_of(teacher)):
            try:
                table = read_shard(path, [asked, "doc_variant", "score", "rank"])
            except DamagedShardError as error:
                damaged.append(ShardProblem(path, str(error).removeprefix(f"{path}: ")))
                continue
            places = keys.find(table[asked].to_numpy().view(np.uint64), table["doc_variant"].to_numpy())
            visit(places[places >= 0], scores_in(table)[places >= 0])
        return damaged

    # Reading

    def read(self, teacher: TeacherIdentity | str, candidates: Run, queries: Mapping[str, Query], *, allow_missing: bool = False) -> TeacherScores:
        """The candidates with a teacher's scores.

        Args:
            teacher: its identity or fingerprint.
            candidates: the pairs.
            queries: at least those of the candidates.
            allow_missing: drop the pairs that are not stored, instead of an error.

        Raises:
            StoreError: pairs are missing, or the store does not know the fingerprint.
        """
        identity = teacher if isinstance(teacher, TeacherIdentity) else self.identity(teacher)
        scores, damaged = self._stored_scores(identity.fingerprint, self._pairs(identity, candidates, queries))
        stored = np.isfinite(scores)
        if not (allow_missing or stored.all()):
            because = f" ({damaged[0]})" if damaged else ""
            raise StoreError(
                f'{self.folder}: {int((~stored).sum()):,} of {len(scores):,} pairs have no score by teacher "{identity.name}"{because}. '
                'Run "retriever score" with the same experiment file: it scores what is missing'
            )
        kept = candidates if stored.all() else candidates.keep(stored)
        return TeacherScores(kept.with_scores(identity.name, scores[stored]), identity.unit, identity.fingerprint, identity.name)

    def _stored_scores(self, teacher: str, pairs: CandidatePairs) -> tuple[NDArray[np.float32], list[ShardProblem]]:
        """The scores [n] in the order of the candidates, NaN for a pair that is not stored, and the shards that are damaged."""
        keys = pairs.keys()
        found = np.full(len(keys.keys), np.nan, dtype=np.float32)
        damaged = self._visit(teacher, pairs, keys, found.__setitem__)
        return keys.spread(found), damaged


def _estimate_bytes(sample: PairColumns, pending: int) -> int:
    """Bytes that the pending pairs will take: those of a sample shard with random scores, scaled."""
    if not pending:
        return 0
    count = len(sample.query_ids)
    generator = np.random.default_rng(0)
    scored = ScoredPairs(generator.standard_normal(count, dtype=np.float32), generator.integers(0, 512, count, dtype=np.int32), np.zeros(count, dtype=np.bool_))
    return round(len(encode_shard(sample, scored, "0" * 16)) * pending / count)
