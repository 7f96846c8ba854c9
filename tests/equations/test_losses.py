"""Each loss by hand, against slow loops, and by the properties that its paper promises."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retriever.training.losses import contrastive, kl_divergence, margin_mse, margin_mse_all_pairs

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LOSSES: list[Loss] = [margin_mse, margin_mse_all_pairs, kl_divergence, contrastive]
DISTILLING: list[Loss] = [margin_mse, margin_mse_all_pairs, kl_divergence]
MARGINS: list[Loss] = [margin_mse, margin_mse_all_pairs]


# Slow loops in double precision, straight from the definitions


def slow_margin_mse(student: list[list[float]], teacher: list[list[float]], mask: list[list[bool]]) -> float:
    errors = [((s[0] - s[k]) - (t[0] - t[k])) ** 2 for s, t, m in zip(student, teacher, mask, strict=True) for k in range(1, len(s)) if m[0] and m[k]]
    return sum(errors) / max(len(errors), 1)


def slow_margin_mse_all_pairs(student: list[list[float]], teacher: list[list[float]], mask: list[list[bool]]) -> float:
    errors = [
        ((s[i] - s[j]) - (t[i] - t[j])) ** 2
        for s, t, m in zip(student, teacher, mask, strict=True)
        for i in range(len(s))
        for j in range(i + 1, len(s))
        if m[i] and m[j]
    ]
    return sum(errors) / max(len(errors), 1)


def slow_softmax(scores: list[float]) -> list[float]:
    highest = max(scores)
    weights = [math.exp(score - highest) for score in scores]
    return [weight / sum(weights) for weight in weights]


def slow_kl_divergence(student: list[list[float]], teacher: list[list[float]], mask: list[list[bool]], temperature: float = 1.0) -> float:
    total = 0.0
    for s, t, m in zip(student, teacher, mask, strict=True):
        p = slow_softmax([score / temperature for score, real in zip(t, m, strict=True) if real])
        q = slow_softmax([score for score, real in zip(s, m, strict=True) if real])
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(student)


def slow_contrastive(student: list[list[float]], _: list[list[float]], mask: list[list[bool]]) -> float:
    rows = [[score for score, real in zip(s, m, strict=True) if real] for s, m in zip(student, mask, strict=True)]
    return -sum(math.log(slow_softmax(row)[0]) for row in rows) / len(rows)


SLOW = {
    margin_mse: slow_margin_mse,
    margin_mse_all_pairs: slow_margin_mse_all_pairs,
    kl_divergence: slow_kl_divergence,
    contrastive: slow_contrastive,
}


def by_name(loss: Loss) -> str:
    return str(getattr(loss, "__name__", loss))


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher scores and a mask, [B, K]; column 0 is always real, as in a training sample."""
    B, K = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    student, teacher = (5 * torch.randn(B, K, generator=generator) for _ in range(2))
    mask = torch.rand(B, K, generator=generator) < draw(st.sampled_from([0.3, 0.7, 1.0]))
    mask[:, 0] = True
    return student, teacher, mask


# By hand


def test_margin_mse_by_hand() -> None:
    student, teacher = torch.tensor([[5.0, 3, 1], [0, 1, 7]]), torch.tensor([[9.0, 6, 9], [2, 0, 7]])
    # margins of the student 2, 4 and -1, -7; of the teacher 3, 0 and 2, -5: squared differences 1, 16, 9, 4
    assert margin_mse(student, teacher, torch.ones(2, 3, dtype=torch.bool)).item() == 30 / 4
    assert margin_mse(student, teacher, torch.tensor([[True, True, True], [True, False, True]])).item() == 21 / 3


def test_margin_mse_of_all_pairs_by_hand() -> None:
    student, teacher = torch.tensor([[5.0, 3, 1]]), torch.tensor([[9.0, 6, 9]])
    # s - t is -4, -3, -8: differences of the pairs -1, 4, 5
    assert margin_mse_all_pairs(student, teacher, torch.ones(1, 3, dtype=torch.bool)).item() == (1 + 16 + 25) / 3
    assert margin_mse_all_pairs(student, teacher, torch.tensor([[True, False, True]])).item() == 16


def test_kl_divergence_by_hand() -> None:
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])  # 1/2, 1/2 against 3/4, 1/4
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert kl_divergence(student, teacher, mask).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    sharper = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)  # at temperature 1/2: 9/10, 1/10
    assert kl_divergence(student, teacher, mask, temperature=0.5).item() == pytest.approx(sharper)


def test_kl_divergence_has_the_teacher_on_its_left() -> None:
    student, teacher = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert kl_divergence(student, teacher, torch.ones(1, 2, dtype=torch.bool)).item() == pytest.approx(expected)


def test_contrastive_by_hand() -> None:
    student = torch.tensor([[0.0, 0, 0, 0], [math.log(2), 0, 0, math.log(4)]])
    mask = torch.tensor([[True, True, True, True], [True, True, True, False]])
    assert contrastive(student, student, mask).item() == pytest.approx((math.log(4) + math.log(2)) / 2)


