"""Losses that make the student's vectors those of the teacher, as pure functions of vectors.

Shapes: student [n, D] and teacher [n, D] are the vectors of the same n texts, queries and documents alike, mask is bool [n]
and false where the teacher has none. `vector_mse`, `vector_distance` and `vector_cosine` need the same D on both sides, which
a learned projection of the student gives; `gram` and `order_hinge` compare similarities, so each side may have its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize, relu

from retriever.training.masks import mean, pairs, zeroed


def vector_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of the vectors' numbers, over texts and dimensions.

    Args:
        student: vectors, shape [n, D].
        teacher: vectors, shape [n, D].
        mask: shape [n].
    """
    return mean(_apart(student, teacher, mask) ** 2, mask[:, None].expand_as(student))


def vector_distance(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean Euclidean distance |W s - t|, W applied already: the loss of LEAF (arXiv:2509.12539) and EmbedDistill (arXiv:2301.12005).

    Args:
        student: vectors, shape [n, D].
        teacher: vectors, shape [n, D].
        mask: shape [n].
    """
    return mean(torch.linalg.vector_norm(_apart(student, teacher, mask), dim=1), mask)


def vector_cosine(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean of 1 - cos(s, t): lengths do not matter. The first loss of Stella (arXiv:2412.19048), which gives it the weight 10.

    Args:
        student: vectors, shape [n, D].
        teacher: vectors, shape [n, D].
        mask: shape [n].
    """
    return mean(1 - cosine_similarity(zeroed(student, mask[:, None]), zeroed(teacher, mask[:, None]), dim=1), mask)


def gram(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of the cosines of all pairs of texts: |S S^T - T T^T|^2 / n^2 of unit vectors.

    The second loss of Stella (arXiv:2412.19048), which gives it the weight 200. A rotation of either side changes nothing.

    Args:
        student: vectors, shape [n, D].
        teacher: vectors, shape [n, E].
        mask: shape [n].
    """
    return mean((_cosines(student, mask) - _cosines(teacher, mask)) ** 2, pairs(mask))


def order_hinge(student: Tensor, teacher: Tensor, mask: Tensor, margin: float = 0.015) -> Tensor:
    """Mean of max(0, margin - (s_ij - s_ik)) over texts i, j, k whose cosines the teacher puts in the order t_ij > t_ik.

    The third loss of Stella (arXiv:2412.19048), which gives it the weight 20. There every pair of texts is compared with
    every other, n^4 / 8 comparisons; here pairs that share the text i are, n^3. And no wider margin is asked for than the
    teacher has, min(margin, t_ij - t_ik), so that a student with the teacher's vectors has nothing left to learn.

    Args:
        student: vectors, shape [n, D].
        teacher: vectors, shape [n, E].
        mask: shape [n].
        margin: by which the student is to tell the two cosines apart.
    """
    others = pairs(mask) & ~torch.eye(len(mask), dtype=torch.bool, device=mask.device)  # [n, n]
    wanted = _gaps(_cosines(teacher, mask))  # [n, n, n]
    missing = relu(wanted.clamp(max=margin) - _gaps(_cosines(student, mask)))
    return mean(missing, pairs(others) & (wanted > 0))


def _apart(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return zeroed(student, mask[:, None]) - zeroed(teacher, mask[:, None])


def _cosines(vectors: Tensor, mask: Tensor) -> Tensor:
    """[n, n]."""
    unit = normalize(zeroed(vectors, mask[:, None]), dim=1)
    return unit @ unit.T


def _gaps(cosines: Tensor) -> Tensor:
    """[n, n, n], c_ij - c_ik."""
    return cosines[:, :, None] - cosines[:, None, :]
