"""Many tasks for one model: shards of pairs, blocks of documents. An engine gives what the model made of each, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Model = TypeVar("Model")
Shared = TypeVar("Shared")
Task = TypeVar("Task")
Answer = TypeVar("Answer")

Ask = Callable[[Model, Shared, Task], Answer]
"""Has a model do one task, by what all tasks share; a function of a module, so that other processes find it by its name."""

Engine = Callable[[Model, Shared, Sequence[Task]], Iterator[Answer]]
"""Has all tasks done, here or on other machines, and yields the answers in their order."""


def here(ask: Ask[Model, Shared, Task, Answer]) -> Engine[Model, Shared, Task, Answer]:
    """The engine that asks the model in this process, one task after the other."""
    return lambda model, shared, tasks: (ask(model, shared, task) for task in tasks)
