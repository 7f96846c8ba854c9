"""A language model on a server that speaks OpenAI's protocol: vLLM, the llama.cpp server, or a paid one.

Text completions give everything, query likelihood included (`echo`; vLLM has it, llama.cpp does not). Chat completions give
answers and the likeliest first tokens of an answer.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from retriever.engines import EngineIdentity, Likelihoods, Message, Prompt, prompt_text
from retriever.engines.connection import Connection
from retriever.engines.settings import EngineSettings, ServerSettings
from retriever.errors import ConfigError
from retriever.files import fingerprint
from retriever.types import Usage

Value = TypeVar("Value")

CHARACTERS_PER_TOKEN = 3
"""What a token is taken for where the model's tokenizer is not at hand: English has 4 to 5, so a prompt rather is too short."""

UNKNOWN_LENGTH = 4096


class ServerEngine:
    """A model that somebody else runs.

    Attributes:
        connection: the way to the server.
        model: the name that the server knows it by.
        tokenizer: the model's, where the settings name one.
    """

    def __init__(self, connection: Connection, model: str, settings: EngineSettings, tokenizer: Any = None, tokenizer_identity: str = "") -> None:
        self.connection = connection
        self.model = model
        self.tokenizer = tokenizer
        self.server: ServerSettings = connection.settings
        name = "@".join(part for part in (model, settings.revision, tokenizer_identity) if part)
        self.identity = EngineIdentity(name, "" if settings.dtype == "auto" else settings.dtype, f"server:{self.server.endpoint}")
        self.max_length = settings.max_length or UNKNOWN_LENGTH
        self.counts_exactly = tokenizer is not None
        self.usage = Usage()

    # Texts

    def count_tokens(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """[n], tokens of each text; estimated without a tokenizer."""
        if self.tokenizer is None:
            return np.array([math.ceil(len(text) / CHARACTERS_PER_TOKEN) for text in texts], dtype=np.int32)
        from retriever.engines import tokenization

        return np.array([len(ids) for ids in tokenization.encode(self.tokenizer, texts)], dtype=np.int32)

    def cut(self, text: str, n_tokens: int) -> str:
        """The beginning of a text that is at most so many tokens long."""
        if self.tokenizer is None:
            return text[: max(n_tokens, 0) * CHARACTERS_PER_TOKEN]
        from retriever.engines import tokenization

        return tokenization.cut(self.tokenizer, text, n_tokens)

    def plain(self, text: str) -> str:
        """The text without control tokens, where the tokenizer says which there are; a chat server keeps them out by itself."""
        if self.tokenizer is None:
            return text
        from retriever.engines import tokenization

        return tokenization.plain(self.tokenizer, text)

    def chat(self, messages: Sequence[Message]) -> Prompt | None:
        """The messages for the endpoint "chat"; for "completions" in the template of the tokenizer, None without one."""
        if self.server.endpoint == "chat":
            return tuple(messages)
        if self.tokenizer is None:
            return None
        from retriever.engines import tokenization

        return tokenization.chat(self.tokenizer, messages)

    def single_tokens(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts that are one token; all of them without a tokenizer: what is none is never listed."""
        if self.tokenizer is None:
            return list(texts)
        from retriever.engines import tokenization

        return list(tokenization.single_tokens(self.tokenizer, texts))

    # Numbers

    def next_token_logits(self, prompts: Sequence[Prompt], tokens: Sequence[str]) -> NDArray[np.float32]:
        """[n, T], log-probabilities of T tokens after each prompt.

        A server lists the likeliest tokens only. One that it does not list can have neither more than the least likely listed
        one nor more than what all listed ones leave. The tokens that are asked for and not listed share the lower of the two,
        so that many spellings of a word do not add up to what nobody said.
        """
        listed = {"logprobs": True, "top_logprobs": self.server.top_logprobs} if self.server.endpoint == "chat" else {"logprobs": self.server.top_logprobs}
        answers = self._ask(prompts, [{"max_tokens": 1, "temperature": 0.0, **listed}] * len(prompts))
        found = [self._read(_first_tokens, choice) for choice in answers]
        if not all(found):
            raise self._lacks("log-probabilities of the answer's first token", "Start it with them allowed, or choose another endpoint")
        return np.array([_listed_or_share(one, tokens) for one in found], dtype=np.float32).reshape(len(prompts), len(tokens))

    def log_likelihood(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> Likelihoods:
        """The sum of the log-probabilities of each continuation's tokens, and their number."""
        if self.server.endpoint == "chat":
            raise ConfigError(f'{self.connection.where}: chat completions tell no likelihood of a given text. Set endpoint = "completions"')
        texts = [prompt_text(prompt) + continuation for prompt, continuation in zip(prompts, continuations, strict=True)]
        # One token is written because not every server takes 0; its place says where the given text ends.
        answers = self._ask(texts, [{"max_tokens": 1, "temperature": 0.0, "logprobs": 1, "echo": True}] * len(texts))
        readers = [functools.partial(_likelihood, len(continuation)) for continuation in continuations]
        parts = [self._read(likelihood, choice) for likelihood, choice in zip(readers, answers, strict=True)]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            raise self._lacks("log-probabilities of the prompt (echo)", 'vLLM gives them; with another server use form = "yes_no"')
        return Likelihoods(np.array([total for total, _ in known], dtype=np.float32), np.array([count for _, count in known], dtype=np.int32))

    def generate(self, prompts: Sequence[Prompt], max_tokens: int, temperature: float = 0.0, seed: int = 0, stop: Sequence[str] = ()) -> list[str]:
        """The texts that the model writes; whether a seed fixes them is up to the server."""
        fields = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, **({"stop": list(stop)} if stop else {})}
        return self.answers(prompts, [fields] * len(prompts))

    def answers(self, prompts: Sequence[Prompt], fields: Sequence[Mapping[str, Any]]) -> list[str]:
        """The texts that the model writes when each prompt is asked with fields of its own, such as its seed."""
        return [self._read(_written, choice) for choice in self._ask(prompts, fields)]

    def _ask(self, prompts: Sequence[Prompt], fields: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The first choice of the answer to each prompt."""
        chat = self.server.endpoint == "chat"
        bodies = [{"model": self.model, **_as_field(prompt, chat=chat), **own, **self.server.request} for prompt, own in zip(prompts, fields, strict=True)]
        answers = self.connection.post_all("/chat/completions" if chat else "/completions", bodies)
        self.usage += sum((self._read(self._usage, answer) for answer in answers), Usage())
        choices = [answer.get("choices") for answer in answers]
        if not all(isinstance(one, list) and one and isinstance(one[0], dict) for one in choices):
            raise self._lacks("choices", "Is url the address of a server with OpenAI's protocol?")
        return [one[0] for one in choices if one]

    def _usage(self, answer: Mapping[str, Any]) -> Usage:
        told = answer.get("usage") or {}
        read, written = int(told.get("prompt_tokens") or 0), int(told.get("completion_tokens") or 0)
        return Usage(1, read, written, (read * self.server.prompt_price + written * self.server.completion_price) / 1e6)

    def _read(self, read: Callable[[Mapping[str, Any]], Value], told: Mapping[str, Any]) -> Value:
        """What a function reads of an answer or a choice, in which a server may put anything."""
        try:
            return read(told)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            shown = json.dumps(told)[:200]
            raise ConfigError(
                f"{self.connection.where}: {self.server.url} answered what OpenAI's protocol does not have: {shown}. Check url, endpoint and model"
            ) from error

    def _lacks(self, what: str, advice: str) -> ConfigError:
        return ConfigError(f"{self.connection.where}: {self.server.url} gave no {what}. {advice}")


def _as_field(prompt: Prompt, *, chat: bool) -> dict[str, Any]:
    if not chat:
        return {"prompt": prompt_text(prompt)}
    return {"messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(message) for message in prompt]}


def _written(choice: Mapping[str, Any]) -> str:
    """The text of an answer, in either of the two forms that endpoints use; "" for one that says nothing. A bare number counts as its text."""
    text = (choice.get("message") or {}).get("content") or choice.get("text") or ""
    if isinstance(text, list | dict):
        raise TypeError
    return str(text)


def _first_tokens(choice: Mapping[str, Any]) -> dict[str, float]:
    """Text -> log-probability of the tokens listed for an answer's first place, in either of the two forms that servers use."""
    told = choice.get("logprobs") or {}
    if content := told.get("content"):
        return {str(one["token"]): float(one["logprob"]) for one in reversed(content[0].get("top_logprobs") or [])}
    first = (told.get("top_logprobs") or [{}])[0] or {}
    return {str(token): float(value) for token, value in first.items()}


def _listed_or_share(listed: Mapping[str, float], tokens: Sequence[str]) -> list[float]:
    left = 1.0 - sum(math.exp(min(value, 0.0)) for value in listed.values())
    bound = min(*listed.values(), math.log(max(left, 1e-7)))  # 1e-7: what rounding leaves of 1
    share = bound - math.log(max(sum(token not in listed for token in tokens), 1))
    return [listed.get(token, share) for token in tokens]


def _likelihood(n_characters: int, choice: Mapping[str, Any]) -> tuple[float, int] | None:
    """Sum and number of the log-probabilities of the last characters before the one written token; None where they are not told.

    Offsets are counted from where the given text ends, because some servers put a start token before it and count that too.
    """
    told = choice.get("logprobs")
    if not told or not told.get("token_logprobs") or len(told.get("text_offset") or []) < 2:
        return None
    values, offsets = told["token_logprobs"], told["text_offset"]
    begin = offsets[-1] - n_characters
    if offsets[-1] == offsets[0]:
        return None
    chosen = [value for value, end in zip(values[:-1], offsets[1:], strict=False) if end > begin and value is not None]
    return float(sum(chosen)), len(chosen)


def open_server(settings: EngineSettings, where: str) -> ServerEngine:
    """The engine of a server; nothing is asked of it yet.

    Raises:
        ConfigError: no model is named, the key's variable is empty, or there is no such tokenizer.
    """
    if settings.server is None or not settings.model:
        raise ConfigError(f"{where}: a server needs a model: the name that it knows the model by")
    tokenizer, identity = _tokenizer(settings.server.tokenizer, where) if settings.server.tokenizer else (None, "")
    return ServerEngine(Connection(settings.server, where), settings.model, settings, tokenizer, identity)


def _tokenizer(name: str, where: str) -> tuple[Any, str]:
    """A tokenizer and what it is: its rules and its chat template."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (ValueError, OSError, KeyError) as error:
        raise ConfigError(f'{where}: server.tokenizer: "{name}" is neither a folder nor a hub id with a tokenizer ({str(error)[:200]})') from error
    if not tokenizer.is_fast:
        raise ConfigError(f"{where}: server.tokenizer: {name} is no fast tokenizer, which says where a token ends. Leave it out: tokens are estimated then")
    return tokenizer, fingerprint([tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template])
