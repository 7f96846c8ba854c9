"""The losses that read an order: by hand, and by what an order promises. Loops and padding are tested in test_losses."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retriever.training.rank_losses import adr_mse, lambda_loss, list_mle, partial_ranking, ranknet
from tests.equations.material import Batch, Loss, batches, by_name, full, gradient
from tests.equations.slow_losses import choices

RANKS: list[Loss] = [ranknet, lambda_loss, list_mle, partial_ranking, adr_mse]

of_every_rank_loss = pytest.mark.parametrize("loss", RANKS, ids=by_name)


# By hand


def test_ranknet_by_hand() -> None:
    student, teacher = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[2.0, 1]])
    assert ranknet(student, teacher, full(student)).item() == pytest.approx(math.log(4 / 3))  # log(1 + 1/3)
    assert ranknet(student, -teacher, full(student)).item() == pytest.approx(math.log(4))  # log(1 + 3)
    student, teacher = torch.tensor([[math.log(3), 0.0, 0.0]]), torch.tensor([[2.0, 1, 1]])
    assert ranknet(student, teacher, full(student)).item() == pytest.approx(math.log(4 / 3))  # the tied pair is none


def test_lambda_loss_by_hand() -> None:
    student, teacher = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[2.0, 1]])
    swap = 1 - 1 / math.log2(3)  # what the first place is worth more than the second; the gains are 1 and 0
    assert lambda_loss(student, teacher, full(student)).item() == pytest.approx((10 * swap + swap) * math.log2(4 / 3), rel=1e-5)
    assert lambda_loss(student, teacher, full(student), mu=0).item() == pytest.approx(swap * math.log2(4 / 3), rel=1e-5)


def test_lambda_loss_of_three_documents_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0, math.log(3)]]), torch.tensor([[5.0, 4, 3]])
    # grades 2, 1, 0 and gains 3, 1, 0 over 3 + 1/log2(3); the student has the order 2, 1, 0: its tie goes against the teacher
    first, second, third = 1.0, 1 / math.log2(3), 0.5
    ideal = 3 + second
    terms = [(first - third) * 3 / ideal * math.log2(4), (first - second) * 1 / ideal * math.log2(4), (second - third) * 2 / ideal * 1]
    assert lambda_loss(student, teacher, full(student), mu=0, highest_grade=2).item() == pytest.approx(sum(terms) / 3, rel=1e-5)


def test_list_mle_by_hand() -> None:
    student = torch.tensor([[math.log(3), math.log(2), 0.0]])
    assert list_mle(student, torch.tensor([[9.0, 5, 1]]), full(student)).item() == pytest.approx(math.log(3))  # 3/6 * 2/3 * 1
    assert list_mle(student, torch.tensor([[1.0, 5, 9]]), full(student)).item() == pytest.approx(math.log(15))  # 1/6 * 2/5 * 1
    assert list_mle(student, torch.tensor([[9.0, 1, 1]]), full(student)).item() == pytest.approx(math.log(2))  # 3/6; a tie is no choice


def test_adr_mse_by_hand() -> None:
    student, teacher = torch.zeros(1, 2), torch.tensor([[2.0, 1]])  # both at the smooth rank 1.5
    assert adr_mse(student, teacher, full(student)).item() == pytest.approx((0.25 / math.log2(2) + 0.25 / math.log2(3)) / 2)
    assert adr_mse(student, torch.ones(1, 2), full(student)).item() == 0  # tied documents share the rank 1.5


# What an order promises


@of_every_rank_loss
@settings(max_examples=30, deadline=None)
@given(batch=batches())
def test_only_the_order_of_the_teachers_scores_matters(loss: Loss, batch: Batch) -> None:
    student, teacher, mask = batch
    value, found = loss(student, teacher, mask).item(), gradient(loss, student, teacher, mask)
    ranks = -(teacher[:, :, None] < teacher[:, None, :]).sum(dim=2).float()
    for increasing in (3 * teacher - 100, teacher.double().exp(), teacher**3, torch.sigmoid(teacher.double()), ranks):
        assert loss(student, increasing, mask).item() == pytest.approx(value, rel=1e-6, abs=1e-9)
        torch.testing.assert_close(gradient(loss, student, increasing, mask), found)


@of_every_rank_loss
@settings(max_examples=30, deadline=None)
@given(batch=batches())
def test_a_student_that_is_sure_of_the_teachers_order_has_learned_everything(loss: Loss, batch: Batch) -> None:
    _, teacher, mask = batch
    sure = -100 * (teacher[:, :, None] < teacher[:, None, :]).sum(dim=2).float()
    assert loss(sure, teacher, mask).item() == pytest.approx(0, abs=1e-5)
    if (mask.sum(dim=1) > 2).any():
        assert loss(-sure, teacher, mask).item() > 0.1


@pytest.mark.parametrize("loss", [ranknet, list_mle, partial_ranking], ids=by_name)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), push=st.floats(0.01, 3))
def test_pulling_the_teachers_best_candidate_up_never_costs(loss: Loss, seed: int, push: float) -> None:
    student, teacher, raised = best_candidate_raised(seed, push)
    assert loss(raised, teacher, full(student)).item() <= loss(student, teacher, full(student)).item() + 1e-6


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_lambda_loss_pulls_the_teachers_best_candidate_up(seed: int) -> None:  # its value jumps where the student's ranks change
    student, teacher, _ = best_candidate_raised(seed, 0.0)
    assert gradient(lambda_loss, student, teacher, full(student))[0, 2] < 0


def best_candidate_raised(seed: int, push: float) -> Batch:
    """Scores of five documents by student and teacher, which likes document 2 best, and the student's with that one raised."""
    student, teacher = random_list(seed, 5), random_list(seed + 1, 5)
    teacher[0, 2] = 9
    raised = student.clone()
    raised[0, 2] += push
    return student, teacher, raised


