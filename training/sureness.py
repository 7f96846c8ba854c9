"""How sure a teacher is of its lists under a temperature: whether losses of distributions have anything to teach."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retriever.training_settings import TrainingSettings

OF_DISTRIBUTIONS = ("kl_divergence", "dynamic_contrastive")
"""The losses that `teacher_temperature` concerns."""
ALL_ALIKE, ONE_ALONE = 0.85, 0.01
"""Entropies beyond which a list says nearly nothing but that its documents are alike, or nearly nothing but which is the best."""
BETWEEN = 0.3
"""The entropy of the temperature that is advised."""


def entropy_of_lists(teacher: NDArray[np.float32], mask: NDArray[np.bool_], temperature: float = 1.0) -> float:
    """The mean over lists of the entropy of softmax(teacher / temperature), a share of what an even list has: 1 is all alike, 0 one document alone.

    Args:
        teacher: scores, [S, K].
        mask: [S, K], false where a list has fewer documents; lists of fewer than two are left out.
        temperature: divides the scores.

    Returns:
        NaN where no list has two documents.
    """
    whole = mask.sum(axis=1) > 1
    if not whole.any():
        return float("nan")
    scores, kept = teacher[whole].astype(np.float64), mask[whole]
    best = np.where(kept, scores, -np.inf).max(axis=1, keepdims=True)
    logits = np.where(kept, (scores - best) / temperature, -np.inf)
    total = np.log(np.exp(logits).sum(axis=1, keepdims=True))
    log_chances = logits - total
    entropies = -np.where(kept, np.exp(log_chances) * np.where(kept, log_chances, 0.0), 0.0).sum(axis=1)
    return float((entropies / np.log(kept.sum(axis=1))).mean())


def temperature_of(entropy: float, teacher: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """The temperature that gives lists a mean entropy, within a hundredth of itself; the nearest of those tried where ties forbid it.

    Args:
        entropy: wanted, between 0 and 1.
        teacher: scores, [S, K].
        mask: [S, K].
    """
    spread = float(np.ptp(teacher[mask])) or 1.0
    low, high = spread * 1e-6, spread * 1e3
    while high / low > 1.01:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if entropy_of_lists(teacher, mask, middle) > entropy else (middle, high)
    return float(np.sqrt(low * high))


def temperature_advice(teacher: NDArray[np.float32], mask: NDArray[np.bool_], settings: TrainingSettings) -> str | None:
    """One line where the temperature makes a teacher's lists nearly even or nearly of one document; None where it matters not, or is well.

    Args:
        teacher: scores of the samples, [S, K].
        mask: [S, K].
        settings: losses and temperature.
    """
    losses = [name for name in OF_DISTRIBUTIONS if settings.losses.get(name)]
    found = entropy_of_lists(teacher, mask, settings.teacher_temperature)
    if not losses or not (found > ALL_ALIKE or found < ONE_ALONE):
        return None
    finding = "nearly even, all documents alike" if found > ALL_ALIKE else "nearly all of one document, as contrastive has them without a teacher"
    better = temperature_of(BETWEEN, teacher, mask)
    return (
        f"under teacher_temperature = {settings.teacher_temperature:g} the teacher's lists are {finding} "
        f"(entropy {found:.2f} of the highest), and {' and '.join(losses)} can teach little more; {better:.2g} would give {BETWEEN:g}"
    )
