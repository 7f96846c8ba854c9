"""How sure a teacher's lists are under a temperature, against sums that someone else could derive."""

import numpy as np
import pytest

from retriever.training.sureness import entropy_of_lists, temperature_advice, temperature_of
from retriever.training_settings import TrainingSettings


def whole(scores: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(scores, dtype=np.float32), np.ones((len(scores), len(scores[0])), dtype=bool)


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


@pytest.mark.parametrize(("temperature", "finding"), [(0.5, "nearly even"), (0.001, "of one document")])
def test_cosines_under_a_temperature_that_is_not_theirs_are_told_with_one_that_is(temperature: float, finding: str) -> None:
    scores, mask = whole([[0.8, 0.5, 0.45, 0.4, 0.2], [0.7, 0.6, 0.3, 0.3, 0.1]])
    advice = temperature_advice(scores, mask, TrainingSettings(losses={"kl_divergence": 1, "contrastive": 1}, teacher_temperature=temperature))
    assert advice is not None
    assert finding in advice
    assert f"teacher_temperature = {temperature:g}" in advice
    better = float(advice.rsplit("; ", 1)[1].split()[0])
    assert entropy_of_lists(scores, mask, better) == pytest.approx(0.3, abs=0.03)
    assert temperature_advice(scores, mask, TrainingSettings(losses={"kl_divergence": 1}, teacher_temperature=better)) is None


def test_losses_that_know_no_temperature_get_no_advice() -> None:
    scores, mask = whole([[0.8, 0.5, 0.45]])
    assert temperature_advice(scores, mask, TrainingSettings(losses={"margin_mse": 1}, teacher_temperature=100)) is None
    assert temperature_advice(scores[:0], mask[:0], TrainingSettings(losses={"kl_divergence": 1})) is None
