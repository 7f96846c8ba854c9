"""Which loss learns from which unit of a teacher's scores: one table, and the refusal that names the way out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import get_args

from retriever.errors import ConfigError
from retriever.types import Unit

ORDERS: frozenset[Unit] = frozenset({"rank", "reciprocal_rank"})
"""Units that say which document stands above which, and not by how much."""

BOUNDED: frozenset[Unit] = frozenset({"probability", "min_max"})
"""Units that end at 1: a softmax of them is nearly flat."""

LIST_PROBABILITIES: frozenset[Unit] = frozenset({"log_probability"})
"""Units that say how a list shares 1 out: a softmax gives the shares back, a difference has no scale of its own."""

DISTANCES: frozenset[Unit] = frozenset(get_args(Unit)) - ORDERS - LIST_PROBABILITIES - {"probability"}
"""Units whose differences mean something on both ends of the scale."""

EVERY: frozenset[Unit] = frozenset(get_args(Unit))

ACCEPTED: Mapping[str, frozenset[Unit]] = {
    "margin_mse": DISTANCES,
    "margin_mse_all_pairs": DISTANCES,
    "pointwise_mse": DISTANCES - {"log_likelihood"},  # its level is that of the query, which no student needs to know
    "kl_divergence": (DISTANCES | LIST_PROBABILITIES) - BOUNDED,
    "dynamic_contrastive": (DISTANCES | LIST_PROBABILITIES) - BOUNDED,
    "standardised_kl": EVERY,  # it makes a scale of its own
    **dict.fromkeys(("ranknet", "lambda_loss", "list_mle", "partial_ranking", "adr_mse"), EVERY),  # they read the order alone
    **dict.fromkeys(("contrastive", "contrastive_four_ways"), EVERY),  # they do not look at the teacher
    **dict.fromkeys(("in_batch_similarity", "vector_mse", "vector_distance", "vector_cosine", "gram", "order_hinge"), EVERY),  # they read its vectors
    "reinforced": EVERY,  # it reads the vectors of a reinforced dataset
}
"""Loss -> the units it takes as they are."""

WITH_TEMPERATURE: Mapping[str, frozenset[Unit]] = dict.fromkeys(("kl_divergence", "dynamic_contrastive"), ORDERS | BOUNDED)
"""Loss -> the units it takes once a temperature other than 1, which is that of logits, says how sharp they are meant, or one is found for them."""

_SET_A_TEMPERATURE = 'Set training.teacher_temperature for this unit, or normalise = "z_score" for this teacher'
_WAYS_OUT: Mapping[str, str] = {
    "margin_mse": 'Set normalise = "z_score" for this teacher, or use loss = "kl_divergence"',
    "margin_mse_all_pairs": 'Set normalise = "z_score" for this teacher, or use loss = "kl_divergence"',
    "pointwise_mse": 'Set normalise = "z_score" for this teacher, or use loss = "standardised_kl"',
    **dict.fromkeys(("kl_divergence", "dynamic_contrastive"), _SET_A_TEMPERATURE),
}


def accepts(loss: str, unit: str, temperature: float | str = 1.0) -> bool:
    """Whether a loss learns from scores in this unit, with `temperature` dividing them where the loss has one."""
    return unit in ACCEPTED[loss] or (unit in WITH_TEMPERATURE.get(loss, ()) and temperature != 1.0)


def check_unit(unit: str, losses: Iterable[str], temperature: float | str, where: str) -> None:
    """Sees to it that every loss learns from scores in this unit.

    Args:
        unit: of the teacher's scores.
        losses: the names of those in use.
        temperature: training.teacher_temperature, which may be "auto".
        where: begins the message, for example `target "llm"`.

    Raises:
        ConfigError: one does not; the message names the units it takes and the way out.
    """
    for loss in losses:
        if not accepts(loss, unit, temperature):
            raise ConfigError(f'{where}: scores are in unit "{unit}", but loss {loss} needs {_listed(ACCEPTED[loss])}. {_WAYS_OUT[loss]}')


def _listed(units: Iterable[str]) -> str:
    *others, last = (f'"{unit}"' for unit in get_args(Unit) if unit in frozenset(units))
    return f"{', '.join(others)} or {last}"
