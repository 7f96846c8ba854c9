"""Losses of how far apart scores are, as pure functions; those that read only an order are in `rank_losses`.

Shapes: student and teacher scores are float [B, K] (B queries, K documents each), mask is bool [B, K] and false where
a query has fewer than K documents. Column 0 holds the positive. Every function returns a scalar, the mean over what
the mask leaves, and none of them looks at a masked number: padding changes neither value nor gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, softmax

from retriever.training.masks import lowest, mean, pairs, zeroed

SMALLEST_DEVIATION = 1e-4
"""Scores that differ by less are taken for equal: a student without an opinion gets a large gradient, not an infinite one."""


def margin_mse(student: Tensor, teacher: Tensor, mask: Tensor, teacher_scale: float = 1.0) -> Tensor:
    """Mean squared difference of the student's and the teacher's margins of the first document over each other one.

    A margin is the score of document 0 minus that of document k (Hofstaetter et al. 2020, arXiv:2010.02666; there
    K = 2, here the mean over the K - 1 pairs). Adding a constant to a query's teacher scores changes nothing; their
    scale matters, so the teacher must speak in logits or a student in the same unit.

    Args:
        student: scores, shape [B, K], an un-normalised dot product or a scaled cosine.
        teacher: scores, shape [B, K], raw; probabilities squeeze the margin.
        mask: shape [B, K], false where a query has fewer than K documents.
        teacher_scale: multiplies the teacher's scores.
    """
    difference = _difference(student, teacher, mask, teacher_scale)  # [B, K]
    error = (difference[:, :1] - difference[:, 1:]) ** 2  # [B, K - 1]
    return mean(error, mask[:, :1] & mask[:, 1:])


def margin_mse_all_pairs(student: Tensor, teacher: Tensor, mask: Tensor, teacher_scale: float = 1.0) -> Tensor:
    """Mean squared difference of the margins of all pairs of a query's documents: ((s_i - s_j) - (t_i - t_j))^2.

    The form of arXiv:2010.02666 extended from one pair to every i < j; invariant as `margin_mse` is.

    Args:
        student: scores, shape [B, K].
        teacher: scores, shape [B, K], raw.
        mask: shape [B, K].
        teacher_scale: multiplies the teacher's scores.
    """
    difference = _difference(student, teacher, mask, teacher_scale)  # [B, K]
    error = (difference[:, :, None] - difference[:, None, :]) ** 2  # [B, K, K]
    once = torch.ones(error.shape[1:], dtype=torch.bool, device=mask.device).triu(diagonal=1)  # i < j
    return mean(error, pairs(mask) & once)


def pointwise_mse(student: Tensor, teacher: Tensor, mask: Tensor, teacher_scale: float = 1.0) -> Tensor:
    """Mean squared difference of the scores themselves: (s_i - t_i)^2.

    The distillation term of DSE (Barkan et al. 2019, arXiv:1908.05161), which takes the logit of "relevant" minus that
    of "not relevant" as t. A constant added to the teacher's scores counts in full: the student learns the level too.

    Args:
        student: scores, shape [B, K], in a unit that reaches the teacher's values.
        teacher: scores, shape [B, K], logits.
        mask: shape [B, K].
        teacher_scale: multiplies the teacher's scores.
    """
    return mean(_difference(student, teacher, mask, teacher_scale) ** 2, mask)


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
    log_student = log_softmax(lowest(student, mask), dim=1)  # [B, K]
    target = lowest(teacher.float() / temperature, mask)
    log_teacher = log_softmax(target, dim=1)
    terms = softmax(target, dim=1) * (zeroed(log_teacher, mask) - zeroed(log_student, mask))
    return zeroed(terms, mask).sum(dim=1).mean()


def standardised_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """KL(softmax(t / std t) || softmax(s / std s)) over each list, mean over queries: a temperature that nobody has to choose.

    Standardised logits (Choi et al. 2022, arXiv:2211.03946). Neither a constant nor a positive factor of a query's
    scores changes anything, on either side, so a teacher of any scale teaches a student of any scale; the student's own
    scale stays free and another loss, such as `contrastive`, must hold it. The deviation is that of the list itself
    (over K, not K - 1), and at least `SMALLEST_DEVIATION`.

    Args:
        student: scores, shape [B, K].
        teacher: scores, shape [B, K], in any unit.
        mask: shape [B, K].
    """
    return kl_divergence(_standardised(student, mask), _standardised(teacher, mask), mask)


def in_batch_similarity(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 0.05) -> Tensor:
    """Cross-entropy of the two distributions over a batch's documents: - sum_j P_T(d_j | q_i) log P_S(d_j | q_i), mean over queries.

    The distillation of INDUS (Bhattacharjee et al. 2024, arXiv:2405.10725): the student learns how the teacher's
    vectors place every document of the batch, not only a query's own list. Its lowest value is the entropy of the
    teacher's distribution, reached when the scores agree up to a constant per query.

    Args:
        student: scores of the B queries with the batch's U distinct documents, shape [B, U], logits.
        teacher: the teacher's scores of the same pairs, shape [B, U], such as cosines of its vectors.
        mask: shape [B, U], false for documents that are to be left out.
        temperature: divides the teacher's scores; .05 makes logits of cosines.
    """
    target = softmax(lowest(teacher.float() / temperature, mask), dim=1)  # [B, U]
    terms = target * zeroed(log_softmax(lowest(student, mask), dim=1), mask)
    return -terms.sum(dim=1).mean()


def dynamic_contrastive(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """(1 - u)^2 KL(P_T || P_S) + u NCE over each list, mean over queries: a teacher that is sure is copied, for one that is not the judgements speak.

    DCD (Rao et al. 2022, arXiv:2207.01426): u is the entropy of P_T = softmax(teacher / temperature) over that of an even
    distribution, P_S = softmax(student), NCE = - log P_S of document 0. Each query's terms have its own weights before the mean is
    taken, which the released code does afterwards. The list is the query's own K documents; those of other queries come in by
    `contrastive` beside it.

    Args:
        student: scores, shape [B, K], logits; column 0 is the positive.
        teacher: scores, shape [B, K].
        mask: shape [B, K].
        temperature: divides the teacher's scores; below 1 makes a surer teacher.
    """
    log_student = zeroed(log_softmax(lowest(student, mask), dim=1), mask)  # [B, K]
    target = lowest(teacher.float() / temperature, mask)
    log_teacher = zeroed(log_softmax(target, dim=1), mask)
    chances = zeroed(softmax(target, dim=1), mask)
    even = mask.sum(dim=1).clamp(min=2).log()  # [B], the entropy of an even distribution; of a single document both terms are 0
    unsure = -(chances * log_teacher).sum(dim=1) / even
    divergence = (chances * (log_teacher - log_student)).sum(dim=1)
    return ((1 - unsure) ** 2 * divergence - unsure * log_student[:, 0]).mean()


def contrastive(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of document 0 against all others (InfoNCE, arXiv:1807.03748); the teacher is not used.

    What stands in the sum decides which form it is: the K own documents, those of the whole batch, or also queries
    against queries and documents against documents, as `four_ways` lays them out.

    Args:
        student: scores, shape [B, U], logits; column 0 is the positive.
        teacher: any, ignored, so that all losses are called alike.
        mask: shape [B, U], false for padding and for what may be relevant too (false negatives).
    """
    del teacher
    target = torch.zeros(len(student), dtype=torch.long, device=student.device)
    return cross_entropy(lowest(student, mask), target)


def _difference(student: Tensor, teacher: Tensor, mask: Tensor, teacher_scale: float) -> Tensor:
    return zeroed(student, mask) - teacher_scale * zeroed(teacher, mask)


def _standardised(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores minus their list's mean, divided by its standard deviation; the mean leaves no trace in a softmax, but digits."""
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)  # [B, 1]
    centred = zeroed(scores.float() - zeroed(scores, mask).sum(dim=1, keepdim=True) / count, mask)  # [B, K]
    variance = (centred**2).sum(dim=1, keepdim=True) / count
    return centred / variance.clamp(min=SMALLEST_DEVIATION**2).sqrt()
