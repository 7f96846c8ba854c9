"""A few questions before hours of work: do a language model's answers depend on the document?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from retriever.types import Document, Query

Pairs = list[tuple[Query, Document]]
QUERIES = 4
SMALLEST_DIFFERENCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a model said of a few queries, each with several documents.

    Attributes:
        noise: the largest difference between two scores of the same pair.
        spread: over a query's documents, the median of the queries.
        shuffled: difference that the order of a document's words makes, the median of the queries; None where no document has several words.
    """

    noise: float
    spread: float
    shuffled: float | None

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
        return None


def probe(score: Callable[[Pairs], NDArray[np.float32]], pairs: Sequence[tuple[Query, Document]], others: Sequence[Document]) -> Probe:
    """Scores a few of the pairs, the same again, their queries with other documents, and with their own document's words shuffled.

    Args:
        score: the teacher's scores [n] of n pairs.
        pairs: one at least; the first of each distinct query is used.
        others: documents of the collection, any.
    """
    chosen = list({query.text: (query, document) for query, document in reversed(pairs)}.values())[::-1][:QUERIES]
    asked: Pairs = []
    for query, document in chosen:
        asked += [(query, one) for one in (document, shuffle_words(document), *others)]
    scores = score(asked).reshape(len(chosen), 2 + len(others)).astype(np.float64)
    again = score(chosen).astype(np.float64)
    changed = [abs(row[1] - row[0]) for row, (_, document) in zip(scores, chosen, strict=True) if len(set(document.full_text.split())) > 3]
    spreads = np.ptp(np.delete(scores, 1, axis=1), axis=1)
    return Probe(float(np.abs(again - scores[:, 0]).max()), float(np.median(spreads)), float(np.median(changed)) if changed else None)


def shuffle_words(document: Document) -> Document:
    """The document with its words in another order, the same at each call."""
    words = document.full_text.split()
    return Document(document.doc_id, " ".join(np.random.default_rng(0).permutation(words).tolist()))
