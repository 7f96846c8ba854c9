"""One line that names the setting which would help, when memory will not do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import ParamSpec, TypeVar

import torch

from retriever.errors import RetrieverError
from retriever.settings.training import TrainingSettings

P = ParamSpec("P")
T = TypeVar("T")

WORDS = ("DefaultCPUAllocator: can't allocate memory", "not enough memory: you tried to allocate", "MPS backend out of memory", "CUDA out of memory")
"""What torch says where it raises a plain RuntimeError, by device."""


@contextlib.contextmanager
def explain_memory(what: str, advice: str) -> Iterator[None]:
    """Turns the ways in which torch and numpy say that memory will not do into one clear line.

    Args:
        what: was being done.
        advice: settings that would help, the one that helps most first.

    Raises:
        RetrieverError: memory ran out within the block.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one
        if not means_no_memory(error):
            raise
        raise RetrieverError(f"{what}: memory will not do. Set {advice}; what is on disk is as it was") from error


def with_memory_explained(function: Callable[P, T], what: str, advice: str) -> Callable[P, T]:
    """The same function, whose lack of memory is explained."""

    def explained(*args: P.args, **kwargs: P.kwargs) -> T:
        with explain_memory(what, advice):
            return function(*args, **kwargs)

    return explained


def means_no_memory(error: BaseException) -> bool:
    """Whether an error says that memory will not do: by its kind, or by its words where it has none of its own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in WORDS)


def training_advice(settings: TrainingSettings, processes: int = 1, pairs: bool = False, found: Mapping[str, int] | None = None) -> str:
    """The settings of [training] that would need less memory, in the order in which they help, with values.

    Args:
        settings: of the run that had too little.
        processes: among which a batch is divided; it stays a multiple of them.
        pairs: the student reads query and document together: a gradient cache is not for it.
        found: what is read when a setting is left out, such as max_length.
    """
    length = settings.max_length or (found or {}).get("max_length")
    half = settings.batch_size // 2 // processes * processes
    advice = {
        "gradient_cache = true": not settings.gradient_cache and not pairs,  # changes no gradient
        f"batch_size = {half}": half >= 1,
        f"max_length = {(length or 0) // 2}": bool(length and length >= 32),
        f"documents_per_query = {max(2, settings.documents_per_query // 2)}": settings.documents_per_query > 2,
        f"matryoshka = [{_fewer(settings.matryoshka)}]": bool(settings.matryoshka and len(settings.matryoshka) > 1),
        "lora = {}": settings.lora is None and not pairs,  # needs less for the optimiser, not for activations
    }
    helping = [f"training.{setting}" for setting, helps in advice.items() if helps]
    return f"{helping[0]}, or {', '.join(helping[1:])}" if len(helping) > 1 else next(iter(helping), "a smaller student.model")


def _fewer(sizes: tuple[int, ...] | None) -> str:
    """Every second size."""
    return ", ".join(map(str, (sizes or ())[::2]))
