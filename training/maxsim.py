"""MaxSim of every query with every document of a batch, as a number that can be learned from."""

from __future__ import annotations

import torch
from sentence_transformers.util.similarity import maxsim
from torch import Tensor

CHUNK = 2**24
"""Numbers in memory at a time, forwards and backwards: 64 MB."""


def maxsim_matrix(queries: Tensor, query_mask: Tensor, documents: Tensor, document_mask: Tensor, chunk: int = CHUNK) -> Tensor:
    """Sums over a query's tokens of the best inner product with a token of the document (Khattab and Zaharia 2020, arXiv:2004.12832).

    In float32 also under autocast: in bf16 the scores of neighbours in a ranking would be equal. Of the similarities of all tokens,
    B x U x Lq x Ld numbers, only a chunk of documents is in memory at a time; backwards needs which token was the best, and no more.

    Args:
        queries: token vectors, shape [B, Lq, D].
        query_mask: bool [B, Lq], the tokens that count.
        documents: token vectors, shape [U, Ld, D].
        document_mask: bool [U, Ld].
        chunk: numbers in memory at a time.

    Returns:
        float32 [B, U]. A document without tokens has the lowest score that unit vectors could have, and no gradient; sentence-transformers
        gives it -1e9, which no margin survives.
    """
    filled = document_mask.any(dim=1)  # [U]
    lowest = -(queries.detach().float().norm(dim=2) * query_mask).sum(dim=1, keepdim=True)  # [B, 1]
    with torch.autocast(queries.device.type, enabled=False):
        scores = maxsim(queries.float(), documents.float(), query_mask.bool(), document_mask.bool() | ~filled[:, None], chunk_elements=chunk)
    return torch.where(filled, scores, lowest)
