"""A vector for each token of a vocabulary, made from an encoder: what a static student starts from.

Model2Vec's way (Tulkens and van Dongen 2024): each token is put through the encoder alone, the vectors are decorrelated, and
frequent tokens count less. Three things are done otherwise, each for what it gives on the train queries of scifact and of doc2dial
(nDCG@10 of the start made from all-MiniLM-L6-v2: .41 and .26 as Model2Vec has it, .50 and .31 so): the vectors are whitened
and not only rotated, lone characters have a rank of their own, and fewer tokens count as frequent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerFast

from retriever.errors import ConfigError

BATCH = 512
"""Tokens put through the encoder at a time."""

FREQUENCY = 3e-4
"""The frequency of a token that counts half as much as a rare one: the constant a of Arora et al. 2017, "smooth inverse frequency"."""

RIDGE = 0.1
"""Added to each variance when whitening, in mean variances: directions that hardly vary are noise, and must not be blown up."""


def token_table(encoder: SentenceTransformer, dimensions: int | None = None) -> NDArray[np.float32]:
    """[V, D], a vector for each token number; zeros for special and unused tokens.

    The vectors of the tokens in use have a norm of about 1 before they are weighted.

    Args:
        encoder: any whose first module is a transformer.
        dimensions: D; the encoder's when left out.

    Raises:
        ConfigError: its tokenizer is not one of the library tokenizers, which a static embedding needs; or its vectors are shorter than D.
    """
    tokenizer = encoder.tokenizer
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(f"student.model: a static student needs a fast tokenizer, and this model has a {type(tokenizer).__name__}")
    own = encoder.get_embedding_dimension() or 0
    if dimensions and dimensions > own:
        raise ConfigError(f"student.dimensions: {dimensions}, but the vectors of student.model have {own}. Give {own} at most, or leave student.dimensions out")
    numbers = used_tokens(tokenizer)
    table = np.zeros((max(tokenizer.get_vocab().values()) + 1, dimensions or own), dtype=np.float32)
    vectors = whiten(vectors_alone(encoder, numbers)[:, :own], dimensions or own)
    table[numbers] = vectors * zipf_weights(tokenizer.convert_ids_to_tokens(numbers.tolist()))[:, None]
    return table


def used_tokens(tokenizer: PreTrainedTokenizerFast) -> NDArray[np.int64]:
    """Numbers of the tokens that a text can have, in order: neither special ones nor BERT's spare ones."""
    special = set(tokenizer.all_special_ids)
    return np.array(sorted(number for token, number in tokenizer.get_vocab().items() if number not in special and not re.fullmatch(r"\[unused\d+\]", token)))


def vectors_alone(encoder: SentenceTransformer, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n, D], what the encoder makes of texts of one token each, with the special tokens around it and no prompt."""
    before, after = _special_tokens(encoder.tokenizer)
    types = "token_type_ids" in encoder.tokenizer.model_input_names
    encoder.eval()
    parts = []
    for start in range(0, len(numbers), BATCH):
        rows = [[*before, int(number), *after] for number in numbers[start : start + BATCH]]
        ids = torch.tensor(rows, device=encoder.device)  # [n, 1 + special]
        features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | ({"token_type_ids": torch.zeros_like(ids)} if types else {})
        with torch.inference_mode():
            parts.append(encoder(features)["sentence_embedding"].double().cpu().numpy())
    return np.concatenate(parts)


def whiten(vectors: NDArray[np.float64], dimensions: int) -> NDArray[np.float64]:
    """[n, dimensions], centred, rotated to the directions of greatest variance, each divided by its deviation; a mean squared norm of 1.

    Whitening sentence vectors is from Su et al. 2021, arXiv:2103.15316. The deviation is that of the variance plus `RIDGE`
    mean variances here.

    Args:
        vectors: [n, D].
        dimensions: at most D; those of the greatest variance stay.
    """
    centred = vectors - vectors.mean(axis=0)
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))  # of rising variance
    variances, directions = variances[::-1][:dimensions], directions[:, ::-1][:, :dimensions]
    mean = (centred**2).sum() / centred.size
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[largest, np.arange(dimensions)])  # the sign of a direction is not defined otherwise
    white = centred @ directions / np.sqrt(np.maximum(variances, 0) + RIDGE * mean)
    scale = np.sqrt((white**2).sum() / len(white))
    return np.asarray(white / scale)


def zipf_weights(tokens: Sequence[str]) -> NDArray[np.float64]:
    """[n], a / (a + p): near 0 for the most frequent tokens and 1 for rare ones (smooth inverse frequency, Arora et al. 2017).

    There are no counts, so p is what Zipf's law gives to the token's rank: p proportional to 1 / rank. Vocabularies are made in the order
    of frequency, with two exceptions that are put right here: single ASCII characters, which are in them in any case, come
    first, and other single characters last.

    Args:
        tokens: those of a vocabulary that a text can have, in the vocabulary's order.
    """
    order = np.argsort([_frequency_class(token) for token in tokens], kind="stable")
    ranks = np.empty(len(tokens))
    ranks[order] = np.arange(1, len(tokens) + 1)
    frequencies = 1 / ranks / (1 / ranks).sum()
    return np.asarray(FREQUENCY / (FREQUENCY + frequencies))


def _frequency_class(token: str) -> int:
    bare = token.lstrip("\u0120\u2581")  # the marks of a word's begin in byte-level and in sentence-piece vocabularies
    if len(bare) == 1 and bare.isascii():
        return 0
    return 2 if len(bare.removeprefix("##")) == 1 and not bare.isascii() else 1


def _special_tokens(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Those that the tokenizer puts before and after a text."""
    whole, alone = (tokenizer("owl", add_special_tokens=special)["input_ids"] for special in (True, False))
    start = next(place for place in range(len(whole)) if whole[place : place + len(alone)] == alone)
    return whole[:start], whole[start + len(alone) :]
