"""Our losses of lists, vectors and sparsity against those of sentence-transformers, on fixed tensors.

Theirs for cross-encoders take a model and texts: here the model is a table of scores and a text is a place in it. They know
lists of several lengths, so padding is compared as well.

- ranknet: RankNetLoss with natural logarithms;
- lambda_loss: LambdaLoss with NDCGLoss2PPScheme, and LambdaRankScheme for mu = 0, on the grades that we make of an order;
- list_mle: ListMLELoss that sorts by the labels; partial_ranking with all valid is the same on the candidates;
- adr_mse: ADRMSELoss, ties included; pointwise_mse: the function of torch that their MSELoss calls;
- in_batch_similarity at temperature 1: ListNetLoss, the cross-entropy of the two softmaxes;
- contrastive on what four_ways lays out: MultipleNegativesRankingLoss in all directions and one sum, on pairs;
- vector_mse, vector_distance and vector_cosine: EmbedDistillLoss; flops: FlopsLoss.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from sentence_transformers.cross_encoder.losses import (
    ADRMSELoss,
    LambdaLoss,
    LambdaRankScheme,
    ListMLELoss,
    ListNetLoss,
    NDCGLoss2PPScheme,
    RankNetLoss,
)
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss, MultipleNegativesRankingLoss
from sentence_transformers.sparse_encoder.losses import FlopsLoss
from sentence_transformers.util import dot_score
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from retriever.training.in_batch import four_ways
from retriever.training.losses import contrastive, in_batch_similarity, pointwise_mse
from retriever.training.rank_losses import adr_mse, lambda_loss, list_mle, partial_ranking, ranknet
from retriever.training.sparsity_losses import flops
from retriever.training.vector_losses import vector_cosine, vector_distance, vector_mse

GENERATOR = torch.Generator().manual_seed(11)
STUDENT, TEACHER = 2 * torch.randn(2, 3, 6, generator=GENERATOR)
LENGTHS = [6, 2, 4]
MASK = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
TIED = torch.tensor([[3.0, 1, 1, 2, 0, 1], [5, 5, 0, 0, 0, 0], [1, 2, 2, 2, 0, 0]])


class ScoreTable(nn.Module):
    """As much of a CrossEncoder as its losses ask for: the score of query i with its document k is that of the table."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def preprocess(self, pairs: Sequence[tuple[str, str]], **_: Any) -> dict[str, Tensor]:
        return {"places": torch.tensor([[int(query), int(document)] for query, document in pairs])}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        rows, columns = features["places"].T
        return {"scores": self.scores[rows, columns]}


