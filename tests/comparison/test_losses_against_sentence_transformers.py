"""Our losses on a batch of embeddings against those of sentence-transformers, where the definitions coincide.

- margin_mse: MarginMSELoss with the same similarity; our cosine is multiplied by student_scale, our teacher by teacher_scale.
- kl_divergence: DistillKLDivLoss with student temperature 1 (both of its temperatures at once are another definition:
  it then multiplies by the square of the student's).
- contrastive: MultipleNegativesRankingLoss from queries to documents, its scale our student_scale, as long as no
  document stands in two lists and nothing is suspected to be relevant: it knows neither rows nor false negatives.

All of theirs know no padding, so every list here is full.
"""

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MarginMSELoss, MultipleNegativesRankingLoss
from sentence_transformers.util import cos_sim, dot_score, pairwise_cos_sim, pairwise_dot_score
from torch import Tensor, nn

from retriever.settings.training import TrainingSettings
from retriever.training.adapter import DistillationLoss
from tests.training_material import samples_of, untrained

B, K, SCALE = 4, 3, 20.0
EMBEDDINGS = [torch.randn(B, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(1 + K)]
TEACHER = 2 * torch.randn(B, K, generator=torch.Generator().manual_seed(5))
LABELS = torch.arange(B)


def ours(loss: str, similarity: str, **settings: float) -> tuple[float, list[Tensor]]:
    """The loss and its gradient at each embedding."""
    embeddings = [column.clone().requires_grad_() for column in EMBEDDINGS]
    samples = samples_of([[K * b + k for k in range(K)] for b in range(B)], TEACHER.tolist())
    module = DistillationLoss(untrained(similarity), samples, TrainingSettings(losses={loss: 1.0}, student_scale=SCALE, **settings))
    documents = torch.stack(embeddings[1:], dim=1).reshape(B * K, -1)
    terms = module.terms((embeddings[0],), (documents,), {"samples": LABELS, "rows": torch.arange(B * K)})
    assert list(terms) == [loss]
    return terms[loss].item(), list(torch.autograd.grad(terms[loss], embeddings))


def theirs(loss: nn.Module, labels: Tensor) -> tuple[float, list[Tensor]]:
    embeddings = [column.clone().requires_grad_() for column in EMBEDDINGS]
    value = loss.compute_loss_from_embeddings(embeddings, labels)
    return value.item(), list(torch.autograd.grad(value, embeddings))


def assert_equal(one: tuple[float, list[Tensor]], other: tuple[float, list[Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    for gradient, expected in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def scaled_pairwise_cosine(queries: Tensor, documents: Tensor) -> Tensor:
    return SCALE * pairwise_cos_sim(queries, documents)


def test_margin_mse_of_dot_products_is_stock() -> None:
    assert_equal(ours("margin_mse", "dot", teacher_scale=1.0), theirs(MarginMSELoss(nn.Identity(), pairwise_dot_score), TEACHER))


def test_margin_mse_of_scaled_cosines_is_stock_with_that_similarity() -> None:
    assert_equal(ours("margin_mse", "cosine", teacher_scale=1.5), theirs(MarginMSELoss(nn.Identity(), scaled_pairwise_cosine), 1.5 * TEACHER))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_kl_divergence_is_stock_with_the_students_temperature_at_one(temperature: float) -> None:
    stock = DistillKLDivLoss(nn.Identity(), pairwise_dot_score, student_temperature=1.0, teacher_temperature=temperature)
    assert_equal(ours("kl_divergence", "dot", teacher_temperature=temperature), theirs(stock, TEACHER))
    stock = DistillKLDivLoss(nn.Identity(), scaled_pairwise_cosine, student_temperature=1.0, teacher_temperature=temperature)
    assert_equal(ours("kl_divergence", "cosine", teacher_temperature=temperature), theirs(stock, TEACHER))


def test_contrastive_is_stock_on_distinct_documents() -> None:
    assert_equal(ours("contrastive", "cosine"), theirs(MultipleNegativesRankingLoss(nn.Identity(), scale=SCALE, similarity_fct=cos_sim), LABELS))
    assert_equal(ours("contrastive", "dot"), theirs(MultipleNegativesRankingLoss(nn.Identity(), scale=1.0, similarity_fct=dot_score), LABELS))
