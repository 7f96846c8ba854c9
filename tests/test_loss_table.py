"""The table that training calls losses by: complete, and true to the functions and to the settings."""

import inspect

import pytest
import torch

from retriever.settings.training import LOSSES, TrainingSettings
from retriever.training.loss_table import LOSS_TABLE, Loss

SETTINGS = TrainingSettings(teacher_temperature=1.0, teacher_scale=1.0)  # their defaults are found from the lists that a loss is given

of_every_loss = pytest.mark.parametrize("loss", LOSS_TABLE.values(), ids=LOSS_TABLE.keys())


def test_every_loss_that_an_experiment_can_name_is_in_it() -> None:
    assert list(LOSS_TABLE) == list(dict.fromkeys(LOSS_TABLE))
    assert set(LOSS_TABLE) == set(LOSSES)


@of_every_loss
def test_every_parameter_has_a_setting_with_the_same_default(loss: Loss) -> None:
    names = list(inspect.signature(loss.function).parameters.values())
    assert [parameter.name for parameter in names[:3]] == ["student", "teacher", "mask"]
    assert loss.arguments(SETTINGS) == {parameter.name: parameter.default for parameter in names[3:]}


@of_every_loss
def test_every_loss_is_called_alike(loss: Loss) -> None:
    mask = torch.ones(3, dtype=torch.bool) if loss.needs == "vectors" else torch.ones(3, 4, dtype=torch.bool)
    student, teacher = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    value = loss.function(student, teacher, mask, **loss.arguments(SETTINGS))
    assert value.shape == ()
    assert value.item() > 0


def test_settings_reach_the_loss() -> None:
    settings = TrainingSettings(teacher_scale=3.0, partial_ranking_top=2, partial_ranking_margin=1.5)
    assert LOSS_TABLE["margin_mse"].arguments(settings) == {"teacher_scale": 3.0}
    expected = {"top": 2, "lowest_score": None, "margin": 1.5, "above_positive": "keep", "per": "choice", "in_batch": True}
    assert LOSS_TABLE["partial_ranking"].arguments(settings) == expected
