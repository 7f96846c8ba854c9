"""The factor that makes logits of cosines, learned with the model (Radford et al. 2021, arXiv:2103.00020)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

HIGHEST = 100.0
"""As in the paper: a larger factor makes training unstable."""


class LearnedScale(nn.Module):
    """exp of a learned logarithm, at most `HIGHEST`: one over a temperature, shared by all losses that make logits of cosines.

    The logarithm itself is held at its highest value, so that it can go down again.
    """

    def __init__(self, start: float) -> None:
        super().__init__()
        self.logarithm = nn.Parameter(torch.tensor(math.log(min(start, HIGHEST)), dtype=torch.float32))

    def forward(self) -> Tensor:
        """[], the factor."""
        with torch.no_grad():
            self.logarithm.clamp_(max=math.log(HIGHEST))
        return self.logarithm.exp()

    @property
    def value(self) -> float:
        """The factor as a number."""
        return min(HIGHEST, math.exp(self.logarithm.item()))

    def state(self) -> dict[str, float]:
        """Plain numbers, which `restore` takes."""
        return {"logarithm": self.logarithm.item()}

    def restore(self, state: Mapping[str, float]) -> None:
        """Goes on where another's `state` was taken."""
        with torch.no_grad():
            self.logarithm.fill_(state["logarithm"])
