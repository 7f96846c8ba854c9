"""What losses of scores compare in a batch: lists of a query's own documents, and negatives beside them."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from retriever.training.momentum import Mined, hardest


@dataclasses.dataclass(frozen=True)
class Lists:
    """A batch of B queries, at one size of the vectors.

    Attributes:
        own: the student's scores of each query's own K documents, [B, K]; column 0 is the positive.
        teacher: the teacher's, [B, K].
        mask: bool [B, K], false where a list has fewer than K documents.
        every: the student's scores of all U documents that may stand in a contrastive sum, [B, U].
        negatives: bool [B, U], those that are surely not relevant to each query.
        strangers: bool [B, U], of these those that the teacher did not score for the query, as far as its list tells.
    """

    own: Tensor
    teacher: Tensor
    mask: Tensor
    every: Tensor
    negatives: Tensor
    strangers: Tensor

    def with_mined(self, scores: Tensor, mined: Mined, count: int) -> Lists:
        """The same with documents of a queue: the hardest that the teacher scored join the lists, the others are negatives beside them.

        Args:
            scores: the student's of the batch's queries with the queue's documents, [B, Q].
            mined: what is known of these pairs.
            count: documents that join a list at most, H; a list has K + H then.
        """
        places, found = hardest(scores, mined.scored, count)
        return Lists(
            own=torch.cat([self.own, scores.gather(1, places)], dim=1),
            teacher=torch.cat([self.teacher, mined.teacher.gather(1, places)], dim=1),
            mask=torch.cat([self.mask, found], dim=1),
            every=torch.cat([self.every, scores], dim=1),
            negatives=torch.cat([self.negatives, mined.negatives], dim=1),
            strangers=torch.cat([self.strangers, mined.negatives & ~mined.scored], dim=1),
        )
