"""Several processes of one command, as torchrun and accelerate start them: the first one makes the steps, the others train along.

Everything but the loop of a train step is done by the first process alone, so that no lock, no file and no bar is there twice.
The others hold no teacher and no scores: they wait until a train step begins, get its samples, and train with their own copy
of the student. How a batch is divided among them is told in `retriever.training.parallel`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from retriever.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

    from retriever.pipeline import Pipeline
    from retriever.workers.orders import Order

PATIENCE = timedelta(days=30)
"""How long a process waits for another: for as long as the first one validates. One that died is noticed at once, by its closed connection."""

SECONDS = 0.2
"""Between two looks for a new order."""

SECONDS_TO_LEAVE = 10.0
"""How long the first process waits at its end for others to hear of it; those that died in between do not."""

TRAIN, END, LEFT = "train", "end", "left"
"""What stands in the store."""


class _Orders:
    """Numbered orders in the store through which processes find each other. A look into it waits for nobody, so that a process may end at any time.

    Attributes:
        store: where orders are written and found.
        rank: of this process.
        count: of processes.
        number: of the last order.
        training: an order is being carried out.
    """

    def __init__(self) -> None:
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        store, self.rank, self.count = next(rendezvous("env://"))
        store.set_timeout(PATIENCE)
        self.store: Store = PrefixStore("retriever", store)
        self.number = 0
        self.training = False

    def call(self) -> None:
        """Tells the others that an order comes."""
        self.number += 1
        self.store.set(f"order {self.number}", TRAIN)

    def wait(self) -> bool:
        """Whether there is another order, when that is known."""
        self.number += 1
        while not self.store.check([f"order {self.number}"]):
            time.sleep(SECONDS)
        found: bytes = self.store.get(f"order {self.number}")
        return found == TRAIN.encode()

    def dismiss(self) -> None:
        """Tells the others that no more orders come, and waits until they have heard it, for the store may live in this process; in training nobody listens."""
        self.store.set(f"order {self.number + 1}", END)
        late = time.monotonic() + (0 if self.training else SECONDS_TO_LEAVE)
        while self.store.add(LEFT, 0) < self.count - 1 and time.monotonic() < late:
            time.sleep(SECONDS)

    @contextlib.contextmanager
    def group(self) -> Iterator[None]:
        """Torch's process group for one order: gloo adds up on processors, NCCL on GPUs. An error leaves it as it is, for the others may be in a sum."""
        import torch
        from torch.distributed.distributed_c10d import PrefixStore

        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store = PrefixStore(f"group {self.number}", self.store)
        torch.distributed.init_process_group(backend, store=store, rank=self.rank, world_size=self.count, timeout=PATIENCE)
        self.training = True
        yield
        torch.distributed.destroy_process_group()
        self.training = False


_joined: list[_Orders] = []
"""The way to the other processes, while there are some."""


def several() -> bool:
    """Whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def refuse_several(what: str, command: str) -> None:
    """Refuses work that one process does alone, and whose library would divide it.

    Raises:
        ConfigError: this process is one of several.
    """
    if several():
        raise ConfigError(f"{what}: one process does this alone, and there are {os.environ['WORLD_SIZE']}. Run first, without torchrun: {command}")


@contextlib.contextmanager
def training_together(pipeline: Pipeline) -> Iterator[bool]:
    """True within the process that makes the steps, False within the others, which by then have trained along until it was done.

    Alone, a process makes the steps and nothing is set up.

    Raises:
        RetrieverError: training went wrong in this process.
    """
    if not several():
        yield True
        return
    orders = _join()
    if orders.rank:
        follow(pipeline, orders)
        yield False
        return
    try:
        yield True
    finally:
        _joined.clear()
        orders.dismiss()


@contextlib.contextmanager
def trained_along(order: Order) -> Iterator[None]:
    """Lets the other processes do what this one trains within the block; alone, this does nothing."""
    if not _joined:
        yield
        return
    from retriever.training.parallel import check_batch_size, shared_bytes
    from retriever.workers.orders import to_bytes

    check_batch_size(order.settings.batch_size, _joined[0].count)
    _joined[0].call()
    with _joined[0].group():
        shared_bytes(to_bytes(order))
        yield


def follow(pipeline: Pipeline, orders: _Orders) -> None:
    """Trains along at every order, until there are no more."""
    from retriever.steps.rounds import teacher_vectors
    from retriever.training.parallel import shared_bytes
    from retriever.training.sparsity import SparsityController
    from retriever.training.trainer import train_student
    from retriever.training.watcher import Supervision
    from retriever.workers.orders import from_bytes

    while orders.wait():
        student = pipeline.load_student(pipeline.experiment.student)  # of the same shape; its weights come from the first process
        with orders.group():
            order = from_bytes(shared_bytes(b""))
            samples: Any = order.samples
            if (vectors := teacher_vectors(pipeline, order.settings)) is not None:
                samples = dataclasses.replace(samples, vectors=vectors)
            sparsity = SparsityController(*order.active) if order.active else None
            train_student(student.model, samples, pipeline.collection, order.settings, order.folder, order.seed, Supervision(dict, sparsity=sparsity))
    orders.store.add(LEFT, 1)


def _join() -> _Orders:
    """Finds the other processes; each takes a GPU of its own, where there are some."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    _joined.append(_Orders())
    return _joined[0]
