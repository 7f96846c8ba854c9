"""Dropout on a CPU at a quarter of its price: the same chance for every number, from fewer random bits.

torch draws a random number for each number that may be dropped, in one thread, whatever the threads of the rest; here one draw decides
four, by 15 bits each, and attention is computed in parts that stay in the cache. A training step of all-MiniLM-L6-v2 with 128 tokens
a text takes 4 % more CPU time with this than without dropout, and 18 % more with torch's own.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TORCH_DROPOUT = functional.dropout
TORCH_ATTENTION = functional.scaled_dot_product_attention

STEPS = 2**15
"""Chances that can be told apart: p is rounded to 1 / 32,768."""

CHUNK = 2**18
"""Attention weights that are computed at a time: 1 MB, which stays in the cache of a core."""


@contextlib.contextmanager
def cheap_dropout() -> Iterator[None]:
    """Lets dropout on a CPU, in attention too, take its chances from fewer random bits, for as long as the block runs.

    They come from torch's own generator, so that a seed gives the same training, and a resumed one goes on with the state of its
    checkpoint. The functions of torch are exchanged, and not intercepted by one of its modes: those end where backward() begins, and what
    goes forwards again on the way back must drop the same numbers. What does not fit is left to torch's functions.
    """
    ours = {"dropout": _dropout, "scaled_dot_product_attention": _attention}
    before = {name: getattr(functional, name) for name in ours}
    try:
        for name, function in ours.items():
            setattr(functional, name, function)
        yield
    finally:
        for name, function in before.items():
            setattr(functional, name, function)


def kept(shape: Sequence[int], p: float) -> Tensor:
    """Random factors [shape], float32: 0 with the chance p, and else what keeps the mean, 1 / (1 - p)."""
    chance, rest = _chance(p)
    return _places(shape).ge(chance).to(torch.float32).mul_(rest)


def _places(shape: Sequence[int]) -> Tensor:
    """Random whole numbers [shape] from 0 on and below STEPS, int16."""
    count = math.prod(shape)
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_()  # 63 random bits: the highest one is always 0
    return bits.view(torch.int16)[:count].bitwise_and_(STEPS - 1).view(tuple(shape))


def _chance(p: float) -> tuple[int, float]:
    """Below which place a number is dropped, and the factor of the others."""
    chance = round(p * STEPS)
    return chance, STEPS / max(STEPS - chance, 1)


class _Attention(torch.autograd.Function):
    """Attention with dropout of its weights, a few texts at a time: what one operation wrote is in the cache when the next reads it.

    What the way back needs of the weights is one table: those that were dropped stand there with a minus.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, p: float, scale: float) -> Tensor:
        """[B, H, L, D] of three such tensors, with a bias that broadcasts to [B, H, L, L] and the chance that a weight is dropped."""
        shape = (*query.shape[:-1], key.shape[-2])
        weights, output, places = query.new_empty(shape), torch.empty_like(query), _places(shape)
        chance, rest = _chance(p)
        for part in _parts(weights):
            of_query, of_key, of_value, signed, found, place = (one[part].flatten(0, 1) for one in (query, key, value, weights, output, places))
            if bias is None:
                scores = torch.bmm(of_query, of_key.mT).mul_(scale)
            else:
                added = (bias[part] if len(bias) > 1 else bias).expand(weights[part].shape).flatten(0, 1)
                scores = torch.baddbmm(added, of_query, of_key.mT, alpha=scale)
            torch._softmax(scores, -1, False, out=signed)
            torch.copysign(signed, place.to(torch.float32).sub_(chance), out=signed)
            torch.bmm(torch.clamp_min(signed, 0, out=scores), of_value * rest, out=found)
        ctx.save_for_backward(query, key, value, weights)
        ctx.scale, ctx.rest = scale, rest
        ctx.biased = None if bias is None else bias.shape
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Of query, key, value and bias."""
        query, key, value, weights = ctx.saved_tensors
        slopes = [torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)]
        of_bias = torch.empty_like(weights) if ctx.needs_input_grad[3] else None
        rested = gradient * ctx.rest
        for part in _parts(weights):
            of_query, of_key, of_value, signed, upstream = (one[part].flatten(0, 1) for one in (query, key, value, weights, rested))
            for_query, for_key, for_value = (one[part].flatten(0, 1) for one in slopes)
            torch.bmm(signed.clamp_min(0).mT, upstream, out=for_value)
            of_weights = torch.ops.aten.threshold_backward(torch.bmm(upstream, of_value.mT), signed, 0)  # nothing where it was dropped
            of_scores = torch._softmax_backward_data(of_weights, signed.abs(), -1, torch.float32)
            if of_bias is not None:
                of_bias[part] = of_scores.view(weights[part].shape)
            torch.bmm(of_scores, of_key, out=for_query).mul_(ctx.scale)
            torch.bmm(of_scores.mT, of_query, out=for_key).mul_(ctx.scale)
        return (*slopes, None if of_bias is None else of_bias.sum_to_size(ctx.biased), None, None)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    fits = training and 0 < p < 1 and not inplace and input.device.type == "cpu" and input.dtype in (torch.float32, torch.bfloat16)
    return input * kept(input.shape, p).to(input.dtype) if fits else TORCH_DROPOUT(input, p, training, inplace)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False, **settings: Any
) -> Tensor:
    """What scaled_dot_product_attention gives.

    In float32 also where the rest is bf16: the small products of attention gain nothing from bf16, and what its weights lose by
    copies and conversions, a chunk in the cache does not (a step of MiniLM's upper half in bf16 takes .75 of its time).
    """
    plain = not is_causal and not settings.get("enable_gqa") and query.ndim == 4
    fits = plain and 0 < dropout_p < 1 and query.device.type == "cpu" and query.dtype in (torch.float32, torch.bfloat16)
    if not fits:
        return TORCH_ATTENTION(query, key, value, attn_mask, dropout_p, is_causal, **settings)
    bias = attn_mask
    if attn_mask is not None:
        lowest = torch.finfo(torch.float32).min
        bias = torch.zeros(attn_mask.shape).masked_fill_(~attn_mask, lowest) if attn_mask.dtype == torch.bool else attn_mask.float()
    scale = query.shape[-1] ** -0.5 if settings.get("scale") is None else settings["scale"]
    with torch.autocast("cpu", enabled=False):
        output: Tensor = _Attention.apply(*(_float(one) for one in (query, key, value)), bias, dropout_p, scale)  # type: ignore[no-untyped-call]
    return output.to(query.dtype)


def _float(values: Tensor) -> Tensor:
    """In float32, one head after the other: what is multiplied lies together."""
    return values.to(torch.float32, memory_format=torch.contiguous_format).contiguous()


def _parts(weights: Tensor) -> list[slice]:
    """Of the texts [B, H, L, L], so many at a time as fit into a chunk."""
    size = max(1, CHUNK // math.prod(weights.shape[1:]))
    return [slice(start, start + size) for start in range(0, len(weights), size)]
