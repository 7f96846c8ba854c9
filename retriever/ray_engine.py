"""Teachers on a Ray cluster: a model for each actor, an actor that dies is started again, and the store is written by one process.

Actors are told which pairs of the candidates to score and give back what the teacher said. The driver takes the answers in
the order of the shards, so the store has the bytes that the local engine writes, when the teacher gives the same numbers
there: on the same kind of device, with the same number of threads (Ray sets OMP_NUM_THREADS to the CPUs of an actor, which
is 1).
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.config import ScoringSettings
from retriever.errors import ConfigError, MissingExtraError, RetrieverError, StoreError
from retriever.scoring import CandidatePairs, ScoredShard, ScoringEngine, scored_shard
from retriever.types import ListTeacher, Teacher, TeacherIdentity

RESTARTS = 8
"""How often one actor is started again before scoring gives up; what is stored is kept."""
AHEAD = 2
"""Shards that an actor has before it: one that it scores, and one so that it need not wait."""
UNREAD = 4
"""Shards for each actor that may be on their way or wait to be written; bounds the driver's memory."""

TeacherLoad = Callable[[], Teacher | ListTeacher]


class TeacherActor:
    """Holds one teacher in a process of its own."""

    def __init__(self, load: TeacherLoad) -> None:
        self.teacher = load()

    def identity(self) -> TeacherIdentity:
        """Whose scores it gives."""
        return self.teacher.identity

    def score(self, pairs: CandidatePairs, positions: NDArray[np.int64]) -> ScoredShard:
        """What the teacher says of a shard's pairs, checked."""
        return scored_shard(self.teacher, pairs, positions)


@contextlib.contextmanager
def ray_engine(settings: ScoringSettings, load: TeacherLoad) -> Iterator[ScoringEngine]:
    """An engine whose actors live as long as the block; they are started when there is a first shard to score.

    Args:
        settings: how many workers, their share of a GPU, and the cluster's address.
        load: makes the teacher in the actor; sent there, so it must consist of settings and paths.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: the cluster cannot be reached or has too few GPUs.
    """
    workers: list[Any] = []

    def ask(teacher: Teacher | ListTeacher, pairs: CandidatePairs, shards: Sequence[NDArray[np.int64]]) -> Iterator[ScoredShard]:
        if shards:
            ray = connect(settings)
            with _in_our_words(ray, teacher.identity.name):
                if not workers:
                    workers.extend(_start(ray, settings, load))
                    _check_identities(ray, workers, teacher.identity)
                yield from _answers(ray, workers, pairs, shards)

    try:
        yield ask
    finally:
        if workers:
            _stop(workers)


def connect(settings: ScoringSettings) -> Any:
    """The module ray, connected to the cluster at the address, or to one that is started here for this process.

    It sends no statistics of use and opens no dashboard. A process that is connected already stays where it is.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: nothing answers at the address, or the GPUs are too few here.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # an actor without GPUs does not change what it sees of them
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    if not ray.is_initialized():
        here: dict[str, Any] = {"num_cpus": settings.workers, "include_dashboard": False}
        where = {"address": settings.address} if settings.address else {"address": "local", **here}
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(f'scoring.address: no Ray cluster answers at "{settings.address}" ({error}). Start one with "ray start --head"') from error
    wanted = settings.workers * settings.gpus_per_worker
    if not settings.address and wanted > (found := ray.cluster_resources().get("GPU", 0)):
        raise ConfigError(f"scoring: {settings.workers} workers with {settings.gpus_per_worker:g} GPUs each need {wanted:g}, and there are {found:g} here")
    return ray


def _start(ray: Any, settings: ScoringSettings, load: TeacherLoad) -> list[Any]:
    """The actors. A task whose actor died is done again by the restarted one."""
    options = {"num_cpus": 1, "num_gpus": settings.gpus_per_worker, "max_restarts": RESTARTS, "max_task_retries": RESTARTS}
    actor = ray.remote(TeacherActor).options(**options)
    return [actor.remote(load) for _ in range(settings.workers)]


def _stop(workers: Sequence[Any]) -> None:
    ray: Any = importlib.import_module("ray")
    if ray.is_initialized():
        for worker in workers:
            ray.kill(worker)


def _check_identities(ray: Any, workers: Sequence[Any], identity: TeacherIdentity) -> None:
    for other in ray.get([worker.identity.remote() for worker in workers]):
        if other.fingerprint != identity.fingerprint:
            raise StoreError(
                f'teacher "{identity.name}": a Ray worker has another one ({other.fingerprint}, here {identity.fingerprint}): '
                "its model or its version differs. Give all machines the same files"
            )


def _answers(ray: Any, workers: Sequence[Any], pairs: CandidatePairs, shards: Sequence[NDArray[np.int64]]) -> Iterator[ScoredShard]:
    """What the teacher says of each shard, in their order; an actor that is ahead gets the next one."""
    shared = ray.put(pairs)
    unread: collections.deque[Any] = collections.deque()
    scoring: dict[Any, int] = {}  # a shard on its way -> its actor
    for positions in shards:
        while len(unread) >= UNREAD * len(workers):
            yield ray.get(unread.popleft())
        while (free := _least_busy(scoring, len(workers))) is None:
            done, _ = ray.wait(list(scoring), num_returns=1, fetch_local=False)
            for reference in done:
                del scoring[reference]
        reference = workers[free].score.remote(shared, positions)
        scoring[reference] = free
        unread.append(reference)
        while unread and unread[0] not in scoring:
            yield ray.get(unread.popleft())
    while unread:
        yield ray.get(unread.popleft())


def _least_busy(scoring: dict[Any, int], workers: int) -> int | None:
    """The actor with the fewest shards before it, None when all have `AHEAD`."""
    busy = collections.Counter(scoring.values())
    free = min(range(workers), key=lambda worker: busy[worker])
    return free if busy[free] < AHEAD else None


@contextlib.contextmanager
def _in_our_words(ray: Any, name: str) -> Iterator[None]:
    """A user's mistake that a worker met is told as it is here; a worker that died too often is one line."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RetrieverError):
            raise error.cause from error
        raise
    except ray.exceptions.RayActorError as error:
        reason = [line for line in str(error).splitlines() if line.strip()]
        raise RetrieverError(
            f'teacher "{name}": a Ray worker died and was not brought back by {RESTARTS} restarts ({reason[-1] if reason else error}). '
            "What is stored is kept: give the workers more memory, or take fewer, and run the same command again"
        ) from error