@pytest.mark.parametrize("loss", [ranknet, lambda_loss, list_mle, partial_ranking], ids=by_name)
@settings(max_examples=20, deadline=None)
@given(batch=batches())
def test_a_teacher_that_ties_all_documents_teaches_nothing(loss: Loss, batch: Batch) -> None:
    student, _, mask = batch
    assert loss(student, torch.full_like(student, 7.0), mask).item() == 0
    assert (gradient(loss, student, torch.full_like(student, 7.0), mask) == 0).all()


@of_every_rank_loss
def test_tied_documents_are_alike_wherever_they_stand(loss: Loss) -> None:
    student, teacher = torch.tensor([[0.5, 2, -1, 3, 1]]), torch.tensor([[6.0, 4, 4, 1, 1]])
    order = [0, 2, 1, 4, 3]
    assert loss(student[:, order], teacher[:, order], full(student)).item() == pytest.approx(loss(student, teacher, full(student)).item(), rel=1e-6)


def test_a_tie_of_the_student_is_broken_against_the_teacher_wherever_the_documents_stand() -> None:
    student, teacher = torch.zeros(1, 4), torch.tensor([[4.0, 3, 2, 1]])
    value, found = lambda_loss(student, teacher, full(student)).item(), gradient(lambda_loss, student, teacher, full(student))
    order = [2, 0, 3, 1]
    assert lambda_loss(student, teacher[:, order], full(student)).item() == pytest.approx(value)
    torch.testing.assert_close(gradient(lambda_loss, student, teacher[:, order], full(student)), found[:, order])


# Partial ranking: what is valid, and what stands in the sums


