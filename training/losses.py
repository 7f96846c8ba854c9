"""Losses as pure functions of scores, the same for every family of student.

Shapes: student and teacher scores are float [B, K] (B queries, K documents each), mask is bool [B, K] and false where
a query has fewer than K documents. Column 0 holds the positive. Every function returns a scalar, the mean over what
the mask leaves, and none of them looks at a masked number: padding changes neither value nor gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, softmax


def margin_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of the student's and the teacher's margins of the first document over each other one.

    A margin is the score of document 0 minus that of document k (Hofstaetter et al. 2020, arXiv:2010.02666; there
    K = 2, here the mean over the K - 1 pairs). Adding a constant to a query's teacher scores changes nothing; their
    scale matters, so the teacher must speak in logits or a student in the same unit.

    Args:
        student: scores, shape [B, K], an un-normalised dot product or a scaled cosine.
        teacher: scores, shape [B, K], raw; probabilities squeeze the margin.
        mask: shape [B, K], false where a query has fewer than K documents.
    """
    difference = _clean(student, mask) - _clean(teacher, mask)  # [B, K]
    error = (difference[:, :1] - difference[:, 1:]) ** 2  # [B, K - 1]
    return _mean(error, mask[:, :1] & mask[:, 1:])


def margin_mse_all_pairs(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of the margins of all pairs of a query's documents: ((s_i - s_j) - (t_i - t_j))^2.

    The form of arXiv:2010.02666 extended from one pair to every i < j; invariant as `margin_mse` is.

    Args:
        student: scores, shape [B, K].
        teacher: scores, shape [B, K], raw.
        mask: shape [B, K].
    """
    difference = _clean(student, mask) - _clean(teacher, mask)  # [B, K]
    error = (difference[:, :, None] - difference[:, None, :]) ** 2  # [B, K, K]
    pairs = torch.ones(error.shape[1:], dtype=torch.bool, device=mask.device).triu(diagonal=1)  # i < j
    return _mean(error, mask[:, :, None] & mask[:, None, :] & pairs)


def kl_divergence(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(teacher / temperature) || softmax(student)) over each list, mean over queries.

    The teacher's distribution is the target, so the student is punished for missing what the teacher likes (the
    direction of TCT-ColBERT and RocketQAv2). Zero when the two agree up to a constant per query.

    Args:
        student: scores, shape [B, K], logits.
        teacher: scores, shape [B, K].
        mask: shape [B, K].
        temperature: divides the teacher's scores; below 1 sharpens them.
    """
    log_student = log_softmax(_fill(student, mask), dim=1)  # [B, K]
    target = _fill(teacher, mask) / temperature
    log_teacher = log_softmax(target, dim=1)
    terms = softmax(target, dim=1) * (_clean(log_teacher, mask) - _clean(log_student, mask))
    return _clean(terms, mask).sum(dim=1).mean()


def contrastive(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of document 0 against all others (InfoNCE); the teacher is not used.

    Args:
        student: scores, shape [B, M], logits; M may be the K own documents followed by other queries' documents.
        teacher: any, ignored, so that all losses are called alike.
        mask: shape [B, M], false for padding and for documents that may be relevant too (false negatives).
    """
    del teacher
    target = torch.zeros(len(student), dtype=torch.long, device=student.device)
    return cross_entropy(_fill(student, mask), target)


def _fill(scores: Tensor, mask: Tensor) -> Tensor:
    """Masked scores become the lowest finite number: probability 0 in a softmax, and no NaN from inf - inf."""
    return scores.float().masked_fill(~mask, torch.finfo(torch.float32).min)


def _clean(values: Tensor, mask: Tensor) -> Tensor:
    """Masked values become 0, whatever they were (0 * NaN would stay NaN)."""
    return values.float().masked_fill(~mask, 0.0)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values under the mask; 0 where nothing is left, so that a batch of lone positives does not crash."""
    return _clean(values, mask).sum() / mask.sum().clamp(min=1)