# Against the loops


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
@settings(max_examples=40, deadline=None)
@given(batch=batches())
def test_the_loss_equals_its_definition_in_slow_loops(loss: Loss, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, mask = batch
    expected = SLOW[loss](student.tolist(), teacher.tolist(), mask.tolist())
    assert loss(student, teacher, mask).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(batch=batches(), temperature=st.floats(0.1, 10))
def test_the_temperature_divides_the_teachers_scores_only(batch: tuple[Tensor, Tensor, Tensor], temperature: float) -> None:
    student, teacher, mask = batch
    expected = slow_kl_divergence(student.tolist(), teacher.tolist(), mask.tolist(), temperature)
    assert kl_divergence(student, teacher, mask, temperature).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


# Properties


@pytest.mark.parametrize("loss", DISTILLING, ids=by_name)
@settings(max_examples=30, deadline=None)
@given(batch=batches(), shift=st.integers(-50, 50))
def test_a_constant_added_to_a_querys_teacher_scores_changes_nothing(loss: Loss, batch: tuple[Tensor, Tensor, Tensor], shift: int) -> None:
    student, teacher, mask = batch
    shifts = shift * torch.arange(1.0, len(teacher) + 1)[:, None]  # another one for each query
    assert loss(student, teacher + shifts, mask).item() == pytest.approx(loss(student, teacher, mask).item(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("loss", DISTILLING, ids=by_name)
@settings(max_examples=30, deadline=None)
@given(batch=batches(), shift=st.integers(-5, 5))
def test_a_student_that_differs_by_a_constant_has_learned_everything(loss: Loss, batch: tuple[Tensor, Tensor, Tensor], shift: int) -> None:
    _, teacher, mask = batch
    assert loss(teacher + shift, teacher, mask).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("loss", MARGINS, ids=by_name)
def test_the_scale_of_the_teacher_matters_to_margins(loss: Loss) -> None:
    teacher = torch.tensor([[3.0, 1, 0]])
    assert loss(teacher, 2 * teacher, torch.ones(1, 3, dtype=torch.bool)).item() > 1


@pytest.mark.parametrize("loss", DISTILLING, ids=by_name)
@settings(max_examples=30, deadline=None)
@given(batch=batches())
def test_no_divergence_is_negative(loss: Loss, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    assert loss(*batch).item() >= -1e-6


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_the_gradient_is_not_zero_at_the_start(loss: Loss) -> None:
    student = torch.zeros(2, 4, requires_grad=True)  # an untrained student tells no documents apart
    loss(student, torch.tensor([[4.0, 3, 2, 1], [9, -1, 0, 2]]), torch.ones(2, 4, dtype=torch.bool)).backward()
    assert student.grad is not None
    assert (student.grad.abs().sum(dim=1) > 0.1).all()
    assert (student.grad[:, 0] < 0).all()  # the positive is pulled up
    assert student.grad.sum(dim=1).abs().max().item() == pytest.approx(0, abs=1e-5)  # only differences count


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
@settings(max_examples=20, deadline=None)
@given(batch=batches())
def test_the_gradient_is_the_slope_of_the_loops(loss: Loss, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, mask = batch
    student = student.requires_grad_()
    loss(student, teacher, mask).backward()
    assert student.grad is not None
    row, column = divmod(int(student.grad.abs().argmax()), student.shape[1])
    slopes = []
    for step in (1e-4, -1e-4):
        moved = student.detach().double().tolist()
        moved[row][column] += step
        slopes.append(SLOW[loss](moved, teacher.tolist(), mask.tolist()))
    assert student.grad[row, column].item() == pytest.approx((slopes[0] - slopes[1]) / 2e-4, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("padding", [0.0, 1e30, -1e30, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_padding_changes_neither_value_nor_gradient(loss: Loss, padding: float) -> None:
    student, teacher = torch.tensor([[1.0, 3, -2], [0, 1, 5]]), torch.tensor([[4.0, 2, 7], [1, -6, 3]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    plain = student.clone().requires_grad_()
    expected = loss(plain, teacher, mask)
    expected.backward()
    padded = torch.cat([student, torch.full((2, 2), padding)], dim=1)
    padded[1, 2] = padding
    padded.requires_grad_()
    padded_teacher = torch.cat([teacher, torch.full((2, 2), padding)], dim=1)
    padded_teacher[1, 2] = padding
    value = loss(padded, padded_teacher, torch.cat([mask, torch.zeros(2, 2, dtype=torch.bool)], dim=1))
    value.backward()
    assert plain.grad is not None
    assert padded.grad is not None
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(padded.grad[:, :3], plain.grad)
    assert padded.grad[1, 2] == 0
    assert (padded.grad[:, 3:] == 0).all()


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_a_column_masked_for_every_query_is_as_if_it_were_not_there(loss: Loss) -> None:
    student, teacher = torch.tensor([[1.0, 3, -2], [0, 1, 5]]), torch.tensor([[4.0, 2, 7], [1, -6, 3]])
    mask = torch.tensor([[True, False, True], [True, False, True]])
    expected = loss(student[:, [0, 2]], teacher[:, [0, 2]], torch.ones(2, 2, dtype=torch.bool))
    assert loss(student, teacher, mask).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_a_positive_without_company_teaches_nothing(loss: Loss) -> None:
    student = torch.tensor([[2.0, 1], [1, 5]], requires_grad=True)
    value = loss(student, torch.ones(2, 2), torch.tensor([[True, False], [True, False]]))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert student.grad is not None
    assert student.grad.abs().max().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_half_precision_scores_are_summed_in_float32(loss: Loss) -> None:
    student, teacher = torch.tensor([[300.0, 1, 2], [0, 200, 3]]), torch.tensor([[4.0, 2, 7], [1, -6, 3]])
    mask = torch.ones(2, 3, dtype=torch.bool)
    value = loss(student.half(), teacher.half(), mask)  # squares of such margins are infinite in float16
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(student, teacher, mask).item(), rel=1e-6)
