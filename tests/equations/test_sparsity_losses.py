"""What sparse vectors cost: by hand, against plain loops, and what each of the two empties first."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever.training.sparsity_losses import flops, l1
from tests.equations.material import Loss, by_name, gradient, slopes

of_both = pytest.mark.parametrize("loss", [flops, l1], ids=by_name)


def slow_flops(vectors: list[list[float]]) -> float:
    return sum((sum(abs(weight) for weight in word) / len(vectors)) ** 2 for word in zip(*vectors, strict=True))


def slow_l1(vectors: list[list[float]]) -> float:
    return sum(abs(weight) for text in vectors for weight in text) / len(vectors)


SLOW = {flops: slow_flops, l1: slow_l1}


def test_both_by_hand() -> None:
    vectors = torch.tensor([[1.0, 0, 2], [3, 0, 0]])
    assert flops(vectors).item() == 2**2 + 0 + 1**2
    assert l1(vectors).item() == (3 + 3) / 2


@of_both
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 5), V=st.integers(1, 6))
def test_value_and_gradient_are_those_of_plain_loops(loss: Loss, seed: int, n: int, V: int) -> None:
    vectors = torch.randn(n, V, generator=torch.Generator().manual_seed(seed))
    assert loss(vectors).item() == pytest.approx(SLOW[loss](vectors.tolist()), rel=1e-5)
    torch.testing.assert_close(gradient(loss, vectors), slopes(SLOW[loss], vectors), rtol=1e-3, atol=1e-4)


def test_a_word_that_all_texts_share_costs_more_flops_than_words_of_their_own() -> None:
    shared, own = torch.tensor([[1.0, 0], [1, 0]]), torch.eye(2)
    assert flops(shared).item() == 1
    assert flops(own).item() == 0.5
    assert l1(shared).item() == l1(own).item() == 1


def test_flops_is_the_mean_cost_of_a_query_of_the_same_texts() -> None:
    # the inner products of all pairs of texts, each text once as query and once as document
    vectors = torch.rand(4, 7, generator=torch.Generator().manual_seed(1))
    assert flops(vectors).item() == pytest.approx((vectors @ vectors.T).mean().item(), rel=1e-5)


@of_both
def test_empty_and_extreme_vectors_stay_finite(loss: Loss) -> None:
    for vectors in (torch.zeros(2, 3), torch.full((2, 3), 1e4), torch.full((1, 3), 1e4).half()):
        assert loss(vectors).dtype == torch.float32
        assert loss(vectors).isfinite()
        assert gradient(loss, vectors).isfinite().all()
