"""The word weights of a SPLADE model without its table of logits: the same numbers, the same gradients, a fraction of the time and memory.

SPLADE (Formal et al. 2021, arXiv:2109.10086) takes, of the logits [B, L, V] that its head gives each token, the largest of each word. Stock
models hold the table, four times over in training: for 80 texts of 128 tokens and 30,522 words one is 1.25 GB. Here logits are made for
a few tokens and words at a time, of which only the largest stay; and as the gradient of a word goes to one token alone, and most
words have none, backwards are two products with a sparse matrix. A training step of MiniLM's upper half takes half the time and a third of the memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from retriever.models.routes import without_dropout

DECODER = "splade_decoder"
"""The feature by which a transformer hands its decoder to the pooling; its token embeddings are then the states before the decoder."""

TOKENS = 1024
"""Tokens on a CPU whose logits are made at a time: enough for the full speed of a product."""

LOGITS = {"cpu": 2**21}
"""Logits that are made at a time, by the type of the device: on a CPU 8 MB, which stay in its cache."""

ELSEWHERE = 2**27
"""The same of other devices."""

PROBE = ("a text", "another text of more words")


@dataclasses.dataclass
class _Use:
    """Whether a model fits, and how many blocks of how many threads stand open: the last one to end takes everything back."""

    fits: bool
    open: int = 0
    exchanged: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)


_USES: WeakKeyDictionary[nn.Module, _Use] = WeakKeyDictionary()
_LOCK = threading.RLock()


@contextlib.contextmanager
def without_logits(model: Any) -> Iterator[None]:
    """Lets a sparse encoder find its word weights without a table of logits, for as long as the block runs.

    Its modules stay the stock ones: their forward passes are exchanged, and nothing of it is saved. A model that pools sums, whose decoder
    is no plain linear layer, or which does more to the logits than to pool them is left alone: two texts are tried once for each model.
    Blocks may stand within another one, and in several threads.

    Args:
        model: any model; only a SparseEncoder whose words are pooled by SPLADE is changed.
    """
    if not isinstance(model, SparseEncoder):
        yield
        return
    with _LOCK:
        if model not in _USES:
            _USES[model] = _Use(_fits(model))
        use = _USES[model]
        use.open += 1
        if use.fits and use.open == 1:
            use.exchanged.enter_context(_pooling_states(model))
    try:
        yield
    finally:
        with _LOCK:
            use.open -= 1
            if not use.open:
                use.exchanged.close()


def largest_logits(states: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[n, V], the largest logit that a text's tokens give a word, and 0 where none is above 0; with the gradient of that.

    Args:
        states: shape [n, L, H], of the tokens before the decoder.
        mask: shape [n, L], 0 for padding, whose logits do not count.
        weight: shape [V, H], of the decoder.
        bias: shape [V], or None.
    """
    if not torch.is_grad_enabled():  # weights may ask for gradients all the same, and which token was the largest would be looked up for nothing
        given = _in_precision(states, weight, bias)
        with torch.autocast(states.device.type, enabled=False):
            return _screened(*given, mask.bool())
    largest: Tensor = _Largest.apply(states, mask.bool(), weight, bias)  # type: ignore[no-untyped-call]
    return largest


