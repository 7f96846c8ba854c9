"""How sure a teacher's lists are under a temperature, against sums that someone else could derive."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from retriever.settings.training import TrainingSettings
from retriever.training.sureness import entropy_of_lists, scale_words, temperature_of, with_scales


def whole(scores: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(scores, dtype=np.float32), np.ones((len(scores), len(scores[0])), dtype=bool)


def lists(scores: np.ndarray, mask: np.ndarray) -> Any:
    """What is looked at of training samples."""
    return SimpleNamespace(teacher=scores, mask=mask)


def test_even_scores_have_the_highest_entropy_and_a_document_far_above_the_others_none() -> None:
    assert entropy_of_lists(*whole([[2, 2, 2, 2, 2]])) == pytest.approx(1)
    assert entropy_of_lists(*whole([[900, 0, 0, 0, 0]])) == pytest.approx(0)


def test_the_entropy_of_odds_of_three_to_one_is_the_bits_that_a_table_has() -> None:
    scores, mask = whole([[np.log(3), 0]])
    assert entropy_of_lists(scores, mask) == pytest.approx(0.8113, abs=1e-4)  # of a coin of 3 : 1, in bits
    assert entropy_of_lists(scores * 5, mask, 5) == pytest.approx(0.8113, abs=1e-4)
    assert entropy_of_lists(scores + 1000, mask) == pytest.approx(0.8113, abs=1e-3)


def test_what_the_mask_leaves_out_counts_nowhere_and_lists_of_one_are_no_lists() -> None:
    scores, mask = whole([[np.log(3), 0, 50], [7, 0, 0]])
    mask[0, 2] = mask[1, 1] = mask[1, 2] = False
    assert entropy_of_lists(scores, mask) == pytest.approx(0.8113, abs=1e-4)
    assert np.isnan(entropy_of_lists(scores[1:], mask[1:]))


def test_the_temperature_of_an_entropy_gives_it() -> None:
    scores, mask = np.random.default_rng(1).normal(size=(50, 6)).astype(np.float32), np.ones((50, 6), dtype=bool)
    for entropy in (0.1, 0.3, 0.9):
        assert entropy_of_lists(scores, mask, temperature_of(entropy, scores, mask)) == pytest.approx(entropy, abs=0.01)
    assert temperature_of(0.3, scores * 10, mask) == pytest.approx(10 * temperature_of(0.3, scores, mask), rel=0.02)


def test_ties_at_the_top_raise_what_is_wanted_and_lists_that_are_all_tied_do_not_count() -> None:
    scores, mask = whole([[1, 1, 0]] * 3)
    tied = np.log(2) / np.log(3)  # two documents share the chances, whatever the temperature
    found = temperature_of(0.3, scores, mask)
    assert entropy_of_lists(scores, mask, found) == pytest.approx(tied + 0.3 * (1 - tied), abs=0.01)
    assert 0.1 < found < 10
    with_ties, all_masks = whole([[1, 1, 0]] * 3 + [[0, 0, 0]] * 9)
    assert temperature_of(0.3, with_ties, all_masks) == found
    assert temperature_of(0.3, *whole([[5, 5, 5]])) == 1.0


@pytest.mark.parametrize(("temperature", "finding"), [(0.5, "nearly even"), (0.001, "of one document")])
def test_cosines_under_a_temperature_that_is_not_theirs_are_told_with_one_that_is(temperature: float, finding: str) -> None:
    scores, mask = whole([[0.8, 0.5, 0.45, 0.4, 0.2], [0.7, 0.6, 0.3, 0.3, 0.1]])
    advice = scale_words(TrainingSettings(losses={"kl_divergence": 1, "contrastive": 1}, teacher_temperature=temperature), lists(scores, mask))
    assert advice is not None
    assert finding in advice
    assert f"teacher_temperature = {temperature:g}" in advice
    better = float(advice.rsplit("; ", 1)[1].split()[0])
    assert entropy_of_lists(scores, mask, better) == pytest.approx(0.3, abs=0.03)
    assert scale_words(TrainingSettings(losses={"kl_divergence": 1}, teacher_temperature=better), lists(scores, mask)) is None


def test_losses_that_know_no_temperature_get_no_words() -> None:
    scores, mask = whole([[0.8, 0.5, 0.45]])
    for temperature in (100.0, "auto"):
        assert scale_words(TrainingSettings(losses={"ranknet": 1}, teacher_temperature=temperature), lists(scores, mask)) is None
    assert scale_words(TrainingSettings(losses={"kl_divergence": 1}, teacher_temperature=1.0), lists(scores[:0], mask[:0])) is None


@pytest.mark.parametrize("unit_size", [0.01, 1.0, 40.0])
def test_a_temperature_that_nobody_gave_is_found_whatever_the_size_of_the_unit(unit_size: float) -> None:
    scores, mask = np.random.default_rng(2).normal(size=(80, 5)).astype(np.float32) * unit_size, np.ones((80, 5), dtype=bool)
    asked = TrainingSettings(losses={"kl_divergence": 1})
    found = with_scales(asked, lists(scores, mask))
    assert entropy_of_lists(scores, mask, float(found.teacher_temperature)) == pytest.approx(0.3, abs=0.02)
    words = scale_words(asked, lists(scores, mask))
    assert words is not None
    assert f"teacher_temperature = {found.teacher_temperature:g}, found" in words


@pytest.mark.parametrize("unit_size", [0.01, 1.0, 40.0])
def test_margins_become_those_of_logits_that_are_as_sure(unit_size: float) -> None:
    scores, mask = np.random.default_rng(2).normal(size=(80, 5)).astype(np.float32) * unit_size, np.ones((80, 5), dtype=bool)
    asked = TrainingSettings(losses={"margin_mse": 1, "kl_divergence": 1})
    found = with_scales(asked, lists(scores, mask))
    assert entropy_of_lists(scores * np.float32(found.teacher_scale), mask) == pytest.approx(0.3, abs=0.02)
    words = scale_words(asked, lists(scores, mask))
    assert words is not None
    assert words.startswith(f"teacher_temperature = {found.teacher_temperature:g}, teacher_scale = {found.teacher_scale:g}, found")


def test_a_temperature_that_was_given_stays_and_one_that_no_loss_reads_is_not_looked_for() -> None:
    scores, mask = whole([[0.8, 0.5, 0.45]])
    given = TrainingSettings(losses={"kl_divergence": 1, "margin_mse": 1}, teacher_temperature=3.0, teacher_scale=2.0)
    assert with_scales(given, lists(scores, mask)) is given
    of_none = with_scales(TrainingSettings(losses={"contrastive": 1}), lists(scores, mask))
    assert (of_none.teacher_temperature, of_none.teacher_scale) == (1, 1)