def theirs(make: Callable[[ScoreTable], nn.Module], student: Tensor, labels: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Value and gradient of one of their losses of lists."""
    student = student.detach().clone().requires_grad_()
    inputs = [str(row) for row in range(len(lengths))], [[str(place) for place in range(length)] for length in lengths]
    value = make(ScoreTable(student))(inputs, [row[:length] for row, length in zip(labels, lengths, strict=True)])
    return value.detach(), torch.autograd.grad(value, student)[0]


def ours(loss: Callable[..., Tensor], student: Tensor, *others: Tensor, **parameters: Any) -> tuple[Tensor, Tensor]:
    student = student.detach().clone().requires_grad_()
    value = loss(student, *others, **parameters)
    return value.detach(), torch.autograd.grad(value, student)[0]


def assert_equal(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    for found, expected in zip(one, other, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def grades(teacher: Tensor) -> Tensor:
    """The best of n documents has grade 4, the worst 0, the others in even steps."""
    found = torch.zeros_like(teacher)
    for row, length in enumerate(LENGTHS):
        order = teacher[row, :length].argsort(descending=True)
        found[row, order] = torch.linspace(4, 0, length)
    return found


@pytest.mark.parametrize("teacher", [TEACHER, TIED], ids=["no ties", "ties"])
def test_ranknet_is_stock(teacher: Tensor) -> None:
    assert_equal(ours(ranknet, STUDENT, teacher, MASK), theirs(lambda model: RankNetLoss(model, reduction_log="natural"), STUDENT, teacher, LENGTHS))


@pytest.mark.parametrize(("mu", "scheme"), [(10.0, NDCGLoss2PPScheme()), (3.0, NDCGLoss2PPScheme(mu=3.0)), (0.0, LambdaRankScheme())])
def test_lambda_loss_is_stock_on_the_grades_of_an_order(mu: float, scheme: nn.Module) -> None:
    assert_equal(ours(lambda_loss, STUDENT, TEACHER, MASK, mu=mu), theirs(lambda model: LambdaLoss(model, scheme), STUDENT, grades(TEACHER), LENGTHS))


def test_list_mle_is_stock() -> None:
    assert_equal(ours(list_mle, STUDENT, TEACHER, MASK), theirs(lambda model: ListMLELoss(model, respect_input_order=False), STUDENT, TEACHER, LENGTHS))


def test_partial_ranking_with_all_candidates_valid_is_their_list_mle_of_the_candidates() -> None:
    candidates = [length - 1 for length in LENGTHS]
    value, gradient = theirs(lambda model: ListMLELoss(model, respect_input_order=False), STUDENT[:, 1:], TEACHER[:, 1:], candidates)
    expected = value, torch.cat([torch.zeros(3, 1), gradient], dim=1)
    assert_equal(ours(partial_ranking, STUDENT, TEACHER, MASK, per="query"), expected)


@pytest.mark.parametrize("alpha", [1.0, 2.5])
@pytest.mark.parametrize("teacher", [TEACHER, TIED], ids=["no ties", "ties"])
def test_adr_mse_is_stock(teacher: Tensor, alpha: float) -> None:
    assert_equal(ours(adr_mse, STUDENT, teacher, MASK, alpha=alpha), theirs(lambda model: ADRMSELoss(model, alpha=alpha), STUDENT, teacher, LENGTHS))


def test_in_batch_similarity_is_list_net_at_temperature_1() -> None:
    assert_equal(ours(in_batch_similarity, STUDENT, TEACHER, MASK, temperature=1.0), theirs(ListNetLoss, STUDENT, TEACHER, LENGTHS))


def test_pointwise_mse_is_that_of_torch_which_their_mse_loss_calls() -> None:
    assert_equal(ours(pointwise_mse, STUDENT, TEACHER, MASK), ours(lambda student: mse_loss(student[MASK], TEACHER[MASK]), STUDENT))


def test_contrastive_in_four_ways_is_stock_on_pairs() -> None:
    queries, documents = torch.randn(2, 5, 8, generator=GENERATOR)
    stock = MultipleNegativesRankingLoss(
        nn.Identity(), scale=1.0, similarity_fct=dot_score, directions=("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
    )

    def own(both: Tensor) -> Tensor:
        first, second = both
        scores, mask = four_ways(first @ second.T, first @ first.T, second @ second.T, ~torch.eye(5, dtype=torch.bool), torch.arange(5))
        return contrastive(scores, scores, mask)

    both = torch.stack([queries, documents])
    assert_equal(ours(own, both), ours(lambda pair: stock.compute_loss_from_embeddings([pair[0], pair[1]], torch.arange(5)), both))


@pytest.mark.parametrize(("loss", "metric"), [(vector_mse, "mse"), (vector_distance, "l2"), (vector_cosine, "cosine")])
def test_losses_of_vectors_are_stock(loss: Callable[..., Tensor], metric: Any) -> None:
    student, teacher = torch.randn(2, 5, 8, generator=GENERATOR)
    stock = EmbedDistillLoss(nn.Identity(), distance_metric=metric)
    expected = ours(lambda vectors: stock.compute_loss_from_embeddings([vectors], [teacher]), student)
    assert_equal(ours(loss, student, teacher, torch.ones(5, dtype=torch.bool)), expected)


def test_flops_is_stock() -> None:
    weights = torch.rand(5, 30, generator=GENERATOR)
    assert_equal(ours(flops, weights), ours(FlopsLoss(nn.Identity()).compute_loss_from_embeddings, weights))