def _in_precision(states: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors in the precision of the pass forwards."""
    kind = states.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
    return states.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


class _Largest(torch.autograd.Function):
    """The largest logits, in the precision of the pass forwards; gradients are added up in float32."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As `largest_logits`."""
        given = _in_precision(states, weight, bias)
        with torch.autocast(states.device.type, enabled=False):
            largest = _screened(*given, mask)
            texts, words = largest.nonzero(as_tuple=True)
            ctx.save_for_backward(states, weight, bias, texts, words, _tokens_of(given[0], mask, given[1], texts, words))
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Of states, weight and bias."""
        states, weight, bias, texts, words, tokens = ctx.saved_tensors
        flat = states.reshape(-1, states.shape[-1])
        slopes = gradient[texts, words].float()
        with torch.autocast(states.device.type, enabled=False):
            places = torch.stack([texts * states.shape[1] + tokens, words])
            from_words = torch.sparse_coo_tensor(places, slopes, (len(flat), len(weight)), check_invariants=False)  # [n * L, V]
            of_states = torch.sparse.mm(from_words, weight.float()).view(states.shape).to(states.dtype) if ctx.needs_input_grad[0] else None
            of_weight = torch.sparse.mm(from_words.t(), flat.float()).to(weight.dtype) if ctx.needs_input_grad[2] else None
            of_bias = None
            if bias is not None and ctx.needs_input_grad[3]:
                of_bias = torch.zeros(len(bias), device=bias.device).index_add_(0, words, slopes).to(bias.dtype)
        return of_states, None, of_weight, of_bias


def _screened(states: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor) -> Tensor:
    """[n, V], the largest logits, by parts of the texts and of the words."""
    count, length, width = states.shape
    first = mask.int().argmax(dim=1)
    states = torch.where(mask[..., None], states, states[torch.arange(count, device=states.device), first][:, None])  # padding repeats a token: no new maximum
    found = torch.empty(count, len(weight), dtype=states.dtype, device=states.device)
    several = max(1, TOKENS // length) if states.device.type == "cpu" else count
    wide = max(1, LOGITS.get(states.device.type, ELSEWHERE) // (several * length))
    for texts in (slice(start, start + several) for start in range(0, count, several)):
        part = states[texts].reshape(-1, width)
        for words in (slice(start, start + wide) for start in range(0, len(weight), wide)):
            logits = part @ weight[words].T if bias is None else torch.addmm(bias[words], part, weight[words].T)
            torch.amax(logits.view(-1, length, logits.shape[1]), dim=1, out=found[texts, words])
    return found.clamp_(min=0) * mask.any(dim=1, keepdim=True)


def _tokens_of(states: Tensor, mask: Tensor, weight: Tensor, texts: Tensor, words: Tensor) -> Tensor:
    """[N], the place of the token that gives a text its largest logit of a word, for N texts and words, rising by text."""
    found = torch.empty_like(words)
    ends = torch.bincount(texts, minlength=len(states)).cumsum(0).tolist()
    for text, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        own = words[start:end]
        logits = states[text] @ weight[own].T  # the bias is the same for all tokens
        found[start:end] = logits.masked_fill_(~mask[text, :, None], -torch.inf).argmax(dim=0)
    return found


@contextlib.contextmanager
def _pooling_states(model: SparseEncoder) -> Iterator[None]:
    """Decoders pass on the states that they were given, and the pooling takes the largest logits of them."""
    changed: list[nn.Module] = []
    hooks = []
    try:
        for transformer in _transformers(model):
            decoder = transformer.auto_model.get_output_embeddings()
            if "forward" not in vars(decoder):  # another model with the same modules has it exchanged
                vars(decoder)["forward"] = _as_given
                hooks.append(transformer.register_forward_hook(_hand_on))
                changed.append(decoder)
        for pooling in (module for module in model.modules() if isinstance(module, SpladePooling)):
            if "forward" not in vars(pooling):
                vars(pooling)["forward"] = _Pool(pooling)
                changed.append(pooling)
        yield
    finally:
        for module in changed:
            del vars(module)["forward"]
        for hook in hooks:
            hook.remove()


def _as_given(states: Tensor) -> Tensor:
    return states


def _hand_on(transformer: Any, args: Any, output: dict[str, Any]) -> None:
    output[DECODER] = transformer.auto_model.get_output_embeddings()


class _Pool:
    """The forward pass of a SPLADE pooling that is given states."""

    def __init__(self, pooling: SpladePooling) -> None:
        self.pooling = pooling

    def __call__(self, features: dict[str, Any]) -> dict[str, Any]:
        """The features with the weights [n, V] of their texts."""
        decoder = features.pop(DECODER)
        states = features["token_embeddings"]
        if "cu_seq_lens_q" in features:  # texts one after the other, without padding: the stock pooling knows them
            features["token_embeddings"] = nn.functional.linear(states, decoder.weight, decoder.bias)
            return type(self.pooling).forward(self.pooling, features)
        weights = largest_logits(states, features["attention_mask"], decoder.weight, decoder.bias).log1p()
        features["sentence_embedding"] = weights.log1p() if self.pooling.activation_function == "log1p_relu" else weights
        return features


def _transformers(model: SparseEncoder) -> list[Any]:
    """The transformers with a masked-language-model head."""
    return [module for module in model.modules() if isinstance(module, Transformer) and module.auto_model.get_output_embeddings() is not None]


def _fits(model: SparseEncoder) -> bool:
    """Whether a model is built as `without_logits` thinks, and weighs the words of two texts the same way with it."""
    poolings = [module for module in model.modules() if isinstance(module, SpladePooling)]
    decoders = [transformer.auto_model.get_output_embeddings() for transformer in _transformers(model)]
    if not decoders or any(type(decoder) is not nn.Linear for decoder in decoders) or any(pooling.pooling_strategy != "max" for pooling in poolings):
        return False
    stock = _weights(model)
    try:
        with _pooling_states(model):
            ours = _weights(model)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):  # what a foreign head may say of a decoder that does nothing
        return False
    return all(torch.allclose(ours[task], stock[task], rtol=1e-3, atol=1e-4) for task in stock)


@torch.no_grad()
def _weights(model: SparseEncoder) -> Mapping[str, Tensor]:
    """[2, V] of the probe, read as queries and as documents."""
    with without_dropout(model):
        read = {task: batch_to_device(model.preprocess(list(PROBE), task=task), model.device) for task in ("query", "document")}
        return {task: model(features, task=task)["sentence_embedding"].float() for task, features in read.items()}
