"""Near-duplicates among sets: every pair with a Jaccard similarity above a threshold, found exactly, and the groups they form."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set


def shingles(words: Sequence[str], width: int = 3) -> frozenset[str]:
    """All runs of `width` words; the whole text when it is shorter."""
    if len(words) <= width:
        return frozenset([" ".join(words)]) if words else frozenset()
    return frozenset(" ".join(words[start : start + width]) for start in range(len(words) - width + 1))


def jaccard(one: Set[str], other: Set[str]) -> float:
    """The share of common elements among all elements of two sets; 0 for two empty sets."""
    common = len(one & other)
    return common / (len(one) + len(other) - common) if common else 0.0


def similar_pairs(sets: Sequence[Set[str]], threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs (i, j), i > j, of sets whose Jaccard similarity is at least the threshold; empty sets pair with nothing.

    Exact, by prefix filtering (Bayardo et al. 2007, "Scaling up all pairs similarity search"): with the elements of each set
    ordered from the rarest, two such sets share one of their first n - ceil(threshold * n) + 1 elements.

    Args:
        sets: n sets of strings.
        threshold: in (0, 1].
    """
    frequency = Counter(element for members in sets for element in members)
    holders: dict[str, list[int]] = defaultdict(list)
    for number, members in enumerate(sets):
        ordered = sorted(members, key=lambda element: (frequency[element], element))
        prefix = ordered[: len(ordered) - math.ceil(threshold * len(ordered) - 1e-9) + 1]
        candidates = {other for element in prefix for other in holders[element]}
        for other in sorted(candidates):
            if jaccard(members, sets[other]) >= threshold:
                yield number, other
        for element in prefix:
            holders[element].append(number)


def groups(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """For each of `count` items the smallest item that it is connected with, directly or through others."""
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for one, other in pairs:
        first, second = sorted((root(one), root(other)))
        parent[second] = first
    return [root(item) for item in range(count)]
