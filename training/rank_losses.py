"""Losses that read nothing of the teacher but its order, as pure functions of scores.

Shapes as in `losses`: student, teacher [B, K] and mask [B, K]. Any increasing function of a query's teacher scores gives
the same value, so every unit will do. Two documents with the same teacher score are not ordered, and no loss here asks
the student to order them.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from retriever.training.masks import lowest, mean, pairs, zeroed


def ranknet(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean of log(1 + exp(-(s_i - s_j))) over all pairs that the teacher puts in the order i before j.

    RankNet (Burges et al. 2005) with the teacher's order as its labels and sigma 1; the student's scale does sigma's work.

    Args:
        student: scores, shape [B, K], logits.
        teacher: scores, shape [B, K], in any unit.
        mask: shape [B, K].
    """
    return mean(softplus(-_margins(student, mask)), _ordered(teacher, mask))


def lambda_loss(student: Tensor, teacher: Tensor, mask: Tensor, mu: float = 10.0, highest_grade: float = 4.0) -> Tensor:
    """RankNet with each pair weighted by what its order is worth in nDCG: NDCG-Loss2++.

    The weight of a pair is (mu * delta_ij + |1/D_i - 1/D_j|) * |G_i - G_j| with D = log2(1 + rank) at the student's ranks
    and delta_ij = 1/D_|i-j| - 1/D_(|i-j|+1) (Wang et al. 2018, "The LambdaLoss Framework", NDCG-Loss2++, mu = 10,
    logarithms to the base 2). With mu = 0 it is LambdaRank. Mean over the ordered pairs.

    The paper's gains need grades and a teacher has scores: its order is spread evenly over the grades from
    `highest_grade` down to 0 (the paper's data have five), G = (2^grade - 1) / ideal DCG. Documents to which the student
    gives the same score are ranked against the teacher, so that a student without an opinion is still taught.

    Args:
        student: scores, shape [B, K], logits.
        teacher: scores, shape [B, K], in any unit.
        mask: shape [B, K].
        mu: weight of NDCG-Loss2 beside LambdaRank.
        highest_grade: of the teacher's best document.
    """
    with torch.no_grad():
        gains = _gains(teacher, mask, highest_grade)  # [B, K]
        ranks = _ranks_against_teacher(student, teacher, mask)  # [B, K]
        weights = _discounts(ranks, mu) * (gains[:, :, None] - gains[:, None, :]).abs()  # [B, K, K]
    terms = weights * softplus(-_margins(student, mask)) / math.log(2)
    return mean(terms, _ordered(teacher, mask))


