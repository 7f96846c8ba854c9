"""The losses of vectors, against plain loops and by what they leave free."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retriever.training import vector_losses
from retriever.training.vector_losses import gram, order_hinge, vector_cosine, vector_distance, vector_mse
from tests.equations.material import Batch, Loss, by_name, gradient, slopes

LOSSES: list[Loss] = [vector_mse, vector_distance, vector_cosine, gram, order_hinge]
BY_SIMILARITY: list[Loss] = [gram, order_hinge]

of_every_loss = pytest.mark.parametrize("loss", LOSSES, ids=by_name)

Vectors = list[list[float]]


# Plain loops


def average(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)


def slow_vector_mse(student: Vectors, teacher: Vectors) -> float:
    return average([(a - b) ** 2 for s, t in zip(student, teacher, strict=True) for a, b in zip(s, t, strict=True)])


def slow_vector_distance(student: Vectors, teacher: Vectors) -> float:
    return average([math.dist(s, t) for s, t in zip(student, teacher, strict=True)])


def slow_vector_cosine(student: Vectors, teacher: Vectors) -> float:
    return average([1 - cosine(s, t) for s, t in zip(student, teacher, strict=True)])


def slow_gram(student: Vectors, teacher: Vectors) -> float:
    places = range(len(student))
    return average([(cosine(student[i], student[j]) - cosine(teacher[i], teacher[j])) ** 2 for i, j in product(places, places)])


def slow_order_hinge(student: Vectors, teacher: Vectors, margin: float = 0.015) -> float:
    terms = []
    for i, j, k in product(range(len(student)), repeat=3):
        wanted = cosine(teacher[i], teacher[j]) - cosine(teacher[i], teacher[k])
        if i not in (j, k) and j != k and wanted > 0:
            terms.append(max(0.0, min(margin, wanted) - (cosine(student[i], student[j]) - cosine(student[i], student[k]))))
    return average(terms)


SLOW = {
    vector_mse: slow_vector_mse,
    vector_distance: slow_vector_distance,
    vector_cosine: slow_vector_cosine,
    gram: slow_gram,
    order_hinge: slow_order_hinge,
}


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Vectors [n, D] of student and teacher and a mask [n] that leaves one at least."""
    n, D = draw(st.integers(1, 6)), draw(st.integers(2, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    student, teacher = (torch.randn(n, D, generator=generator) for _ in range(2))
    mask = torch.rand(n, generator=generator) < draw(st.sampled_from([0.6, 1.0]))
    mask[0] = True
    return student, teacher, mask


@of_every_loss
@settings(max_examples=40, deadline=None)
@given(batch=batches())
def test_the_loss_equals_its_definition_in_slow_loops(loss: Loss, batch: Batch) -> None:
    student, teacher, mask = batch
    expected = SLOW[loss](student[mask].tolist(), teacher[mask].tolist())
    assert loss(student, teacher, mask).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@of_every_loss
@settings(max_examples=15, deadline=None)
@given(batch=batches())
def test_the_gradient_is_the_slope_of_the_loops(loss: Loss, batch: Batch) -> None:
    student, teacher, mask = batch
    expected = torch.zeros_like(student)
    expected[mask] = slopes(lambda moved: SLOW[loss](moved, teacher[mask].tolist()), student[mask])
    torch.testing.assert_close(gradient(loss, student, teacher, mask), expected, rtol=2e-3, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(batch=batches(), margin=st.floats(0.001, 2))
def test_the_margin_of_the_hinge_can_be_set(batch: Batch, margin: float) -> None:
    student, teacher, mask = batch
    expected = slow_order_hinge(student[mask].tolist(), teacher[mask].tolist(), margin)
    assert order_hinge(student, teacher, mask, margin=margin).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


# By hand


ALL = torch.ones(2, dtype=torch.bool)


def test_the_losses_of_single_vectors_by_hand() -> None:
    student, teacher = torch.tensor([[3.0, 0], [0, 1]]), torch.tensor([[3.0, 4], [0, 1]])
    assert vector_mse(student, teacher, ALL).item() == 16 / 4
    assert vector_distance(student, teacher, ALL).item() == 4 / 2
    assert vector_cosine(student, teacher, ALL).item() == pytest.approx((1 - 3 / 5) / 2)


def test_gram_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 0], [0, 5]]), torch.tensor([[2.0, 0, 0], [3, 4, 0]])  # cosines 0 and 3/5
    assert gram(student, teacher, ALL).item() == pytest.approx(2 * 0.36 / 4)


