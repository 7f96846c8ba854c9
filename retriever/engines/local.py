"""A language model on this machine, run by transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from retriever.engines import EngineIdentity, Likelihoods, Message, Prompt, prompt_text, tokenization
from retriever.engines.gguf import find_language_model
from retriever.engines.settings import EngineSettings
from retriever.errors import ConfigError
from retriever.models.names import check_length
from retriever.types import Usage

UNKNOWN_LENGTH = 4096
"""Tokens read by a model whose configuration names no number of positions."""


class LocalEngine:
    """A causal language model with its tokenizer. Prompts are sorted by length and padded on the left.

    Attributes:
        model: on its device.
        tokenizer: a fast one.
        identity: hash of the model's files, dtype, "transformers".
        max_length: tokens of a prompt with its answer.
    """

    counts_exactly = True

    def __init__(self, model: Any, tokenizer: Any, name: str, settings: EngineSettings) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.identity = EngineIdentity(name, str(model.dtype).removeprefix("torch."), "transformers")
        self.max_length = settings.max_length or getattr(model.config, "max_position_embeddings", None) or UNKNOWN_LENGTH
        self.batch_size = settings.batch_size
        self.batch_tokens = settings.batch_tokens
        self.usage = Usage()

    # Texts

    def count_tokens(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """[n], tokens of each text."""
        return np.array([len(ids) for ids in tokenization.encode(self.tokenizer, texts)], dtype=np.int32)

    def cut(self, text: str, n_tokens: int) -> str:
        """The beginning of a text that is at most so many tokens long."""
        return tokenization.cut(self.tokenizer, text, n_tokens)

    def plain(self, text: str) -> str:
        """The text without control tokens."""
        return tokenization.plain(self.tokenizer, text)

    def chat(self, messages: Sequence[Message]) -> Prompt | None:
        """The messages in the model's chat template; None for a base model."""
        return tokenization.chat(self.tokenizer, messages)

    def single_tokens(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts that are one token."""
        return list(tokenization.single_tokens(self.tokenizer, texts))

    # Numbers

    def next_token_logits(self, prompts: Sequence[Prompt], tokens: Sequence[str]) -> NDArray[np.float32]:
        """[n, T], log-probabilities of T tokens after each prompt."""
        known = tokenization.single_tokens(self.tokenizer, tokens)
        if missing := [token for token in tokens if token not in known]:
            raise ConfigError(f"{missing!r} are no single tokens of the model, or the same one. Choose among those that single_tokens gives")
        ids = self._encode(prompts)
        found = np.empty((len(ids), len(known)), dtype=np.float32)
        for batch in self._batches([len(one) for one in ids]):
            logits = self._forward([ids[place] for place in batch], keep=1)[:, -1]  # [b, V]
            found[batch] = torch.log_softmax(logits, dim=-1)[:, list(known.values())].cpu().numpy()
        return found

    def log_likelihood(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> Likelihoods:
        """The sum of the log-probabilities of each continuation's tokens, and their number."""
        texts = [prompt_text(prompt) for prompt in prompts]
        ids, counts = tokenization.split_continuations(self.tokenizer, texts, continuations)
        self._count(ids)
        sums = np.zeros(len(ids), dtype=np.float32)
        for batch in self._batches([len(one) for one in ids]):
            keep = int(counts[batch].max())
            if keep:
                sums[batch] = self._sum_of_last([ids[place] for place in batch], counts[batch], keep)
        return Likelihoods(sums, counts)

    def _sum_of_last(self, ids: list[list[int]], counts: NDArray[np.int32], keep: int) -> NDArray[np.float32]:
        logits = self._forward(ids, keep=keep + 1)[:, :-1]  # [b, keep, V]: each position's opinion of the token after it
        last = [([0] * keep + one)[-keep:] for one in ids]
        targets = torch.tensor(last, device=logits.device)[:, :, None]  # [b, keep, 1]
        chosen = torch.log_softmax(logits, dim=-1).gather(2, targets)[:, :, 0].cpu().numpy()  # [b, keep]
        belongs = np.arange(keep) >= keep - counts[:, None]
        return np.asarray(np.where(belongs, chosen, 0.0).sum(axis=1), dtype=np.float32)

    def generate(self, prompts: Sequence[Prompt], max_tokens: int, temperature: float = 0.0, seed: int = 0, stop: Sequence[str] = ()) -> list[str]:
        """The texts that the model writes after each prompt; what is drawn depends on the batches too."""
        ids = self._encode(prompts)
        drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {"do_sample": False}
        ends = {"eos_token_id": self.model.generation_config.eos_token_id, "pad_token_id": self._padding}
        config = GenerationConfig(max_new_tokens=max_tokens, **ends, **drawn)  # type: ignore[no-untyped-call]
        texts = [""] * len(ids)
        with torch.random.fork_rng(devices=self._cuda_devices()):
            torch.manual_seed(seed)
            for batch in self._batches([len(one) + max_tokens for one in ids]):
                padded, mask = self._pad([ids[place] for place in batch])
                with torch.inference_mode():
                    written = self.model.generate(padded, attention_mask=mask, generation_config=config)[:, padded.shape[1] :]
                for place, answer in zip(batch, self.tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
                    texts[place] = cut_at(answer, stop)
                self.usage += Usage(completion_tokens=int((written != self._padding).sum()))
        return texts

    # Batches

    def _encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        ids = tokenization.encode_prompts(self.tokenizer, [prompt_text(prompt) for prompt in prompts])
        self._count(ids)
        return ids

    def _count(self, ids: Sequence[Sequence[int]]) -> None:
        longest = max((len(one) for one in ids), default=0)
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if positions and longest > positions:
            raise ConfigError(f"a prompt has {longest} tokens, but the model reads {positions} at most. Lower max_length")
        self.usage += Usage(requests=len(ids), prompt_tokens=sum(map(len, ids)))

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Places of prompts of about the same length, the longest first: what does not fit into memory fails at once."""
        batch: list[int] = []
        longest = 0
        for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
            if batch and (len(batch) == self.batch_size or longest * (len(batch) + 1) > self.batch_tokens):
                yield batch
                batch = []
            longest = lengths[batch[0]] if batch else lengths[place]
            batch.append(place)
        if batch:
            yield batch

    @property
    def _padding(self) -> int:
        return next(int(token) for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0) if token is not None)

    def _pad(self, ids: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and attention mask, both [b, L], padded on the left."""
        length = max(len(one) for one in ids)
        padded = [[self._padding] * (length - len(one)) + list(one) for one in ids]
        mask = [[0] * (length - len(one)) + [1] * len(one) for one in ids]
        return torch.tensor(padded, device=self.model.device), torch.tensor(mask, device=self.model.device)

    def _forward(self, ids: Sequence[Sequence[int]], keep: int) -> torch.Tensor:
        """float32 [b, keep, V], logits at the last positions."""
        padded, mask = self._pad(ids)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)  # counted from each prompt's own first token
        with torch.inference_mode():
            logits: torch.Tensor = self.model(input_ids=padded, attention_mask=mask, position_ids=positions, logits_to_keep=keep, use_cache=False).logits
        return logits.float()

    def _cuda_devices(self) -> list[Any]:
        return [self.model.device] if self.model.device.type == "cuda" else []


def cut_at(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop texts."""
    ends: list[int] = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(ends)] if ends else text


def load_local(settings: EngineSettings, where: str) -> LocalEngine:
    """The model of a folder, GGUF file, package or hub id, on the best device there is.

    Raises:
        ConfigError: no model is named, there is none, it is no causal language model, or it cannot read so much.
        MissingExtraError: a GGUF file is named and the package gguf is missing.
    """
    if not settings.model:
        raise ConfigError(f"{where}: a language model needs a model: a folder, a GGUF file, an installed package or a hub id")
    found = find_language_model(settings.model, settings.revision, where)
    device = best_device()
    dtype = "float32" if settings.dtype == "auto" and device == "cpu" else settings.dtype
    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    try:
        model = load(found.folder, dtype=dtype, use_safetensors=True, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(found.folder, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        raise ConfigError(f"{where}: {settings.model} cannot be loaded as a causal language model ({str(error)[:200]})") from error
    if not tokenizer.is_fast:
        raise ConfigError(f"{where}: {settings.model} has no fast tokenizer, which says where a token ends. Serve the model and set server")
    check_length(settings.max_length, model.config, f"{where}: max_length")
    return LocalEngine(model.eval().to(device), tokenizer, found.identity, settings)


def best_device() -> str:
    """The device that sentence-transformers would take: cuda, mps or cpu."""
    from sentence_transformers.util import get_device_name

    return str(get_device_name())