def list_mle(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Minus the log-likelihood of the teacher's order under the student (Plackett-Luce), mean over queries.

    - sum_i log( exp(s_i) / sum_{k not before i} exp(s_k) ), ListMLE (Xia et al. 2008). Documents that the teacher ties
    stay out of each other's sums.

    Args:
        student: scores, shape [B, K], logits.
        teacher: scores, shape [B, K], in any unit.
        mask: shape [B, K].
    """
    return _choices(student, teacher, mask).sum(dim=1).mean()


def partial_ranking(  # noqa: PLR0913, PLR0917, each is a choice of the paper
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    top: int = 16,
    lowest_score: float | None = None,
    margin: float | None = None,
    above_positive: Literal["keep", "drop"] = "keep",
    per: Literal["choice", "query"] = "choice",
    in_batch: bool = True,
) -> Tensor:
    """ListMLE of the hard negatives, cut to those whose order means something; the rest stays in every sum.

    - sum_{j<J} log( exp(s_j) / sum_{k>=j} exp(s_k) ) over a query's candidates without the positive, best first, J the
    first that is not valid: CPRD (Chen et al. 2024, arXiv:2407.07479). A candidate is valid when all the rules given
    hold. The loss of the positive is `contrastive`, which belongs beside it, with the same scale of the student in place
    of a temperature of its own, fixed or learned. From queries to documents: the paper's two directions are those of a collection
    whose images and captions are queries alike.

    Args:
        student: scores, shape [B, K + M], logits; column 0 the positive, which stands in no sum; after the K documents that
            the teacher scored may follow M of other queries, which stand in every sum.
        teacher: scores, shape [B, K].
        mask: shape [B, K + M].
        top: valid are the teacher's best so many.
        lowest_score: valid are those that the teacher scores so high at least, in its own unit.
        margin: valid are those at most this far below the positive, in the teacher's unit.
        above_positive: "drop" takes out candidates that the teacher puts above the positive, which may be relevant.
        per: mean over all choices of the batch (the paper's sum of J - 1), or over its queries.
        in_batch: the M documents of other queries stand in every sum; else they are left out.
    """
    positive = teacher[:, :1].float()  # [B, 1]
    own = mask[:, : teacher.shape[1]].clone()  # [B, K]
    own[:, 0] = False
    if above_positive == "drop":
        own &= ~((teacher > positive) & mask[:, :1])
    standing = torch.cat([own, mask[:, teacher.shape[1] :] & in_batch], dim=1)  # [B, K + M]
    valid = own & (_count_above(teacher, own) < top)
    if lowest_score is not None:
        valid &= teacher >= lowest_score
    if margin is not None:
        valid &= teacher >= positive - margin
    terms = zeroed(_choices(student, teacher, standing), valid)
    return terms.sum() / (valid.sum().clamp(min=1) if per == "choice" else len(student))


def adr_mse(student: Tensor, teacher: Tensor, mask: Tensor, alpha: float = 1.0) -> Tensor:
    """Mean of (r_i - r^_i)^2 / log2(r_i + 1), r the teacher's rank and r^_i = 1 + sum_j sigmoid(alpha (s_j - s_i)) the student's, made smooth.

    ADR-MSE (Schlatt et al. 2024, arXiv:2405.07920). Ties share the mean of their ranks, which equal scores reach.

    Args:
        student: scores, shape [B, K], logits.
        teacher: scores, shape [B, K], in any unit.
        mask: shape [B, K].
        alpha: how sharply the student's scores become ranks.
    """
    ranks = _mean_ranks(teacher, mask)  # [B, K]
    others = pairs(mask) & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    smooth = 1 + zeroed(torch.sigmoid(-alpha * _margins(student, mask)), others).sum(dim=2)  # [B, K]
    return mean((ranks - smooth) ** 2 / torch.log2(ranks + 1), mask)


def _margins(scores: Tensor, mask: Tensor) -> Tensor:
    """[B, K, K], s_i - s_j."""
    scores = zeroed(scores, mask)
    return scores[:, :, None] - scores[:, None, :]


def _ordered(teacher: Tensor, mask: Tensor) -> Tensor:
    """[B, K, K], true where the teacher puts i above j."""
    return pairs(mask) & (teacher[:, :, None] > teacher[:, None, :])


def _count_above(scores: Tensor, mask: Tensor) -> Tensor:
    """[B, K], how many documents of the list have a higher score."""
    return _ordered(scores, mask).sum(dim=1)


def _mean_ranks(scores: Tensor, mask: Tensor) -> Tensor:
    """[B, K], 1 for the highest score; equal scores share the mean of their ranks."""
    equal = pairs(mask) & (scores[:, :, None] == scores[:, None, :])
    return _count_above(scores, mask) + (equal.sum(dim=1) + 1) / 2


def _gains(teacher: Tensor, mask: Tensor, highest_grade: float) -> Tensor:
    """[B, K], (2^grade - 1) / ideal DCG, the grades spread evenly over the teacher's order."""
    count = mask.sum(dim=1, keepdim=True)
    grades = highest_grade * (count - _mean_ranks(teacher, mask)) / (count - 1).clamp(min=1)
    gains = zeroed(2**grades - 1, mask)
    ranks = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    ideal = (gains.sort(dim=1, descending=True).values / torch.log2(1 + ranks)).sum(dim=1, keepdim=True)
    return gains / ideal.clamp(min=torch.finfo(torch.float32).tiny)


def _ranks_against_teacher(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """[B, K], the student's ranks from 1; of documents that it ties, the one that the teacher likes least comes first."""
    worst_first = lowest(teacher, mask).argsort(dim=1, stable=True)
    order = worst_first.gather(1, lowest(student, mask).gather(1, worst_first).argsort(dim=1, descending=True, stable=True))
    return order.argsort(dim=1) + 1


def _discounts(ranks: Tensor, mu: float) -> Tensor:
    """[B, K, K], mu * delta_ij + |1/D_i - 1/D_j|."""
    discounted = 1 / torch.log2(1.0 + ranks)
    apart = (ranks[:, :, None] - ranks[:, None, :]).abs().clamp(min=1)  # the diagonal is no pair
    deltas = 1 / torch.log2(1.0 + apart) - 1 / torch.log2(2.0 + apart)
    return mu * deltas + (discounted[:, :, None] - discounted[:, None, :]).abs()


def _choices(student: Tensor, teacher: Tensor, standing: Tensor) -> Tensor:
    """[B, K], minus the log-probability that the student chooses each document before all that the teacher puts below it.

    Args:
        student: [B, K + M].
        teacher: [B, K]; the M others are below all.
        standing: bool [B, K + M], false for those in no sum.
    """
    size = teacher.shape[1]
    itself = torch.eye(size, dtype=torch.bool, device=teacher.device)
    below = standing[:, None, :size] & ((teacher[:, :, None] > teacher[:, None, :]) | itself)  # [B, K, K]
    rest = standing[:, None, size:].expand(-1, size, -1)  # [B, K, M]
    scores = lowest(student, standing)
    rivals = lowest(scores[:, None, :].expand(-1, size, -1), torch.cat([below, rest], dim=2))  # [B, K, K + M]
    return zeroed(rivals.logsumexp(dim=2) - scores[:, :size], standing[:, :size])
