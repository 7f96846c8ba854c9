"""The four-way contrastive sum, against plain loops over the pairs of a batch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retriever.training.in_batch import four_ways
from retriever.training.losses import contrastive


def loss_of(queries: Tensor, documents: Tensor, negatives: Tensor, positives: Tensor) -> Tensor:
    own = documents[positives]
    scores, mask = four_ways(queries @ documents.T, queries @ queries.T, own @ own.T, negatives, positives)
    return contrastive(scores, scores, mask)


def slow(queries: list[list[float]], documents: list[list[float]], negatives: list[list[bool]], positives: list[int]) -> float:
    def product(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    total = 0.0
    for i, query in enumerate(queries):
        own = documents[positives[i]]
        first = product(query, own)
        rivals = [first, first]  # from the side of the query, and from that of the document
        rivals += [product(query, document) for column, document in enumerate(documents) if negatives[i][column] and column != positives[i]]
        for j, other in enumerate(queries):
            theirs = documents[positives[j]]
            his_is_not_mine = negatives[i][positives[j]] and positives[j] != positives[i]
            mine_is_not_his = negatives[j][positives[i]] and positives[j] != positives[i]
            if j != i and mine_is_not_his:
                rivals.append(product(other, own))
            if j != i and mine_is_not_his and his_is_not_mine:
                rivals += [product(query, other), product(theirs, own)]
        total += math.log(sum(math.exp(rival) for rival in rivals)) - first
    return total / len(queries)


def batch(seed: int, size: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    queries, documents = torch.randn(size, 4, generator=generator), torch.randn(count, 4, generator=generator)
    return queries, documents, torch.rand(size, count, generator=generator) < 0.7, torch.randint(count, (size,), generator=generator)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 5), count=st.integers(1, 7))
def test_the_sum_is_that_of_plain_loops(seed: int, size: int, count: int) -> None:
    queries, documents, negatives, positives = batch(seed, size, count)
    expected = slow(queries.tolist(), documents.tolist(), negatives.tolist(), positives.tolist())
    assert loss_of(queries, documents, negatives, positives).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_two_queries_with_one_positive_do_not_push_each_other_away() -> None:
    queries, documents, _, _ = batch(1, 2, 3)
    positives, negatives = torch.tensor([0, 0]), torch.tensor([[False, True, True], [False, True, True]])
    _, mask = four_ways(queries @ documents.T, queries @ queries.T, torch.ones(2, 2), negatives, positives)
    # positive | three documents | two queries | queries against the positive: the own one alone | two positives
    assert mask.tolist() == [
        [True, *(False, True, True), *(False, False), *(True, False), *(False, False)],
        [True, *(False, True, True), *(False, False), *(False, True), *(False, False)],
    ]


def test_gradients_reach_queries_and_documents_from_all_four_sides() -> None:
    queries, documents, _, _ = batch(2, 3, 3)
    queries.requires_grad_()
    documents.requires_grad_()
    negatives, positives = ~torch.eye(3, dtype=torch.bool), torch.arange(3)
    found = torch.autograd.grad(loss_of(queries, documents, negatives, positives), [queries, documents])
    for vectors, gradient in zip((queries, documents), found, strict=True):
        for row, column in ((0, 1), (2, 3)):
            values = []
            for step in (1e-5, -1e-5):
                moved = vectors.detach().double().clone()
                moved[row, column] += step
                pair = (moved, documents.detach()) if vectors is queries else (queries.detach(), moved)
                values.append(slow(pair[0].tolist(), pair[1].tolist(), negatives.tolist(), positives.tolist()))
            assert gradient[row, column].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-3, abs=1e-4)
