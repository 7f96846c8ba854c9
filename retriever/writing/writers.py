"""Language models that write texts for an experiment: what decides their texts, and how they are asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from retriever.errors import ConfigError
from retriever.files import fingerprint
from retriever.types import Usage

Thing_contra = TypeVar("Thing_contra", contravariant=True)

ROOM = 8
"""Tokens kept free: texts that are joined may be cut into a few more tokens than each alone."""


@dataclasses.dataclass(frozen=True)
class WriterIdentity:
    """Everything that decides what a writer writes.

    Attributes:
        method: what is written, such as "llm", "title" or "sentence" for queries, "rewrite" for turns.
        model: a hash of the weights, or the name that a server knows them by; "" without a model.
        seed: of the draws.
        settings: prompt and its hash, temperature, lengths, dtype, engine.
    """

    method: str
    model: str
    seed: int
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with anything that changes the texts."""
        return fingerprint(dataclasses.asdict(self))


class Writer(Protocol[Thing_contra]):
    """Writes a text for each thing that it is shown: a query for a document, a rewrite of a turn."""

    @property
    def identity(self) -> WriterIdentity:
        """What decides the texts."""
        ...

    @property
    def usage(self) -> Usage:
        """What a language model was asked for."""
        ...

    def write(self, things: Sequence[Thing_contra], sample: int) -> list[str]:
        """The raw answer for each thing; a thing has another one for each sample number."""
        ...


class Told(Protocol):
    """What a table says of the chat with its model."""

    @property
    def model(self) -> str | None:
        """Its name."""
        ...

    @property
    def system(self) -> str | None:
        """The system's turn."""
        ...

    @property
    def chat(self) -> bool | None:
        """Whether to use the chat template."""
        ...


def check_chat(settings: Told, in_chat: bool, where: str) -> None:
    """Sees to it that what a table says of the chat has an effect.

    Raises:
        ConfigError: it names a system's turn, or wants a chat, and there is none.
    """
    if settings.chat and not in_chat:
        raise ConfigError(f"{where}: chat = true, but {settings.model} has no chat template at hand. Take it out; for a server set endpoint or tokenizer")
    if settings.system is not None and not in_chat:
        raise ConfigError(f"{where}: system is set, but the prompt does not go into a chat template. Put its words into the prompt")


def room_left(taken: int, answer_tokens: int, max_length: int, where: str) -> int:
    """Tokens that a prompt of so many tokens and its answer leave for what the model is shown.

    Raises:
        ConfigError: none.
    """
    room = max_length - taken - answer_tokens - ROOM
    if room < 1:
        raise ConfigError(
            f"{where}: the prompt and an answer of {answer_tokens} tokens take all of the {max_length} tokens that are read. "
            "Raise max_length, or shorten the prompt"
        )
    return room
