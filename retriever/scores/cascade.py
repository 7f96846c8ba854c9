"""The cascade: a slow teacher reads a part of each list, and what it did not read is filled in from the cheap teachers.

Pure functions of flat lists; `retriever.steps.cascade` applies them to an experiment. Everywhere: offsets int64 [Q + 1], the
borders of the lists; within a list the pairs lie best first by the mean of the cheap teachers' z-scores.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Scores = NDArray[np.float32]
Mask = NDArray[np.bool_]
Offsets = NDArray[np.int64]

ANCHOR_EVERY = 5
"""One call in so many goes to an anchor: enough for a fit where the others do not reach."""
READ_TOP = 10
"""A guess never stands among so many of the list's best, which are what nDCG@10 looks at."""


def choose(offsets: Offsets, always: Mask, share: float) -> Mask:
    """[n], the pairs that the slow teacher is asked for: of a list of K pairs, share * K of them, rounded, and at least one.

    Those that are read always count among them, also where they alone are more; the others come in the order of
    `call_order`. So what a share chooses is part of what a larger one does.

    Args:
        offsets: the lists.
        always: bool [n], pairs that are read whatever their rank: the judged positives of the queries that teach.
        share: above 0, 1 at most.
    """
    chosen = always.copy()
    for start, end in _lists(offsets):
        calls = max(round(share * (end - start)), 1) - int(always[start:end].sum())
        order = start + call_order(end - start)
        chosen[order[~always[order]][: max(calls, 0)]] = True
    return chosen


@functools.lru_cache(maxsize=1024)
def call_order(size: int) -> NDArray[np.int64]:
    """The ranks 0 to size - 1 in the order in which the slow teacher is asked for them.

    From the top down, but the second of every five calls goes to an anchor: the lowest rank, then the middle one, the
    quarters, the eighths (van der Corput's sequence), so that few anchors are spread as evenly over the list as many. A
    rank that both ways lead to is called once, when the first of them reaches it.
    """
    turns = np.arange(size) * ANCHOR_EVERY / (ANCHOR_EVERY - 1)
    for anchor in range(-(-size // (ANCHOR_EVERY - 1))):
        rank = round(_part_of_list(anchor) * (size - 1))
        turns[rank] = min(turns[rank], 1 + ANCHOR_EVERY * anchor)
    order: NDArray[np.int64] = np.argsort(turns, kind="stable")
    order.flags.writeable = False
    return order


def fill(cheap: Scores, offsets: Offsets, scores: Scores, always: Mask) -> Scores:
    """[n], the slow teacher's scores, those that it was not asked for guessed from the cheap teachers, in its own unit.

    The guess is slope * cheap + offset: one slope for all lists, below 0 taken as 0, and an offset for each list, by least
    squares on pairs that were read. Each of these weighs as many unread pairs as it stands for, being their neighbour in the
    list's cheap order: the fit is one of the part that was not read, not of the top. Pairs that are read always stay out of the fit,
    because their judgement chose them, and nothing unread is like them. A list without a pair in the fit takes the mean offset.

    A guess stays just below the tenth best score that was read in its list, or below the better half of them where fewer
    than twenty were read. It would stand higher only where the slow teacher thinks less of the top than it does elsewhere:
    that says something of the pairs it read there, and nothing for those that it did not.

    Args:
        cheap: float32 [n], the mean of the cheap teachers' z-scores.
        offsets: the lists; each that is not empty has a score at least.
        scores: float32 [n], NaN where there is none.
        always: bool [n], as in `choose`.
    """
    known = np.isfinite(scores)
    if known.all():
        return scores
    slope, levels = _fit(cheap.astype(np.float64), offsets, scores, known, always)
    lists = np.repeat(np.arange(len(levels)), np.diff(offsets))
    guesses = np.minimum(slope * cheap + levels[lists], _ceilings(offsets, scores, known)[lists])
    filled: Scores = np.where(known, scores, guesses.astype(np.float32))
    return filled


def _fit(cheap: Floats, offsets: Offsets, scores: Scores, known: Mask, always: Mask) -> tuple[float, Floats]:
    """The slope, and the offset of each list [Q]."""
    fitted = known & ~always
    if not fitted.any():
        fitted = known
    weights = _weights(offsets, known, fitted)
    if not weights.any():  # the lists with unread pairs have none in the fit
        weights = fitted.astype(np.float64)
    values = np.where(fitted, scores, 0.0).astype(np.float64)
    lists, queries = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), len(offsets) - 1
    total = np.bincount(lists, weights, minlength=queries)
    mean_cheap, mean_value = (np.bincount(lists, weights * one, minlength=queries) / np.where(total > 0, total, 1.0) for one in (cheap, values))
    centred = weights * (cheap - mean_cheap[lists])
    spread = float(centred @ (cheap - mean_cheap[lists]))
    slope = max(float(centred @ (values - mean_value[lists])) / spread, 0.0) if spread > 0 else 0.0
    levels = mean_value - slope * mean_cheap
    return slope, np.where(total > 0, levels, total @ levels / total.sum())


def _weights(offsets: Offsets, known: Mask, fitted: Mask) -> Floats:
    """[n], how many unread pairs each pair of the fit stands for: one between two of them is shared by both, more to the nearer in rank."""
    weights = np.zeros(len(known))
    for start, end in _lists(offsets):
        read, unread = (start + np.flatnonzero(mask[start:end]) for mask in (fitted, ~known))
        if len(read):
            place = np.interp(unread, read, np.arange(len(read)))
            first = place.astype(np.int64)
            shares = [np.bincount(first + after, part, minlength=len(read) + 1) for after, part in ((0, 1 - (place - first)), (1, place - first))]
            weights[read] = (shares[0] + shares[1])[: len(read)]
    return weights


def _ceilings(offsets: Offsets, scores: Scores, known: Mask) -> Scores:
    """[Q], the highest guess that a list may have."""
    ceilings = np.zeros(len(offsets) - 1, dtype=np.float32)
    for number, (start, end) in enumerate(_lists(offsets)):
        read = np.sort(scores[start:end][known[start:end]])[::-1]
        if len(read):
            ceilings[number] = np.nextafter(read[min(READ_TOP, (len(read) + 1) // 2) - 1], np.float32(-np.inf))
    return ceilings


def _part_of_list(anchor: int) -> float:
    """Where the anchors lie: 1, then 1/2, 1/4, 3/4, 1/8, 5/8, 3/8, 7/8 and so on: the number's binary digits, mirrored at the point."""
    return int(f"{anchor:b}"[::-1], 2) / 2 ** anchor.bit_length() if anchor else 1.0


def _lists(offsets: Offsets) -> Iterator[tuple[int, int]]:
    """Start and end of each list."""
    return itertools.pairwise(offsets.tolist())
