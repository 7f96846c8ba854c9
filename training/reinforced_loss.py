"""The losses of reinforced training: a batch of images and a batch of captions, and what several teachers think of all their pairs.

MobileCLIP (Vasu et al. 2024, arXiv:2311.17049) and MobileCLIP2 (Faghri et al. 2025, arXiv:2508.20691). Image i belongs to caption i.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, softmax

from retriever.training.masks import lowest, zeroed


def ensemble_target(left: Sequence[Tensor], right: Sequence[Tensor], logit_scales: Sequence[float]) -> Tensor:
    """The logarithm of the distribution over the right side that K teachers want, [B, B]: of the mean over k of softmax(c_k A_k B_k^T).

    The mean is taken after the softmax, so a teacher's scale says how sure it is and not how much it counts.

    Args:
        left: of each teacher, unit vectors A_k [B, D_k].
        right: of each teacher, unit vectors B_k [B, D_k].
        logit_scales: c_k of each teacher.
    """
    each = [log_softmax(scale * (a.float() @ b.float().T), dim=1) for a, b, scale in zip(left, right, logit_scales, strict=True)]
    return torch.logsumexp(torch.stack(each), dim=0) - math.log(len(each))


def both_ways(scores: Tensor, images: Sequence[Tensor], texts: Sequence[Tensor], logit_scales: Sequence[float]) -> tuple[Tensor, Tensor]:
    """What `reinforced` compares, [2B, B] each: a row for each image over the captions, then one for each caption over the images.

    Args:
        scores: of the student, images by captions, shape [B, B], logits.
        images: of each teacher, unit vectors [B, D_k] of the images as they were augmented for the student too.
        texts: of each teacher, unit vectors [B, D_k] of the captions.
        logit_scales: c_k of each teacher.
    """
    wanted = ensemble_target(images, texts, logit_scales), ensemble_target(texts, images, logit_scales)
    return torch.cat([scores, scores.T]), torch.cat(wanted)


def reinforced(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the student's softmax with the teachers' distribution, mean over rows: over images and over captions alike.

    Its gradient is that of the mean over the teachers of KL(teacher || student), which the papers write: the two differ by the
    teachers' entropies. With one teacher, its lowest value is that entropy, reached where the scores agree up to a constant.

    Args:
        student: scores, shape [2B, B], logits.
        teacher: logarithms of the distributions that are wanted, shape [2B, B]; a constant in a row changes nothing.
        mask: shape [2B, B], false for what is to be left out.
    """
    target = softmax(lowest(teacher.float(), mask), dim=1)
    return -(target * zeroed(log_softmax(lowest(student.float(), mask), dim=1), mask)).sum(dim=1).mean()


def paired_contrastive(scores: Tensor, same: Tensor | None = None) -> Tensor:
    """Cross-entropy of each image's own caption among all, and of each caption's image; mean of both directions (Radford et al. 2021, arXiv:2103.00020).

    Args:
        scores: of the student, images by captions, shape [B, B], logits.
        same: bool [B, B], true where a caption fits an image that is not its own, such as one with the same words; left out
            of the sums. The diagonal does not count.
    """
    if same is not None:
        own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(same & ~own, float("-inf"))
    target = torch.arange(len(scores), device=scores.device)
    return (cross_entropy(scores.float(), target) + cross_entropy(scores.float().T, target)) / 2