STUDENT, TEACHER = torch.tensor([[9.0, math.log(3), math.log(2), 0.0]]), torch.tensor([[2.5, 1.0, 2, 3]])
"""The positive, and candidates whose order is 3, 2, 1 by the teacher: the choices cost log(6/1), log(5/2) and 0."""
THIRD, SECOND = math.log(6), math.log(5 / 2)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, (THIRD + SECOND) / 3),
        ({"per": "query"}, THIRD + SECOND),
        ({"top": 2}, (THIRD + SECOND) / 2),
        ({"top": 1}, THIRD),
        ({"lowest_score": 2.0}, (THIRD + SECOND) / 2),
        ({"lowest_score": 2.5}, THIRD),
        ({"lowest_score": 9.0}, 0),
        ({"margin": 0.5}, (THIRD + SECOND) / 2),
        ({"margin": 0.4}, THIRD),
        ({"margin": 0.5, "top": 1}, THIRD),
        ({"above_positive": "drop"}, SECOND / 2),
        ({"above_positive": "drop", "top": 1}, SECOND),
        ({"above_positive": "drop", "margin": 0.2}, 0),
    ],
)
def test_the_valid_candidates_are_ordered_and_the_others_stay_below_them(rules: dict[str, Any], expected: float) -> None:
    assert partial_ranking(STUDENT, TEACHER, full(STUDENT), **rules).item() == pytest.approx(expected, rel=1e-6)


def test_the_mean_is_over_all_choices_of_the_batch_and_not_over_means_of_queries() -> None:
    mask = torch.tensor([[True, True, True, True], [True, False, False, True]])  # three choices and one, which costs nothing
    assert partial_ranking(STUDENT.repeat(2, 1), TEACHER.repeat(2, 1), mask).item() == pytest.approx((THIRD + SECOND) / 4)
    assert partial_ranking(STUDENT.repeat(2, 1), TEACHER.repeat(2, 1), mask, per="query").item() == pytest.approx((THIRD + SECOND) / 2)


def test_in_batch_negatives_stand_in_every_sum() -> None:
    student = torch.cat([STUDENT, torch.tensor([[math.log(4), 50.0]])], dim=1)
    mask = torch.tensor([[True, True, True, True, True, False]])  # the last one may be relevant
    terms = [math.log(10), math.log(9 / 2), math.log(7 / 3)]
    assert partial_ranking(student, TEACHER, mask).item() == pytest.approx(sum(terms) / 3)
    found = gradient(partial_ranking, student, TEACHER, mask)
    assert found[0, 4] > 0
    assert found[0, 5] == 0


def test_in_batch_negatives_can_be_left_out() -> None:
    student = torch.cat([STUDENT, torch.tensor([[math.log(4), 50.0]])], dim=1)
    assert partial_ranking(student, TEACHER, full(student), in_batch=False).item() == pytest.approx((THIRD + SECOND) / 3)
    assert (gradient(lambda *sides: partial_ranking(*sides, in_batch=False), student, TEACHER, full(student))[0, 4:] == 0).all()


def test_the_positive_stands_in_no_sum() -> None:
    assert gradient(partial_ranking, STUDENT, TEACHER, full(STUDENT))[0, 0] == 0


@settings(max_examples=40, deadline=None)
@given(batch=batches())
def test_with_all_candidates_valid_it_is_list_mle_of_the_candidates(batch: Batch) -> None:
    student, teacher, mask = batch
    expected = list_mle(student[:, 1:], teacher[:, 1:], mask[:, 1:]).item()
    assert partial_ranking(student, teacher, mask, per="query").item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), top=st.integers(1, 5), others=st.integers(0, 3))
def test_a_cut_list_is_the_beginning_of_list_mle(seed: int, top: int, others: int) -> None:
    student, teacher = random_list(seed, 6 + others), random_list(seed + 1, 6)
    terms = choices(student[0, 1:6].tolist(), teacher[0, 1:].tolist(), student[0, 6:].tolist())[:top]
    assert partial_ranking(student, teacher, full(student), top=top).item() == pytest.approx(sum(terms) / top, rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_order_of_invalid_candidates_is_noise(seed: int) -> None:
    student, teacher = random_list(seed, 6), torch.tensor([[10.0, 5, 4, 3, 2, 1]])
    shuffled = torch.tensor([[10.0, 5, 4, 1, 3, 2]])
    assert partial_ranking(student, shuffled, full(student), top=2).item() == pytest.approx(partial_ranking(student, teacher, full(student), top=2).item())


def random_list(seed: int, size: int) -> Tensor:
    return torch.randn(1, size, generator=torch.Generator().manual_seed(seed))