def test_order_hinge_by_hand() -> None:
    teacher = torch.tensor([[1.0, 0], [1, 0], [0, 1]])  # 0 and 1 are alike, 2 is another thing
    student = torch.tensor([[1.0, 0], [0, 1], [1, 0]])  # here 0 and 2 are
    # text 0 wants cosine 1 above cosine 2 and has it the other way round: 1 + .015. Text 1 has 0 and 0: .015. Text 2 has no wish
    assert order_hinge(student, teacher, torch.ones(3, dtype=torch.bool)).item() == pytest.approx((1.015 + 0.015) / 2)


# Properties


@of_every_loss
@settings(max_examples=30, deadline=None)
@given(batch=batches())
def test_the_teachers_own_vectors_leave_nothing_to_learn(loss: Loss, batch: Batch) -> None:
    _, teacher, mask = batch
    assert loss(teacher, teacher, mask).item() == pytest.approx(0, abs=1e-6)
    assert gradient(loss, teacher, teacher, mask).abs().max().item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("loss", [vector_cosine, gram, order_hinge], ids=by_name)
@settings(max_examples=20, deadline=None)
@given(batch=batches(), scale=st.floats(0.1, 100))
def test_lengths_do_not_matter_to_cosines(loss: Loss, batch: Batch, scale: float) -> None:
    student, teacher, mask = batch
    lengths = scale * torch.arange(1.0, len(student) + 1)[:, None]
    assert loss(lengths * student, teacher, mask).item() == pytest.approx(loss(student, teacher, mask).item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("loss", BY_SIMILARITY, ids=by_name)
@settings(max_examples=20, deadline=None)
@given(batch=batches())
def test_a_rotation_and_another_number_of_dimensions_do_not_matter_to_similarities(loss: Loss, batch: Batch) -> None:
    student, teacher, mask = batch
    wider = torch.cat([student, torch.zeros(len(student), 3)], dim=1)
    rotation, _ = torch.linalg.qr(torch.randn(wider.shape[1], wider.shape[1], generator=torch.Generator().manual_seed(1)))
    assert loss(wider @ rotation, teacher, mask).item() == pytest.approx(loss(student, teacher, mask).item(), rel=1e-3, abs=1e-5)


@of_every_loss
@settings(max_examples=20, deadline=None)
@given(batch=batches(), data=st.data())
def test_the_order_of_the_texts_does_not_matter(loss: Loss, batch: Batch, data: st.DataObject) -> None:
    student, teacher, mask = batch
    order = torch.tensor(data.draw(st.permutations(range(len(student)))))
    assert loss(student[order], teacher[order], mask[order]).item() == pytest.approx(loss(student, teacher, mask).item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("padding", [0.0, 1e30, math.inf, math.nan])
@of_every_loss
def test_texts_without_a_teachers_vector_change_neither_value_nor_gradient(loss: Loss, padding: float) -> None:
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 4, 3, generator=generator)
    more = torch.full((2, 3), padding)
    mask = torch.tensor([True] * 4 + [False] * 2)
    expected = loss(student, teacher, mask[:4])
    assert loss(torch.cat([student, more]), torch.cat([teacher, more]), mask).item() == pytest.approx(expected.item(), rel=1e-6)
    found = gradient(loss, torch.cat([student, more]), torch.cat([teacher, more]), mask)
    torch.testing.assert_close(found[:4], gradient(loss, student, teacher, mask[:4]))
    assert (found[4:] == 0).all()


@pytest.mark.parametrize("vectors", [[[1e4, -1e4], [1e4, 1e4], [0, 1e4]], [[0.0, 0], [0, 0], [1, 0]], [[1.0, 0], [1, 0], [1, 0]], [[1e-20, 0], [1, 0], [0, 1]]])
@of_every_loss
def test_long_short_and_equal_vectors_stay_finite(loss: Loss, vectors: Vectors) -> None:
    one, other = torch.tensor(vectors), torch.tensor([[1.0, 2], [1, 2], [-3, 1]])
    for mask in (torch.ones(3, dtype=torch.bool), torch.tensor([True, False, False]), torch.zeros(3, dtype=torch.bool)):
        for student, teacher in ((one, other), (other, one), (one, one)):
            assert math.isfinite(loss(student, teacher, mask).item())
            assert gradient(loss, student, teacher, mask).isfinite().all()


def test_every_public_loss_of_vectors_is_tested_here() -> None:
    public = {name for name, found in vars(vector_losses).items() if getattr(found, "__module__", "") == vector_losses.__name__}
    assert {by_name(loss) for loss in LOSSES} == {name for name in public if not name.startswith("_")}


def test_half_precision_vectors_are_summed_in_float32() -> None:
    student, teacher = torch.tensor([[300.0, 0], [0, 200]]), torch.tensor([[0.0, 0], [0, 1]])
    value: Tensor = vector_mse(student.half(), teacher.half(), ALL)
    assert value.dtype == torch.float32
    assert value.item() == (300**2 + 199**2) / 4
