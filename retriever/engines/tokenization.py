"""Texts as a model's tokenizer sees them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.engines import Message


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text; control tokens written in it count as such, none are added."""
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]] if texts else []


def encode_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, begun by the start token where the tokenizer adds one and the prompt does not have it."""
    start = start_token(tokenizer)
    return [ids if start is None or ids[:1] == [start] else [start, *ids] for ids in encode(tokenizer, prompts)]


def start_token(tokenizer: Any) -> int | None:
    """The id of the token that the tokenizer puts before a text; None for one that puts none."""
    start: int | None = tokenizer.bos_token_id
    return start if start in tokenizer("", verbose=False)["input_ids"] else None


def split_continuations(tokenizer: Any, prompts: Sequence[str], continuations: Sequence[str]) -> tuple[list[list[int]], NDArray[np.int32]]:
    """Token ids of each prompt with its continuation, and how many of the last ones belong to the continuation.

    A token does when it ends behind the prompt's last character: prompt and continuation are cut into tokens together, as
    the model would read them. A token that nothing stands before has no likelihood and does not count.
    """
    texts = [prompt + continuation for prompt, continuation in zip(prompts, continuations, strict=True)]
    ids = encode_prompts(tokenizer, texts)
    offsets = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"] if texts else []
    counts = [sum(end > len(prompt) for _, end in spans) for prompt, spans in zip(prompts, offsets, strict=True)]
    return ids, np.array([min(count, len(one) - 1) if one else 0 for count, one in zip(counts, ids, strict=True)], dtype=np.int32)


def cut(tokenizer: Any, text: str, n_tokens: int) -> str:
    """The beginning of a text that is at most so many tokens long."""
    if n_tokens < 1:
        return ""
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return text if len(spans) <= n_tokens else text[: spans[n_tokens - 1][1]]


def plain(tokenizer: Any, text: str) -> str:
    """The text with a space after the first character of everything that is a control token."""
    for token in _control_tokens(tokenizer):
        if token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def _control_tokens(tokenizer: Any) -> Iterator[str]:
    yield from (str(token) for token in tokenizer.get_added_vocab() if len(str(token)) > 1 and str(token).strip())


def chat(tokenizer: Any, messages: Sequence[Message]) -> str | None:
    """The messages in the tokenizer's chat template, up to where the assistant answers; without thinking where the template knows it."""
    if not tokenizer.chat_template:
        return None
    whole = [dict(message) for message in messages]
    return str(tokenizer.apply_chat_template(whole, tokenize=False, add_generation_prompt=True, enable_thinking=False))


def single_tokens(tokenizer: Any, texts: Sequence[str]) -> dict[str, int]:
    """Text -> token id of those texts that are one token; of texts with the same token the first."""
    found: dict[int, str] = {}
    for text, ids in zip(texts, encode(tokenizer, texts), strict=True):
        if len(ids) == 1:
            found.setdefault(ids[0], text)
    return {text: token for token, text in found.items()}
