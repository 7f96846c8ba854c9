"""How sure a teacher is of its lists under a temperature, and the temperature under which losses of distributions have something to teach."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retriever.settings.training import TrainingSettings
from retriever.training.samples import TrainingSamples

OF_DISTRIBUTIONS = ("kl_divergence", "dynamic_contrastive")
"""The losses that `teacher_temperature` concerns."""
OF_DISTANCES = ("margin_mse", "margin_mse_all_pairs", "pointwise_mse")
"""Those that `teacher_scale` concerns."""
ALL_ALIKE, ONE_ALONE = 0.85, 0.01
"""Entropies beyond which a list says nearly nothing but that its documents are alike, or nearly nothing but which is the best."""
BETWEEN = 0.3
"""The entropy under `teacher_temperature = "auto"`, and of the temperature that is advised."""


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
    """The temperature that gives lists a mean entropy, within a hundredth of itself.

    Documents that tie at the top of a list have an entropy that no temperature takes away: what is wanted is then that share of what there is
    above it. Lists whose documents are all tied say nothing and are left out; where all are, it is 1.

    Args:
        entropy: wanted, between 0 and 1.
        teacher: scores, [S, K].
        mask: [S, K].
    """
    told = np.where(mask, teacher, -np.inf).max(axis=1) > np.where(mask, teacher, np.inf).min(axis=1)
    if not told.any():
        return 1.0
    teacher, mask = teacher[told], mask[told]
    spread = float(np.ptp(teacher[mask]))
    low, high = spread * 1e-6, spread * 1e3
    tied = entropy_of_lists(teacher, mask, low)
    wanted = tied + entropy * (1 - tied)
    while high / low > 1.01:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if entropy_of_lists(teacher, mask, middle) > wanted else (middle, high)
    return float(np.sqrt(low * high))


def with_scales(settings: TrainingSettings, samples: TrainingSamples) -> TrainingSettings:
    """The settings with numbers, of two digits, in the place of "auto".

    `teacher_temperature` becomes the temperature that gives the teacher's lists the entropy `BETWEEN`, `teacher_scale` its inverse: with either,
    scores become logits that are about as sure. Units differ a hundredfold, cosines of a list by a tenth and logits by ten, so that no number
    suits all teachers; and against a student's cosines, which `student_scale` makes logits, margins of a teacher's bare cosines ask for none.

    Args:
        settings: losses, temperature and scale.
        samples: whose lists they are.
    """
    wanted = _wanted(settings)
    temperature = temperature_of(BETWEEN, samples.teacher, samples.mask) if wanted else 1.0
    found = {"teacher_temperature": temperature, "teacher_scale": 1 / temperature}
    numbers = {name: _two_digits(found[name]) if name in wanted else 1.0 for name in found if getattr(settings, name) == "auto"}
    return settings.model_copy(update=numbers) if numbers else settings


def scale_words(settings: TrainingSettings, samples: TrainingSamples) -> str | None:
    """One line on what was found, or on a temperature that makes lists nearly even or nearly of one document; None where nothing is to be said.

    Args:
        settings: losses, temperature and scale.
        samples: whose lists they are.
    """
    if wanted := _wanted(settings):
        found = with_scales(settings, samples)
        return f"{', '.join(f'{name} = {getattr(found, name):g}' for name in wanted)}, found from how sure the teacher is of its lists"
    losses = [name for name in OF_DISTRIBUTIONS if settings.losses.get(name)]
    if not losses or settings.teacher_temperature == "auto":
        return None
    entropy = entropy_of_lists(samples.teacher, samples.mask, settings.teacher_temperature)
    if not (entropy > ALL_ALIKE or entropy < ONE_ALONE):
        return None
    finding = "nearly even, all documents alike" if entropy > ALL_ALIKE else "nearly all of one document, as contrastive has them without a teacher"
    better = temperature_of(BETWEEN, samples.teacher, samples.mask)
    return (
        f"under teacher_temperature = {settings.teacher_temperature:g} the teacher's lists are {finding} "
        f"(entropy {entropy:.2f} of the highest), and {' and '.join(losses)} can teach little more; {better:.2g} would give {BETWEEN:g}"
    )


def _wanted(settings: TrainingSettings) -> list[str]:
    """Which numbers are to be found, and read by a loss."""
    concerned = {"teacher_temperature": OF_DISTRIBUTIONS, "teacher_scale": OF_DISTANCES}
    return [name for name, losses in concerned.items() if getattr(settings, name) == "auto" and any(settings.losses.get(loss) for loss in losses)]


def _two_digits(number: float) -> float:
    return float(f"{number:.2g}")
