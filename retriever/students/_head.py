"""A masked-language-model head for an encoder that has none, which makes a SPLADE model of it (Formal et al. 2021, arXiv:2109.10086)."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.modules import Transformer
from sentence_transformers.util import batch_to_device
from torch import nn
from transformers import AutoModelForMaskedLM

from retriever.errors import ConfigError

NEVER = -1e4
"""A bias that no logit makes up for, within the range of half precision."""

PASSES = 3.0
"""A shift that takes a dense layer's output to where GELU and its like change little, and bfloat16 is still fine enough; the norm behind them takes it off."""

SAMPLE = 128
"""Texts whose logits are looked at: they make a table [SAMPLE, V]."""


def splade_of(encoder: SentenceTransformer, name: str) -> SparseEncoder:
    """A SPLADE model of an encoder's transformer, whose head says which words' embeddings a token's last hidden state resembles.

    The head is the architecture's own: its dense layer is the identity, shifted so far that the activation behind it lets all pass,
    its norm neither scales nor shifts, and its decoder is tied to the word embeddings. An encoder that was trained for similarity then
    expands a word to related ones before any training of the head. Special tokens have a bias that keeps them out; `sparsen` gives all
    others theirs.

    Args:
        encoder: whose first module is a transformer; the rest of it is left out.
        name: of the encoder, for the error message.

    Raises:
        ConfigError: it is no transformer, or one that no such head fits.
    """
    if not isinstance(encoder[0], Transformer):
        raise ConfigError(f"student.model: {name} is no transformer, which a sparse student needs. Take an encoder such as all-MiniLM-L6-v2")
    transformer = encoder[0].auto_model
    try:
        model: Any = AutoModelForMaskedLM.from_config(transformer.config)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise ConfigError(
            f"student.model: {name} is a {type(transformer).__name__}, which cannot have a masked-language-model head. Take another encoder"
        ) from error
    missing, _ = model.base_model.load_state_dict(transformer.state_dict(), strict=False)
    if missing:
        raise ConfigError(f"student.model: {name} lacks the weights {', '.join(missing)} that a {type(model).__name__} needs. Take another encoder")
    _make_head(model, encoder.tokenizer.all_special_ids, name)
    with tempfile.TemporaryDirectory() as folder:  # the stock way in is a folder
        model.to(transformer.dtype).save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)
        return SparseEncoder(folder, local_files_only=True, similarity_fn_name="dot", prompts=cast(dict[str, str], encoder.prompts))


def _make_head(model: Any, special: Sequence[int], name: str) -> None:
    """Sets whatever lies between the last hidden states and the decoder, which is tied already, and the decoder's bias."""
    decoder = model.get_output_embeddings()
    bias = getattr(decoder, "bias", None)
    head = [module for path, module in model.named_modules() if not path.startswith(f"{model.base_model_prefix}.")]
    linear = [module for module in head if isinstance(module, nn.Linear) and module is not decoder]
    norms = [module for module in head if isinstance(module, nn.LayerNorm)]
    tied = isinstance(decoder, nn.Linear) and decoder.weight is model.get_input_embeddings().weight
    if not tied or bias is None or any(layer.in_features != layer.out_features for layer in linear):
        raise ConfigError(
            f"student.model: the head of a {type(model).__name__} cannot be made from the word embeddings of {name}: it is not tied to them,"
            " has no bias, or is of another width. Take a checkpoint with a trained masked-language-model head"
        )
    with torch.no_grad():
        for layer in linear:
            nn.init.eye_(layer.weight)
            if layer.bias is not None:
                layer.bias.fill_(PASSES if norms else 0.0)
        for norm in norms:
            norm.reset_parameters()
        bias.zero_()
        bias[list(special)] = NEVER


def sparsen(model: SparseEncoder, active: int, documents: Sequence[str] = ()) -> None:
    """Lowers the bias of a made head until texts have so many active dimensions on average.

    With documents of the collection, each word's bias also takes off its own mean logit, so that a dimension says what a document
    has more of than others; without them, texts of words drawn from the vocabulary set one bias for all.

    Args:
        model: a transformer with a head of `splade_of` and SPLADE pooling.
        active: wanted dimensions; a quarter of the vocabulary at most is given.
        documents: some of the collection's texts, of which at most `SAMPLE` are read.
    """
    texts = [documents[place] for place in np.linspace(0, len(documents) - 1, min(SAMPLE, len(documents))).astype(int)]
    logits = top_logits(model, texts or vocabulary_texts(model.tokenizer))  # [n, V]
    ordinary = np.setdiff1d(np.arange(logits.shape[1]), model.tokenizer.all_special_ids)
    logits = logits[:, ordinary]
    means = logits.mean(axis=0) if texts else np.zeros(len(ordinary), dtype=np.float32)
    share = min(active / len(ordinary), 0.25)
    bias = cast(Any, model.transformers_model).get_output_embeddings().bias
    with torch.no_grad():
        bias[torch.from_numpy(ordinary).to(bias.device)] = torch.from_numpy(-means - np.quantile(logits - means, 1 - share)).to(bias)


def vocabulary_texts(tokenizer: Any, count: int = 64, words: int = 24) -> list[str]:
    """Texts of words drawn from a vocabulary, the same every time."""
    draw = np.random.default_rng(0)
    pieces = (tokenizer.decode([number]).strip() for number in draw.permutation(len(tokenizer))[:8192].tolist())
    known = [piece for piece in pieces if len(piece) > 2 and piece.isalpha()] or ["a"]
    return [" ".join(text) for text in draw.choice(known, (count, words)).tolist()]


@torch.inference_mode()
def top_logits(model: SparseEncoder, texts: Sequence[str], batch_size: int = 4) -> NDArray[np.float32]:
    """[n, V], the largest logit of each word over the tokens of each text, read as a document."""
    model.eval()
    parts = []
    for start in range(0, len(texts), batch_size):
        features = model.preprocess(list(texts[start : start + batch_size]), prompt=model.prompts.get("document") or None)
        features = batch_to_device(features, model.device)
        logits = model[0](features)["token_embeddings"].float()  # [B, L, V]
        parts.append(logits.masked_fill(features["attention_mask"][..., None] == 0, -torch.inf).amax(dim=1).cpu().numpy())
    return np.concatenate(parts)
