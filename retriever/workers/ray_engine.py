"""Models on a Ray cluster: one for each actor, an actor that dies is started again, and all files are written by one process.

Actors are told which part to work on, of the pairs to score, the documents to encode or to write queries for, and give back
what the model made of it. The driver takes the answers in the order of the parts, so the files have the bytes that are
written without Ray, when the model gives the same numbers there: on the same kind of device, with the same number of threads
(Ray sets OMP_NUM_THREADS to the CPUs of an actor, which is 1). Draws depend on the part and not on the actor.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from retriever.config import ScoringSettings
from retriever.errors import ConfigError, MissingExtraError, RetrieverError
from retriever.workers.tasks import Answer, Ask, Engine, Model, Shared, Task

RESTARTS = 8
"""How often one actor is started again before the work is given up; what is on the disk is kept."""
AHEAD = 2
"""Tasks that an actor has before it: one that it works on, and one so that it need not wait."""
UNREAD = 4
"""Tasks for each actor that may be on their way or wait to be written; bounds the driver's memory."""


class Worker:
    """Holds one model in a process of its own: loaded when it is first asked for, so that a mistake in it arrives as what it is."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self.load = load

    @functools.cached_property
    def model(self) -> Any:
        """The loaded model."""
        return self.load()

    def identity(self) -> str:
        """What decides its answers."""
        return _identity_of(self.model)

    def answer(self, ask: Ask[Any, Any, Any, Any], shared: Any, task: Any) -> Any:
        """What the model makes of a task."""
        return ask(self.model, shared, task)


@contextlib.contextmanager
def ray_engine(
    settings: ScoringSettings, load: Callable[[], Model], ask: Ask[Model, Shared, Task, Answer], what: str
) -> Iterator[Engine[Model, Shared, Task, Answer]]:
    """An engine whose actors live as long as the block; they are started when there is a first task.

    Args:
        settings: how many workers, their share of a GPU, and the cluster's address.
        load: makes the model in the actor; sent there, so it must consist of settings and paths.
        ask: what is asked of the model.
        what: the model, at the beginning of messages.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: the cluster cannot be reached or has too few GPUs.
        RetrieverError: a worker's model is not the driver's, or workers die again and again.
    """
    workers: list[Any] = []

    def engine(model: Model, shared: Shared, tasks: Sequence[Task]) -> Iterator[Answer]:
        if tasks:
            ray = connect(settings)
            with _in_our_words(ray, what):
                if not workers:
                    workers.extend(_start(ray, settings, load))
                    _check_identities(ray, workers, _identity_of(model), what)
                yield from _answers(ray, workers, ask, shared, tasks)

    try:
        yield engine
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


def _start(ray: Any, settings: ScoringSettings, load: Callable[[], Any]) -> list[Any]:
    """The actors. A task whose actor died is done again by the restarted one."""
    options = {"num_cpus": 1, "num_gpus": settings.gpus_per_worker, "max_restarts": RESTARTS, "max_task_retries": RESTARTS}
    actor = ray.remote(Worker).options(**options)
    return [actor.remote(load) for _ in range(settings.workers)]


def _stop(workers: Sequence[Any]) -> None:
    ray: Any = importlib.import_module("ray")
    if ray.is_initialized():
        for worker in workers:
            ray.kill(worker)


def _identity_of(model: Any) -> str:
    """Sixteen hexadecimal digits, of an encoder its identity itself."""
    return str(getattr(model.identity, "fingerprint", model.identity))


def _check_identities(ray: Any, workers: Sequence[Any], identity: str, what: str) -> None:
    for other in ray.get([worker.identity.remote() for worker in workers]):
        if other != identity:
            raise RetrieverError(
                f"{what}: a Ray worker has another one ({other}, here {identity}): its files, a package's version or the dtype of its device differ. "
                "Give all machines the same, and name the dtype or precision where the model has one"
            )


def _answers(ray: Any, workers: Sequence[Any], ask: Ask[Any, Any, Any, Any], shared: Any, tasks: Sequence[Any]) -> Iterator[Any]:
    """What the model makes of each task, in their order; an actor that is ahead gets the next one."""
    shared = ray.put(shared)
    unread: collections.deque[Any] = collections.deque()
    going: dict[Any, int] = {}  # a task on its way -> its actor
    for task in tasks:
        while len(unread) >= UNREAD * len(workers):
            yield ray.get(unread.popleft())
        while (free := _least_busy(going, len(workers))) is None:
            done, _ = ray.wait(list(going), num_returns=1, fetch_local=False)
            for reference in done:
                del going[reference]
        reference = workers[free].answer.remote(ask, shared, task)
        going[reference] = free
        unread.append(reference)
        while unread and unread[0] not in going:
            yield ray.get(unread.popleft())
    while unread:
        yield ray.get(unread.popleft())


def _least_busy(going: dict[Any, int], workers: int) -> int | None:
    """The actor with the fewest tasks before it, None when all have `AHEAD`."""
    busy = collections.Counter(going.values())
    free = min(range(workers), key=lambda worker: busy[worker])
    return free if busy[free] < AHEAD else None


@contextlib.contextmanager
def _in_our_words(ray: Any, what: str) -> Iterator[None]:
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
            f"{what}: a Ray worker died and was not brought back by {RESTARTS} restarts ({reason[-1] if reason else error}). "
            "What is on the disk is kept: give the workers more memory, or take fewer, and run the same command again"
        ) from error
