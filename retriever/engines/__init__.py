"""Language models behind one protocol: on this machine by transformers, or on a server over HTTP."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retriever.engines.settings import EngineSettings
from retriever.types import Usage

Message = Mapping[str, Any]
"""One turn of a chat: "role" (system, user, assistant) and "content", a text; for models that see on a server, a list of parts in OpenAI's form."""

Prompt = str | tuple[Message, ...]
"""What a model reads: a text with everything in it, or the turns of a chat that a server puts into its model's template."""


@dataclasses.dataclass(frozen=True)
class EngineIdentity:
    """What decides a language model's numbers.

    Attributes:
        model: a hash of its weights and files; the name that a server knows it by, where only the server has them.
        dtype: of its weights in memory; "" where only the server knows.
        engine: "transformers", "server:completions" or "server:chat".
    """

    model: str
    dtype: str
    engine: str


@dataclasses.dataclass(frozen=True)
class Likelihoods:
    """How likely a model holds n continuations of n prompts.

    Attributes:
        sums: float32 [n], the sum of the tokens' log-probabilities, natural logarithm.
        n_tokens: int32 [n], tokens of the continuation.
    """

    sums: NDArray[np.float32]
    n_tokens: NDArray[np.int32]

    @property
    def means(self) -> NDArray[np.float32]:
        """[n], the mean per token; 0 for a continuation without tokens."""
        return (self.sums / np.maximum(self.n_tokens, 1)).astype(np.float32)


class Engine(Protocol):
    """A causal language model. Results come in the order of what was asked, however they were batched."""

    @property
    def identity(self) -> EngineIdentity:
        """What decides the numbers."""
        ...

    @property
    def max_length(self) -> int:
        """Tokens of prompt and answer that the model reads."""
        ...

    @property
    def counts_exactly(self) -> bool:
        """Whether the model's tokenizer is at hand; without it tokens are estimated from characters."""
        ...

    @property
    def usage(self) -> Usage:
        """What was asked for since the engine was opened."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """[n], tokens of each text, without those that begin a prompt."""
        ...

    def cut(self, text: str, n_tokens: int) -> str:
        """The beginning of a text that is at most so many tokens long."""
        ...

    def plain(self, text: str) -> str:
        """The text with nothing in it that the model takes for a control token: a document must not end the user's turn."""
        ...

    def chat(self, messages: Sequence[Message]) -> Prompt | None:
        """The prompt that asks for the assistant's answer; None for a base model, which has no chat template."""
        ...

    def single_tokens(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts that are one token, no token twice."""
        ...

    def next_token_logits(self, prompts: Sequence[Prompt], tokens: Sequence[str]) -> NDArray[np.float32]:
        """[n, T], log-probabilities of T tokens after each of n prompts; their differences are those of the logits.

        A token is named by its text, which is what every server tells. Those that a server does not list share the highest
        probability that one of them can have.
        """
        ...

    def log_likelihood(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> Likelihoods:
        """How likely each continuation is; a token belongs to it when it ends behind the prompt's last character."""
        ...

    def generate(self, prompts: Sequence[Prompt], max_tokens: int, temperature: float = 0.0, seed: int = 0, stop: Sequence[str] = ()) -> list[str]:
        """The texts that the model writes, without the prompts; the likeliest token each time at temperature 0.

        Args:
            prompts: n of them.
            max_tokens: of each answer.
            temperature: divides the logits before a token is drawn.
            seed: of the draws; the same prompts and seed give the same texts on the same machine.
            stop: texts that end an answer; they are not part of it.
        """
        ...


def prompt_text(prompt: Prompt) -> str:
    """The text of a prompt, for counting."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def open_engine(settings: EngineSettings, where: str) -> Engine:
    """The engine that settings name: a server's where they have one, else the model on this machine.

    Args:
        settings: model, dtype, lengths, server.
        where: begins error messages, such as 'teacher "judge"'.

    Raises:
        ConfigError: no model is named, there is none, or the settings do not fit it.
        MissingExtraError: a GGUF file is named and the package gguf is missing.
    """
    if settings.server is not None:
        from retriever.engines.server import open_server

        return open_server(settings, where)
    from retriever.engines.local import load_local

    return load_local(settings, where)
