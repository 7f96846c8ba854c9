"""The losses of scores, against plain loops and by the properties that their papers promise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever.training import losses, rank_losses
from retriever.training.losses import (
    contrastive,
    dynamic_contrastive,
    in_batch_similarity,
    kl_divergence,
    margin_mse,
    margin_mse_all_pairs,
    pointwise_mse,
    standardised_kl,
)
from retriever.training.rank_losses import adr_mse, lambda_loss, list_mle, partial_ranking, ranknet
from tests.equations import slow_losses
from tests.equations.material import Batch, Loss, batches, by_name, full, gradient, slopes

MARGINS: list[Loss] = [margin_mse, margin_mse_all_pairs]
DISTRIBUTIONS: list[Loss] = [kl_divergence, standardised_kl]
RANKS: list[Loss] = [ranknet, lambda_loss, list_mle, partial_ranking, adr_mse]
BY_DIFFERENCES: list[Loss] = [*MARGINS, *DISTRIBUTIONS, *RANKS, dynamic_contrastive, in_batch_similarity, contrastive]
LOSSES: list[Loss] = [*BY_DIFFERENCES, pointwise_mse]

of_every_loss = pytest.mark.parametrize("loss", LOSSES, ids=by_name)


# Against the loops


@of_every_loss
@settings(max_examples=40, deadline=None)
@given(batch=batches())
def test_the_loss_equals_its_definition_in_slow_loops(loss: Loss, batch: Batch) -> None:
    student, teacher, mask = batch
    expected = getattr(slow_losses, by_name(loss))(student.tolist(), teacher.tolist(), mask.tolist())
    assert loss(student, teacher, mask).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@of_every_loss
@settings(max_examples=15, deadline=None)
@given(batch=batches())
def test_the_gradient_is_the_slope_of_the_loops(loss: Loss, batch: Batch) -> None:
    student, teacher, mask = batch
    expected = slopes(lambda moved: getattr(slow_losses, by_name(loss))(moved, teacher.tolist(), mask.tolist()), student)
    torch.testing.assert_close(gradient(loss, student, teacher, mask), expected, rtol=1e-3, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(batch=batches(), temperature=st.floats(0.1, 10))
@pytest.mark.parametrize("loss", [kl_divergence, dynamic_contrastive, in_batch_similarity], ids=by_name)
def test_the_temperature_divides_the_teachers_scores_only(loss: Loss, batch: Batch, temperature: float) -> None:
    student, teacher, mask = batch
    expected = getattr(slow_losses, by_name(loss))(student.tolist(), teacher.tolist(), mask.tolist(), temperature)
    assert loss(student, teacher, mask, temperature).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(batch=batches(), scale=st.floats(0.1, 10))
@pytest.mark.parametrize("loss", [*MARGINS, pointwise_mse], ids=by_name)
def test_the_scale_multiplies_the_teachers_scores_only(loss: Loss, batch: Batch, scale: float) -> None:
    student, teacher, mask = batch
    assert loss(student, teacher, mask, teacher_scale=scale).item() == pytest.approx(loss(student, scale * teacher, mask).item(), rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(batch=batches(), mu=st.floats(0, 20), highest_grade=st.floats(0.5, 8), alpha=st.floats(0.1, 5))
def test_the_parameters_stand_where_the_equations_have_them(batch: Batch, mu: float, highest_grade: float, alpha: float) -> None:
    student, teacher, mask = batch
    lists = student.tolist(), teacher.tolist(), mask.tolist()
    expected = slow_losses.lambda_loss(*lists, mu, highest_grade)
    assert lambda_loss(student, teacher, mask, mu=mu, highest_grade=highest_grade).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert adr_mse(student, teacher, mask, alpha=alpha).item() == pytest.approx(slow_losses.adr_mse(*lists, alpha), rel=1e-3, abs=1e-5)


# By hand


def test_margin_mse_by_hand() -> None:
    student, teacher = torch.tensor([[5.0, 3, 1], [0, 1, 7]]), torch.tensor([[9.0, 6, 9], [2, 0, 7]])
    # margins of the student 2, 4 and -1, -7; of the teacher 3, 0 and 2, -5: squared differences 1, 16, 9, 4
    assert margin_mse(student, teacher, full(student)).item() == 30 / 4
    assert margin_mse(student, teacher, torch.tensor([[True, True, True], [True, False, True]])).item() == 21 / 3


def test_margin_mse_of_all_pairs_by_hand() -> None:
    student, teacher = torch.tensor([[5.0, 3, 1]]), torch.tensor([[9.0, 6, 9]])
    # s - t is -4, -3, -8: differences of the pairs -1, 4, 5
    assert margin_mse_all_pairs(student, teacher, full(student)).item() == (1 + 16 + 25) / 3
    assert margin_mse_all_pairs(student, teacher, torch.tensor([[True, False, True]])).item() == 16


def test_pointwise_mse_by_hand() -> None:
    student, teacher = torch.tensor([[5.0, 3, 1]]), torch.tensor([[9.0, 6, 9]])
    assert pointwise_mse(student, teacher, full(student)).item() == pytest.approx((16 + 9 + 64) / 3)
    assert pointwise_mse(student, teacher, torch.tensor([[True, True, False]])).item() == 25 / 2


def test_kl_divergence_by_hand() -> None:
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])  # 1/2, 1/2 against 3/4, 1/4
    assert kl_divergence(student, teacher, full(student)).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    sharper = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)  # at temperature 1/2: 9/10, 1/10
    assert kl_divergence(student, teacher, full(student), temperature=0.5).item() == pytest.approx(sharper)


def test_kl_divergence_has_the_teacher_on_its_left() -> None:
    student, teacher = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert kl_divergence(student, teacher, full(student)).item() == pytest.approx(expected)


def test_standardised_kl_by_hand() -> None:
    student, teacher = torch.tensor([[7.0, 3]]), torch.tensor([[100.0, 900]])  # 5 +- 2 is 1, -1 and 500 +- 400 is -1, 1
    high, low = math.e / (math.e + 1 / math.e), 1 / math.e / (math.e + 1 / math.e)
    assert standardised_kl(student, teacher, full(student)).item() == pytest.approx(low * math.log(low / high) + high * math.log(high / low), rel=1e-5)


def test_dynamic_contrastive_by_hand() -> None:
    student, teacher = torch.zeros(2, 2), torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])  # 3/4, 1/4 and a teacher who cannot tell
    unsure = (0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / math.log(2)
    copied = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    expected = [(1 - unsure) ** 2 * copied + unsure * math.log(2), math.log(2)]
    assert dynamic_contrastive(student, teacher, full(student)).item() == pytest.approx(sum(expected) / 2)


def test_a_sure_teacher_is_copied_and_one_that_cannot_tell_leaves_the_positive_to_the_judgements() -> None:
    student = torch.tensor([[1.0, -2.0, 0.5]])
    sure, flat = torch.tensor([[0.0, 90.0, 0.0]]), torch.zeros(1, 3)
    assert dynamic_contrastive(student, sure, full(student)).item() == pytest.approx(kl_divergence(student, sure, full(student)).item(), rel=1e-5)
    assert dynamic_contrastive(student, flat, full(student)).item() == pytest.approx(contrastive(student, flat, full(student)).item(), rel=1e-5)


def test_in_batch_similarity_by_hand() -> None:
    student, teacher = torch.tensor([[math.log(4), 0.0]]), torch.tensor([[0.05 * math.log(3), 0.0]])  # 4/5, 1/5 against 3/4, 1/4
    assert in_batch_similarity(student, teacher, full(student)).item() == pytest.approx(-0.75 * math.log(0.8) - 0.25 * math.log(0.2), rel=1e-5)


def test_contrastive_by_hand() -> None:
    student = torch.tensor([[0.0, 0, 0, 0], [math.log(2), 0, 0, math.log(4)]])
    mask = torch.tensor([[True, True, True, True], [True, True, True, False]])
    assert contrastive(student, student, mask).item() == pytest.approx((math.log(4) + math.log(2)) / 2)


# Properties


@pytest.mark.parametrize("loss", BY_DIFFERENCES, ids=by_name)
@settings(max_examples=30, deadline=None)
@given(batch=batches(), shift=st.integers(-50, 50))
def test_a_constant_added_to_a_querys_scores_changes_nothing(loss: Loss, batch: Batch, shift: int) -> None:
    student, teacher, mask = batch
    shifts = shift * torch.arange(1.0, len(teacher) + 1)[:, None]  # another one for each query
    expected = pytest.approx(loss(student, teacher, mask).item(), rel=1e-3, abs=2e-3)
    assert loss(student, teacher + shifts, mask).item() == expected
    assert loss(student + shifts, teacher, mask).item() == expected


def test_a_constant_counts_in_full_where_the_level_is_learned() -> None:
    scores = torch.tensor([[1.0, 2, 3]])
    assert pointwise_mse(scores + 3, scores, full(scores)).item() == 9


@pytest.mark.parametrize("loss", [*MARGINS, *DISTRIBUTIONS], ids=by_name)
@settings(max_examples=30, deadline=None)
@given(batch=batches(), shift=st.integers(-5, 5))
def test_a_student_that_differs_by_a_constant_has_learned_everything(loss: Loss, batch: Batch, shift: int) -> None:
    _, teacher, mask = batch
    assert loss(teacher + shift, teacher, mask).item() == pytest.approx(0, abs=1e-5)
    assert gradient(loss, teacher + shift, teacher, mask).abs().max().item() == pytest.approx(0, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(batch=batches())
def test_pointwise_mse_is_zero_for_equal_scores_alone(batch: Batch) -> None:
    student, teacher, mask = batch
    assert pointwise_mse(teacher, teacher, mask).item() == 0
    assert pointwise_mse(student, teacher, mask).item() > 0


@settings(max_examples=30, deadline=None)
@given(batch=batches(), teachers_scale=st.floats(0.2, 50), students_scale=st.floats(0.2, 50))
def test_standardised_scores_have_no_scale_on_either_side(batch: Batch, teachers_scale: float, students_scale: float) -> None:
    student, teacher, mask = batch
    expected = standardised_kl(student, teacher, mask).item()
    assert standardised_kl(students_scale * student, teachers_scale * teacher, mask).item() == pytest.approx(expected, rel=1e-3, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(batch=batches())
def test_in_batch_similarity_ends_at_the_entropy_of_the_teacher(batch: Batch) -> None:
    student, teacher, mask = batch
    entropy = slow_losses.in_batch_similarity(teacher.tolist(), teacher.tolist(), mask.tolist(), 1.0)
    assert in_batch_similarity(teacher, teacher, mask, 1.0).item() == pytest.approx(entropy, rel=1e-4, abs=1e-6)
    assert gradient(in_batch_similarity, teacher, teacher, mask, temperature=1.0).abs().max().item() == pytest.approx(0, abs=1e-6)
    more = in_batch_similarity(student, teacher, mask, 1.0).item() - entropy
    assert more == pytest.approx(kl_divergence(student, teacher, mask).item(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("loss", MARGINS, ids=by_name)
def test_the_scale_of_the_teacher_matters_to_margins(loss: Loss) -> None:
    teacher = torch.tensor([[3.0, 1, 0]])
    assert loss(teacher, 2 * teacher, full(teacher)).item() > 1


@of_every_loss
@settings(max_examples=30, deadline=None)
@given(batch=batches())
def test_no_loss_is_negative(loss: Loss, batch: Batch) -> None:
    assert loss(*batch).item() >= -1e-6


@of_every_loss
@settings(max_examples=30, deadline=None)
@given(batch=batches(), data=st.data())
def test_the_order_of_the_columns_does_not_matter(loss: Loss, batch: Batch, data: st.DataObject) -> None:
    student, teacher, mask = batch
    order = torch.tensor([0, *data.draw(st.permutations(range(1, student.shape[1])))])  # the positive stays first
    assert loss(student[:, order], teacher[:, order], mask[:, order]).item() == pytest.approx(loss(student, teacher, mask).item(), rel=1e-4, abs=1e-6)
    moved = gradient(loss, student[:, order], teacher[:, order], mask[:, order])
    torch.testing.assert_close(moved, gradient(loss, student, teacher, mask)[:, order], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss not in (margin_mse, dynamic_contrastive, contrastive, partial_ranking)], ids=by_name)
@settings(max_examples=20, deadline=None)
@given(batch=batches(), data=st.data())
def test_the_positive_is_a_document_like_the_others_where_the_teacher_orders_all(loss: Loss, batch: Batch, data: st.DataObject) -> None:
    student, teacher, mask = batch
    order = torch.tensor(data.draw(st.permutations(range(student.shape[1]))))
    assert loss(student[:, order], teacher[:, order], mask[:, order]).item() == pytest.approx(loss(student, teacher, mask).item(), rel=1e-4, abs=1e-6)


@of_every_loss
def test_the_gradient_is_not_zero_at_the_start(loss: Loss) -> None:
    untrained = torch.zeros(2, 4)  # it tells no documents apart
    found = gradient(loss, untrained, torch.tensor([[4.0, 3, 2, 1], [9, -1, 0, 2]]), full(untrained))
    assert (found.abs().sum(dim=1) > 0.05).all()
    if loss is not partial_ranking:  # which leaves the positive to the contrastive loss
        assert (found[:, 0] < 0).all()  # the positive is pulled up
    if loss is not pointwise_mse:
        assert found.sum(dim=1).abs().max().item() / found.abs().max().item() == pytest.approx(0, abs=1e-5)  # only differences count


# Numbers that hurt


@pytest.mark.parametrize("padding", [0.0, 1e30, -1e30, math.inf, -math.inf, math.nan])
@of_every_loss
def test_padding_changes_neither_value_nor_gradient(loss: Loss, padding: float) -> None:
    student, teacher = torch.tensor([[1.0, 3, -2], [0, 1, 5]]), torch.tensor([[4.0, 2, 7], [1, -6, 3]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    padded, padded_teacher = (torch.cat([scores, torch.full((2, 2), padding)], dim=1) for scores in (student, teacher))
    padded[1, 2] = padded_teacher[1, 2] = padding
    padded_mask = torch.cat([mask, torch.zeros(2, 2, dtype=torch.bool)], dim=1)
    assert loss(padded, padded_teacher, padded_mask).item() == pytest.approx(loss(student, teacher, mask).item(), rel=1e-6)
    found = gradient(loss, padded, padded_teacher, padded_mask)
    torch.testing.assert_close(found[:, :3], gradient(loss, student, teacher, mask))
    assert found[1, 2] == 0
    assert (found[:, 3:] == 0).all()


@of_every_loss
def test_a_column_masked_for_every_query_is_as_if_it_were_not_there(loss: Loss) -> None:
    student, teacher = torch.tensor([[1.0, 3, -2, 4], [0, 1, 5, -1]]), torch.tensor([[4.0, 2, 7, 3], [1, -6, 3, 9]])
    mask = torch.tensor([[True, False, True, True], [True, False, True, True]])
    kept = [0, 2, 3]
    expected = loss(student[:, kept], teacher[:, kept], torch.ones(2, 3, dtype=torch.bool))
    assert loss(student, teacher, mask).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("loss", BY_DIFFERENCES, ids=by_name)
def test_a_positive_without_company_teaches_nothing(loss: Loss) -> None:
    student, mask = torch.tensor([[2.0, 1], [1, 5]]), torch.tensor([[True, False], [True, False]])
    assert loss(student, torch.ones(2, 2), mask).item() == pytest.approx(0, abs=1e-6)
    assert gradient(loss, student, torch.ones(2, 2), mask).abs().max().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("largest", [1e4, 1e-30])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([1.0, -1, 0, 1], [1.0, -1, 0.5, 0]),
        ([-1.0, 1, 0, 0], [1.0, -1, 0, 1]),  # the student has it upside down
        ([0.0, 0, 0, 0], [1.0, 1, -1, -1]),
        ([1.0, 1, 1, 1], [1.0, 1, 1, 1]),
        ([1.0, -1, 0, 1], [0.0, 0, 0, 0]),
    ],
)
@of_every_loss
def test_extreme_scores_and_ties_stay_finite(loss: Loss, student: list[float], teacher: list[float], largest: float) -> None:
    for mask in (torch.ones(1, 4, dtype=torch.bool), torch.tensor([[True, True, False, True]]), torch.tensor([[True, False, False, False]])):
        scores = largest * torch.tensor([student]), largest * torch.tensor([teacher])
        assert math.isfinite(loss(*scores, mask).item())
        assert gradient(loss, *scores, mask).isfinite().all()


@of_every_loss
def test_half_precision_scores_are_summed_in_float32(loss: Loss) -> None:
    student, teacher = torch.tensor([[300.0, 1, 2], [0, 200, 3]]), torch.tensor([[4.0, 2, 7], [1, -6, 3]])
    value = loss(student.half(), teacher.half(), full(student))  # squares of such margins are infinite in float16
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(student, teacher, full(student)).item(), rel=1e-6)


def test_every_public_loss_of_scores_is_tested_here() -> None:
    public = {name for module in (losses, rank_losses) for name, found in vars(module).items() if getattr(found, "__module__", "") == module.__name__}
    assert {by_name(loss) for loss in LOSSES} == {name for name in public if not name.startswith("_")}
