"""Which loss takes which unit, and what a refusal says."""

from typing import get_args

import pytest

from retriever.errors import ConfigError
from retriever.scores.units import ACCEPTED, WITH_TEMPERATURE, accepts, check_unit
from retriever.settings.training import LOSSES, TrainingSettings
from retriever.training.adapter import DistillationLoss
from retriever.types import Unit
from tests.training_material import samples_of, untrained


def test_the_table_speaks_of_every_loss_and_of_known_units() -> None:
    assert set(ACCEPTED) == set(LOSSES)
    assert set().union(*ACCEPTED.values(), *WITH_TEMPERATURE.values()) == set(get_args(Unit))


@pytest.mark.parametrize(
    ("loss", "unit", "temperature", "accepted"),
    [
        ("margin_mse", "logit", 1.0, True),
        ("margin_mse", "z_score", 1.0, True),
        ("margin_mse", "rank", 1.0, False),
        ("margin_mse", "rank", 5.0, False),
        ("margin_mse", "log_probability", 1.0, False),
        ("margin_mse", "probability", 1.0, False),
        ("margin_mse_all_pairs", "reciprocal_rank", 1.0, False),
        ("kl_divergence", "log_probability", 1.0, True),
        ("kl_divergence", "log_odds", 1.0, True),
        ("kl_divergence", "rank", 1.0, False),
        ("kl_divergence", "rank", 5.0, True),
        ("kl_divergence", "min_max", 1.0, False),
        ("kl_divergence", "min_max", 0.1, True),
        ("kl_divergence", "probability", 0.1, True),
        ("contrastive", "rank", 1.0, True),
        ("pointwise_mse", "logit", 1.0, True),
        ("pointwise_mse", "log_likelihood", 1.0, False),
        ("pointwise_mse", "rank", 1.0, False),
        ("standardised_kl", "min_max", 1.0, True),
        ("standardised_kl", "rank", 1.0, True),
        ("lambda_loss", "probability", 1.0, True),
        ("vector_cosine", "rank", 1.0, True),
        ("kl_divergence", "furlong", 5.0, False),
    ],
)
def test_a_loss_takes_a_unit_or_does_not(loss: str, unit: str, temperature: float, accepted: bool) -> None:
    assert accepts(loss, unit, temperature) == accepted


def test_a_refusal_says_where_what_was_found_what_is_needed_and_the_way_out() -> None:
    with pytest.raises(ConfigError) as caught:
        check_unit("rank", ["contrastive", "margin_mse"], 1.0, 'target "llm"')
    assert str(caught.value) == (
        'target "llm": scores are in unit "rank", but loss margin_mse needs "logit", "log_odds", "log_likelihood", "cosine", "dot", "maxsim", "bm25", '
        '"z_score", "standardised" or "min_max". Set normalise = "z_score" for this teacher, or use loss = "kl_divergence"'
    )
    with pytest.raises(ConfigError, match=r'kl_divergence needs .*Set training.teacher_temperature for this unit, or normalise = "z_score" for this teacher'):
        check_unit("rank", ["kl_divergence"], 1.0, "here")


@pytest.mark.parametrize("loss", LOSSES)
def test_every_refusal_names_a_way_out(loss: str) -> None:
    for unit in sorted(set(get_args(Unit)) - ACCEPTED[loss]):
        with pytest.raises(ConfigError, match=rf'here: scores are in unit "{unit}", but loss {loss} needs .*\. Set '):
            check_unit(unit, [loss], 1.0, "here")


def test_a_loss_on_samples_in_a_wrong_unit_is_refused_before_the_first_batch() -> None:
    model, samples = untrained("dot"), samples_of([[1, 2]], unit="rank")
    with pytest.raises(ConfigError, match='training: the target: scores are in unit "rank", but loss margin_mse needs'):
        DistillationLoss(model, samples, TrainingSettings(losses={"margin_mse": 1.0}))
    DistillationLoss(model, samples, TrainingSettings(losses={"margin_mse": 0.0, "contrastive": 1.0}))
    DistillationLoss(model, samples, TrainingSettings(losses={"kl_divergence": 1.0}, teacher_temperature=5.0))
