"""Batches of scores for the tests of losses, and the slopes of plain loops."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

Loss = Callable[..., Tensor]
Batch = tuple[Tensor, Tensor, Tensor]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Student and teacher scores and a mask, [B, K]; column 0 is always real, as in a training sample."""
    B, K = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    student, teacher = (5 * torch.randn(B, K, generator=generator) for _ in range(2))
    mask = torch.rand(B, K, generator=generator) < draw(st.sampled_from([0.3, 0.7, 1.0]))
    mask[:, 0] = True
    return student, teacher, mask


def full(values: Tensor) -> Tensor:
    """The mask of a batch without padding."""
    return torch.ones_like(values, dtype=torch.bool)


def by_name(loss: Loss) -> str:
    return str(getattr(loss, "__name__", loss))


def gradient(loss: Loss, student: Tensor, *others: Any, **parameters: Any) -> Tensor:
    student = student.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(student, *others, **parameters), student)
    return found


def slopes(slow: Callable[[list[list[float]]], float], student: Tensor, step: float = 1e-5) -> Tensor:
    """The gradient of plain loops at every number, by moving it a little to either side."""
    found = torch.zeros(student.shape)
    for row in range(student.shape[0]):
        for column in range(student.shape[1]):
            values = []
            for change in (step, -step):
                moved = student.detach().double().tolist()
                moved[row][column] += change
                values.append(slow(moved))
            found[row, column] = (values[0] - values[1]) / (2 * step)
    return found
