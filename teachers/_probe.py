"""A few questions before hours of work: do a language model's answers depend on the document, and on the right one?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from retriever.types import Document, Query

Pairs = list[tuple[Query, Document]]
QUERIES = 4
CANDIDATES = 12
"""Of all queries together."""

ENOUGH_CANDIDATES = 8
"""Fewer say nothing about whether candidates are preferred."""

SMALLEST_DIFFERENCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a model said of a few queries, each with some of its candidates and with other documents.

    Attributes:
        noise: the largest difference between two scores of the same pair.
        spread: over a query's documents, the median of the queries.
        shuffled: difference that the order of a document's words makes, the median of the queries; None where no document has several words.
        preferred: how often a candidate is above another document of the collection (ties half); None where there are too few of either.
    """

    noise: float
    spread: float
    shuffled: float | None
    preferred: float | None

    @property
    def smallest(self) -> float:
        """What a difference must be above to be no noise."""
        return max(3 * self.noise, SMALLEST_DIFFERENCE)

    @property
    def problem(self) -> str | None:
        """What is wrong, with its numbers; None when all is well."""
        if self.spread <= self.smallest:
            return f"the scores of different documents for the same query differ by {self.spread:.2g}, and those of the same pair by {self.noise:.2g}"
        if self.shuffled is not None and self.shuffled <= self.smallest:
            return f"shuffling a document's words changes its score by {self.shuffled:.2g}, and scores of the same pair differ by {self.noise:.2g}"
        if self.preferred is not None and self.preferred < 0.5:
            return (
                f"candidates are scored above any other documents of the collection in {self.preferred:.0%} of the comparisons, which is no better than chance"
            )
        return None


def probe(score: Callable[[Pairs], NDArray[np.float32]], pairs: Sequence[tuple[Query, Document]], others: Sequence[Document]) -> Probe:
    """Scores a few of the pairs, some again, their queries with other documents, and with a document's words shuffled.

    Random scores pass the last check half of the time: whether a teacher is worth copying is for the audit to say.

    Args:
        score: the teacher's scores [n] of n pairs.
        pairs: candidates, one at least; the first ones of the first distinct queries are used.
        others: any documents of the collection; those that are candidates of a query are left out for it.
    """
    candidates: dict[str, Pairs] = {}
    for query, document in pairs:
        candidates.setdefault(query.text, []).append((query, document))
    groups = [(group, _not_among(others, group)) for group in list(candidates.values())[:QUERIES]]
    groups = [(group[: CANDIDATES // len(groups)], rest) for group, rest in groups]
    first = [group[0] for group, _ in groups]
    asked: Pairs = [pair for group, rest in groups for pair in (*group, *((group[0][0], other) for other in rest))]
    ends = np.cumsum([len(group) + len(rest) for group, rest in groups])[:-1]
    scores = [(part[: len(group)], part[len(group) :]) for part, (group, _) in zip(np.split(score(asked).astype(np.float64), ends), groups, strict=True)]
    again, shuffled = np.split(score([*first, *((query, shuffle_words(document)) for query, document in first)]).astype(np.float64), 2)
    own = np.array([mine[0] for mine, _ in scores])
    changed = np.abs(shuffled - own)[[len(set(document.full_text.split())) > 3 for _, document in first]]
    return Probe(
        noise=float(np.abs(again - own).max()),
        spread=float(np.median([np.ptp(np.concatenate(both)) for both in scores])),
        shuffled=float(np.median(changed)) if len(changed) else None,
        preferred=_preferred(scores),
    )


def _preferred(scores: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> float | None:
    """How often a query's candidate has a higher score than its other documents."""
    comparisons = [np.sign(mine[:, None] - rest[None, :]).ravel() for mine, rest in scores]
    if sum(len(mine) for mine, rest in scores if len(rest)) < ENOUGH_CANDIDATES:
        return None
    return float((np.concatenate(comparisons).mean() + 1) / 2)


def _not_among(others: Sequence[Document], group: Pairs) -> list[Document]:
    texts = {document.full_text for _, document in group}
    return [other for other in others if other.full_text not in texts]


def shuffle_words(document: Document) -> Document:
    """The document with its words in another order, the same at each call."""
    words = document.full_text.split()
    return Document(document.doc_id, " ".join(np.random.default_rng(0).permutation(words).tolist()))
