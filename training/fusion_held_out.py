"""How well a fusion model orders held-out images and texts, and how much of its comparing half its score should have.

Taught on a few thousand pairs, matching learns them by heart, and what it then says of new pairs is worse than what it began with: the
cosine. So its log-odds are drawn towards the scaled cosine, a log-odds too, as far as held-out pairs ask for. BLIP (Li et al. 2022,
arXiv:2201.12086) adds the two to re-rank, untold in the paper and equally for all models.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retriever.models.fusion import FusionModel

CANDIDATES = 16
"""What comparing finds best for each image and text; matching orders these anew."""

SHARES = tuple(share / 10 for share in range(11))
"""Of the cosine in the score."""

TOGETHER = 256
"""Pairs that go through the fusion layers at a time."""


@torch.inference_mode()
def reciprocal_ranks(model: FusionModel, images: Tensor, texts: Tensor, mask: Tensor, together: Tensor) -> NDArray[np.float64]:
    """[len(SHARES)], the mean over all images and all texts of 1 / the rank of the best one that belongs to it; 0 where comparing does not find it.

    Args:
        model: in the mode of inference.
        images: [n, T, W].
        texts: [m, L, W].
        mask: [m, L].
        together: bool [n, m].
    """
    cosines = model.image_vectors(images) @ model.text_vectors(texts, mask).T
    ranks = [_one_way(model, images, texts, mask, cosines, together.to(cosines.device), of_images) for of_images in (True, False)]
    return np.asarray(torch.cat(ranks).double().mean(dim=0).cpu().numpy())


def _one_way(model: FusionModel, images: Tensor, texts: Tensor, mask: Tensor, cosines: Tensor, together: Tensor, of_images: bool) -> Tensor:
    """[n, len(SHARES)], the reciprocal ranks of images that ask for texts, or of texts that ask for images."""
    asked, belongs = (cosines, together) if of_images else (cosines.T, together.T)
    found = asked.topk(min(CANDIDATES, asked.shape[1]), dim=1).indices  # [n, C]
    own = torch.arange(len(found), device=found.device).repeat_interleave(found.shape[1])
    pairs = (own, found.flatten()) if of_images else (found.flatten(), own)
    parts = zip(*(torch.split(one, TOGETHER) for one in pairs), strict=True)
    odds = torch.cat([model.log_odds(images[rows], texts[columns], mask[columns]) for rows, columns in parts])
    similarity = model.scale * cosines[pairs]
    fits = belongs.gather(1, found)
    ranks = []
    for share in SHARES:
        scores = ((1 - share) * odds + share * similarity).view(found.shape)
        best = scores.masked_fill(~fits, -torch.inf).amax(dim=1, keepdim=True)
        above = ((scores >= best) & ~fits).sum(dim=1)  # ties count against it
        ranks.append(fits.any(dim=1) / (1 + above))
    return torch.stack(ranks, dim=1)
