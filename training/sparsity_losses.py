"""What sparse vectors cost, as pure functions of the vectors [n, V] of n texts over a vocabulary of V words."""

from __future__ import annotations

from torch import Tensor


def flops(vectors: Tensor) -> Tensor:
    """sum_j (mean_i |w_ij|)^2: in proportion to the multiplications of a query with a document from an inverted index.

    Paria et al. 2020, arXiv:2004.05665, as SPLADE uses it. It falls fastest by emptying the words that most texts share.

    Args:
        vectors: shape [n, V].
    """
    return (vectors.float().abs().mean(dim=0) ** 2).sum()


def l1(vectors: Tensor) -> Tensor:
    """Mean over texts of sum_j |w_ij|: every weight is pulled down alike, whatever the other texts hold.

    What DiSCo (arXiv:2410.14609) puts on queries.

    Args:
        vectors: shape [n, V].
    """
    return vectors.float().abs().sum(dim=1).mean()
