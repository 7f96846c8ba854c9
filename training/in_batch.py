"""What stands in a contrastive sum: the scores of a batch laid out as `contrastive` reads them, the positive first."""

from __future__ import annotations

import torch
from torch import Tensor


def positive_first(scores: Tensor, negatives: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """Queries against their positive and all documents of the batch that are surely negative.

    Args:
        scores: of B queries with U documents, shape [B, U].
        negatives: shape [B, U], true for documents that are surely not relevant to each query.
        positives: int64 [B], the column of each query's positive.

    Returns:
        Scores [B, U], the positive in column 0, and the mask of what may stand in the sum.
    """
    own = positives[:, None]  # [B, 1]
    others = torch.arange(scores.shape[1] - 1, device=scores.device).expand(len(scores), -1)
    order = torch.cat([own, others + (others >= own)], dim=1)  # [B, U]
    allowed = negatives.gather(1, order)
    allowed[:, 0] = True
    return scores.gather(1, order), allowed


def four_ways(query_document: Tensor, query_query: Tensor, positive_positive: Tensor, negatives: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """Queries against documents and the other queries, positives against queries and the other positives, in one sum.

    The improved contrastive loss of GTE (Li et al. 2023, arXiv:2308.03281), which INDUS (arXiv:2405.10725) uses: for query
    i with its positive d_i the sum holds s(q_i, d), s(q_i, q_j), s(q_j, d_i) and s(d_j, d_i). As there, the pair itself
    stands in it twice, once from either side. Documents that are nobody's positive come in from the query's side only.

    Args:
        query_document: scores of B queries with U documents, shape [B, U], logits.
        query_query: of the queries with each other, shape [B, B].
        positive_positive: of the queries' positives with each other, shape [B, B].
        negatives: shape [B, U], true for documents that are surely not relevant to each query.
        positives: int64 [B], the column of each query's positive.

    Returns:
        Scores [B, 1 + U + 3 B], the positive in column 0, and the mask of what may stand in the sum. Queries with a
        common positive, and what may be relevant to each other, are left out.
    """
    own = positives[:, None]  # [B, 1]
    itself = torch.eye(len(own), dtype=torch.bool, device=own.device)
    others = negatives.scatter(1, own, torch.zeros_like(own, dtype=torch.bool))  # [B, U]
    strangers = others[:, positives]  # [B, B]: the positive of j is surely not relevant to i
    apart = strangers & strangers.T
    scores = torch.cat([query_document.gather(1, own), query_document, query_query, query_document[:, positives].T, positive_positive.T], dim=1)
    mask = torch.cat([torch.ones_like(own, dtype=torch.bool), others, apart, strangers.T | itself, apart], dim=1)
    return scores, mask
