"""Padding out of the way: what every loss does to masked numbers before it computes with them.

Numbers are replaced, never multiplied by 0, for 0 times NaN stays NaN. Everything is float32 from here on.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lowest(values: Tensor, mask: Tensor) -> Tensor:
    """Masked values become the lowest finite number: they win no maximum, have probability 0, and make no NaN as inf - inf does."""
    return values.float().masked_fill(~mask, torch.finfo(torch.float32).min)


def zeroed(values: Tensor, mask: Tensor) -> Tensor:
    """Masked values become 0, whatever they were: they add nothing to a sum."""
    return values.float().masked_fill(~mask, 0.0)


def mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values under the mask; 0 where nothing is left, so that a batch of lone positives does not crash."""
    return zeroed(values, mask).sum() / mask.sum().clamp(min=1)


def pairs(mask: Tensor) -> Tensor:
    """[..., K, K], true where both documents of a pair are real; `mask` is [..., K]."""
    return mask[..., :, None] & mask[..., None, :]
