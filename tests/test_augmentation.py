"""Augmentations: parameters that are drawn, kept and applied; by hand, and whatever is drawn."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from retriever.errors import DataError
from retriever.images.augmentation import Augmentation, apply, draw, drawn_for, pixels_fingerprint
from retriever.settings.reinforce import OPERATIONS, AugmentationSettings, ReinforceSettings

NUMBER = {name: number for number, name in enumerate(OPERATIONS)}


def noise(width: int, height: int, seed: int = 1) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image).astype(np.int64)


def changed(image: Image.Image, name: str, magnitude: float) -> NDArray[np.int64]:
    """A square image after one operation."""
    whole = (0, 0, image.height, image.width)
    return pixels(apply(image, Augmentation(whole, image.width, ((NUMBER[name], magnitude),))))


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(0, 2**32 - 1),
    st.builds(
        AugmentationSettings,
        image_size=st.integers(1, 24),
        crop_scale=st.tuples(st.floats(0.01, 0.5), st.floats(0.5, 1.0)),
        flip=st.booleans(),
        operations=st.lists(st.sampled_from(OPERATIONS)).map(tuple),
        operations_per_image=st.integers(0, 3),
        strength=st.floats(0, 1),
    ),
)
@settings(max_examples=60, deadline=None)
def test_parameters_fit_the_image_and_give_the_same_pixels_after_a_way_through_json(width: int, height: int, seed: int, drawn: AugmentationSettings) -> None:
    augmentation = draw(np.random.default_rng(seed), drawn, (width, height))
    top, left, h, w = augmentation.crop
    assert top >= 0
    assert left >= 0
    assert h >= 1
    assert w >= 1
    assert top + h <= height
    assert left + w <= width
    image = noise(width, height, seed)
    before = image.tobytes()
    once = apply(image, augmentation)
    assert (once.size, once.mode) == ((drawn.image_size, drawn.image_size), "RGB")
    again = Augmentation.from_json(json.loads(json.dumps(augmentation.to_json())), drawn.image_size, "here")
    assert again == augmentation
    assert apply(image, again).tobytes() == once.tobytes()
    assert image.tobytes() == before
    assert draw(np.random.default_rng(seed), drawn, (width, height)) == augmentation


def test_the_whole_image_in_its_own_size_and_nothing_else_stays_as_it_is() -> None:
    image = noise(9, 9)
    nothing = [*((NUMBER[name], 0.0) for name in OPERATIONS[:10]), None, (NUMBER["Posterize"], 8), (NUMBER["Solarize"], 256)]
    assert apply(image, Augmentation((0, 0, 9, 9), 9)).tobytes() == image.tobytes()
    for one in nothing:
        assert apply(image, Augmentation((0, 0, 9, 9), 9, (one,))).tobytes() == image.tobytes(), one


def test_a_crop_in_its_own_size_is_a_part_of_the_image_and_a_mirrored_one_runs_backwards() -> None:
    image = noise(12, 10)
    part = pixels(image)[2:7, 4:9]
    assert (pixels(apply(image, Augmentation((2, 4, 5, 5), 5))) == part).all()
    assert (pixels(apply(image, Augmentation((2, 4, 5, 5), 5, flipped=True))) == part[:, ::-1]).all()


def test_operations_do_what_their_names_say() -> None:
    image = noise(8, 8)
    own = pixels(image)
    assert np.abs(changed(image, "Brightness", 0.5) - np.minimum(own * 1.5, 255)).max() <= 1
    assert (changed(image, "Brightness", -1.0) == 0).all()
    grey = np.asarray(image.convert("L")).astype(np.int64)
    assert (changed(image, "Color", -1.0) == grey[:, :, None]).all()
    assert (changed(image, "Contrast", -1.0) == int(grey.mean() + 0.5)).all()
    assert (changed(image, "TranslateX", 2)[:, 2:] == own[:, :-2]).all()
    assert (changed(image, "TranslateX", 2)[:, :2] == 0).all()
    assert (changed(image, "TranslateY", -3)[:-3] == own[3:]).all()
    assert (changed(image, "Rotate", 90.0) == np.rot90(own)).all()
    assert (changed(image, "Solarize", 128) == np.where(own < 128, own, 255 - own)).all()
    assert (changed(image, "Posterize", 4) == own // 16 * 16).all()
    sheared = changed(image, "ShearX", 1.0)
    for y in range(8):
        assert (sheared[y, : 7 - y] == own[y, y + 1 :]).all()  # x comes from x + y + 1: two halves for the middle of a pixel
    spread = changed(Image.fromarray((own // 4 + 60).astype(np.uint8)), "AutoContrast", 0)
    assert (spread.min(), spread.max()) == (0, 255)


def test_operations_follow_each_other_in_their_order() -> None:
    image = noise(6, 6)
    brighter, inverted = (NUMBER["Brightness"], 1.0), (NUMBER["Solarize"], 0.0)
    both = pixels(apply(image, Augmentation((0, 0, 6, 6), 6, (brighter, inverted))))
    assert (both == 255 - np.minimum(2 * pixels(image), 255)).all()


def test_shares_of_the_area_are_spread_over_their_range_and_magnitudes_over_the_strength() -> None:
    wanted = AugmentationSettings(
        image_size=16, crop_scale=(0.25, 0.5), crop_ratio=(1.0, 1.0), operations=("Brightness",), operations_per_image=1, strength=0.5
    )
    drawn = [draw(np.random.default_rng(seed), wanted, (400, 400)) for seed in range(400)]
    shares = np.array([one.crop[2] * one.crop[3] / 160_000 for one in drawn])
    assert shares.min() > 0.248
    assert shares.max() < 0.502
    assert shares.mean() == pytest.approx(0.375, abs=0.01)
    magnitudes = np.array([one.operations[0][1] for one in drawn if one.operations[0]])
    assert np.abs(magnitudes).max() <= 0.45
    assert magnitudes.mean() == pytest.approx(0, abs=0.05)
    assert magnitudes.std() == pytest.approx(0.45 / 3**0.5, abs=0.03)


def test_an_image_far_too_long_for_the_ratio_is_cut_in_its_middle() -> None:
    crop = draw(np.random.default_rng(1), AugmentationSettings(crop_scale=(1.0, 1.0)), (1000, 10)).crop
    assert crop == (0, 493, 10, 13)


def test_an_image_has_its_own_draws_whatever_others_there_are() -> None:
    wanted = AugmentationSettings()
    first, again = (drawn_for("0001.png", 7, wanted, (64, 48), 3) for _ in range(2))
    assert first == again
    assert len(set(first)) == 3
    assert drawn_for("0002.png", 7, wanted, (64, 48), 3) != first
    assert drawn_for("0001.png", 8, wanted, (64, 48), 3) != first
    assert list(drawn_for("0001.png", 7, wanted, (64, 48), 5))[:3] == list(first)


def test_parameters_are_kept_as_published_sets_have_them() -> None:
    written = Augmentation((3, 4, 50, 60), 256, ((6, 0.25), None, (1, -0.1))).to_json()
    assert written == [[3, 4, 50, 60], [[6, 0.25], None, [1, -0.1]]]
    assert Augmentation((0, 0, 5, 5), 8, ((0, 0.0),), flipped=True).to_json() == [[0, 0, 5, 5], True, [[0, 0.0]]]
    assert Augmentation.from_json([[1, 2, 3, 4], None], 256, "x") == Augmentation((1, 2, 3, 4), 256)
    assert Augmentation.from_json([[1, 2, 3, 4]], 256, "x") == Augmentation((1, 2, 3, 4), 256)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        [[1, 2, 3]],
        [[1, 2, 3, 4.0]],
        [[-1, 2, 3, 4]],
        [[1, 2, 0, 4]],
        [[1, 2, 3, 4], [[14, 1.0]]],
        [[1, 2, 3, 4], [[6]]],
        [[1, 2, 3, 4], [["Color", 1]]],
        [[1, 2, 3, 4], [[6, float("nan")]]],
        [[1, 2, 3, 4], 5],
        [[1, 2, 3, 4], [], []],
        [[True, 0, 3, 4]],
    ],
)
def test_what_is_no_augmentation_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"^shard/uid: .* is no augmentation; it must be \[\[top, left, height, width\]"):
        Augmentation.from_json(value, 8, "shard/uid")


def test_parameters_of_another_image_are_refused() -> None:
    with pytest.raises(DataError, match=r"cuts 60 x 50 pixels out at \(4, 3\), the image has 32 x 32"):
        apply(noise(32, 32), Augmentation((3, 4, 50, 60), 16))


def test_a_fingerprint_tells_pixels_and_sizes_apart() -> None:
    image = noise(4, 6)
    other = Image.frombytes("RGB", (6, 4), image.tobytes())
    assert pixels_fingerprint(image) == pixels_fingerprint(image.copy())
    assert pixels_fingerprint(image) != pixels_fingerprint(other)
    image.putpixel((0, 0), (1, 2, 3))
    assert pixels_fingerprint(image) != pixels_fingerprint(noise(4, 6))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"crop_scale": [0.5, 0.2]}, r"is no range"),
        ({"crop_scale": [0.5, 1.5]}, r"more than the whole image"),
        ({"crop_ratio": [0.0, 1.0]}, r"is no range"),
        ({"operations": ["Colour"]}, r'unknown operation "Colour", did you mean "Color"\?'),
    ],
)
def test_settings_that_mean_nothing_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ReinforceSettings.model_validate(values)


def test_the_size_is_that_of_the_file_or_of_the_student() -> None:
    assert ReinforceSettings().augmentation(None).image_size == 224
    assert ReinforceSettings().augmentation(96).image_size == 96
    assert ReinforceSettings(image_size=64).augmentation(96).image_size == 64
