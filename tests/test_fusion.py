"""Fusion teachers: what they say of an image and a text, and how a small one is taught."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from retriever.errors import ConfigError, DataError
from retriever.images.reading import read_image
from retriever.models.fusion import FusionModel, FusionShape, ImageTower, TextTower, load_fusion_model
from retriever.models.names import find_model
from retriever.models.tensor_cache import TensorCache
from retriever.progress import Quiet
from retriever.settings.teacher import CrossFittedSettings, FusionSettings, FusionTeachingSettings
from retriever.steps.fusion import new_fusion_model, taught_fusion
from retriever.steps.step import Step, run_step
from retriever.teachers import fusion
from retriever.teachers._cross_fitted import CrossFittedTeacher
from retriever.teachers.fusion import FusionTeacher
from retriever.training import fusion as teaching
from retriever.training import fusion_held_out
from retriever.training.fusion import MatchedPairs, compare_loss, draw_negatives, matched_pairs, teach_fusion
from retriever.types import Document, Query
from tests.fusion_material import (
    COLOURS,
    Documents,
    asks,
    save_blip,
    save_bridgetower,
    save_efficientnet,
    save_flava,
    save_text_tower,
    save_vilt,
    save_vit,
    shows,
    write_noise,
    write_squares,
)

TEXTS = ("a red square", "the colour of a square painted in the colour blue", "green")
TEACHING = FusionTeachingSettings(
    epochs=50,
    batch_size=12,
    learning_rate=3e-3,
    tower_learning_rate=2e-3,
    max_length=12,
    width=32,
    layers=1,
    heads=2,
    dimensions=16,
    dropout=0.0,
)
SAVERS: dict[str, Callable[..., Path]] = {"blip": save_blip, "bridgetower": save_bridgetower, "flava": save_flava, "vilt": save_vilt}


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> the folder of a tiny model of it."""
    return {family: save(tmp_path_factory.mktemp("stock") / family) for family, save in SAVERS.items()}


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of three shapes."""
    return write_noise(tmp_path_factory.mktemp("noise"), [(40, 40), (70, 35), (33, 50)])


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Colour -> image."""
    return write_squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What fusion models are made of."""
    folder = tmp_path_factory.mktemp("towers")
    return {"vit": save_vit(folder / "vit"), "efficientnet": save_efficientnet(folder / "efficientnet"), "text": save_text_tower(folder)}


def captions_of(colour: str) -> list[str]:
    return [f"a {colour} square", f"painted in {colour}"]


@pytest.fixture(scope="module")
def lessons(squares: dict[str, Path]) -> MatchedPairs:
    """Each square with two captions."""
    images = list(squares.values())
    texts = [caption for colour in squares for caption in captions_of(colour)]
    return MatchedPairs.of([(images[place // 2], text) for place, text in enumerate(texts)])


@pytest.fixture(scope="module")
def make(towers: dict[str, Path]) -> Callable[..., FusionModel]:
    """A new fusion model, always the same."""

    def made(settings: FusionTeachingSettings = TEACHING, image: str = "vit") -> FusionModel:
        return new_fusion_model(find_model(str(towers[image])), find_model(str(towers["text"])), settings, 1, "teacher t")

    return made


@pytest.fixture(scope="module")
def taught(make: Callable[..., FusionModel], lessons: MatchedPairs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A taught model."""
    folder = tmp_path_factory.mktemp("taught")
    teach_fusion(make(), lessons, None, TEACHING, folder, 7)
    return folder / "model"


def load(folder: Path, **more: Any) -> FusionTeacher:
    return fusion.load(FusionSettings(model=str(folder), **more), SimpleNamespace())  # type: ignore[arg-type]


def all_pairs(images: list[Path]) -> list[tuple[Query, Document]]:
    return [(asks(text, number), shows(image)) for number, text in enumerate(TEXTS) for image in images]


# Stock models


def stock_score(family: str, folder: Path, image: Path, text: str) -> float:
    """What the stock model and its stock processor say of one pair, by themselves."""
    import transformers
    from transformers import AutoImageProcessor, AutoTokenizer

    names = {"blip": "BlipForImageTextRetrieval", "bridgetower": "BridgeTowerForImageAndTextRetrieval", "vilt": "ViltForImageAndTextRetrieval"}
    model = getattr(transformers, {**names, "flava": "FlavaForPreTraining"}[family]).from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    pixels = AutoImageProcessor.from_pretrained(folder)(images=read_image(image), return_tensors="pt")
    more = {"return_loss": False} if family == "flava" else {}
    with torch.no_grad():
        said = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], **pixels, **more)
    logits = (said.itm_score if family == "blip" else said.itm_logits if family == "flava" else said.logits)[0]
    return float(logits[0] if len(logits) == 1 else logits[1] - logits[0])


@pytest.mark.parametrize("family", SAVERS)
def test_a_pairs_score_is_what_the_stock_model_says_of_it_alone(family: str, stock: dict[str, Path], noise: list[Path]) -> None:
    pairs = all_pairs(noise)
    scores = load(stock[family], batch_size=4).score(pairs).scores
    assert np.ptp(scores) > 0.05
    for place in (0, 4, 8):
        query, document = pairs[place]
        assert document.image is not None
        assert scores[place] == pytest.approx(stock_score(family, stock[family], document.image, query.text), abs=1e-5)


@pytest.mark.parametrize("family", SAVERS)
def test_scores_do_not_depend_on_what_else_is_in_a_batch(family: str, stock: dict[str, Path], noise: list[Path]) -> None:
    pairs = all_pairs(noise)
    together = load(stock[family], batch_size=64).score(pairs)
    alone = load(stock[family], batch_size=1)
    np.testing.assert_allclose(together.scores, [alone.score([pair]).scores[0] for pair in pairs], atol=1e-5)
    np.testing.assert_allclose(together.scores[::-1], load(stock[family], batch_size=5).score(pairs[::-1]).scores, atol=1e-5)


def test_the_unit_is_the_heads(stock: dict[str, Path]) -> None:
    assert {family: load(folder).identity.unit for family, folder in stock.items()} == {
        "blip": "log_odds",
        "bridgetower": "log_odds",
        "flava": "log_odds",
        "vilt": "logit",
    }


def test_an_image_that_asks_for_captions_is_scored_as_a_caption_that_asks_for_it(stock: dict[str, Path], noise: list[Path]) -> None:
    teacher = load(stock["blip"])
    there = teacher.score([(asks(TEXTS[0]), shows(noise[1]))]).scores
    back = teacher.score([(Query("i", "", image=noise[1]), Document("c", TEXTS[0]))]).scores
    assert there == pytest.approx(back, abs=1e-6)


def test_each_image_is_read_once_also_in_later_shards(stock: dict[str, Path], noise: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counted(path: Path) -> Image.Image:
        read.append(path)
        return read_image(path)

    monkeypatch.setattr(fusion, "read_image", counted)
    teacher = load(stock["vilt"], batch_size=2)
    teacher.score(all_pairs(noise))
    teacher.score(all_pairs(noise[:2]))
    assert sorted(read) == sorted(noise)


def test_tokens_are_counted_and_a_text_that_is_cut_is_told(stock: dict[str, Path], noise: list[Path]) -> None:
    teacher = load(stock["blip"], max_length=6)
    scored = teacher.score([(asks("a red square"), shows(noise[0])), (asks("a square painted in red"), shows(noise[0]))])
    patches = 2 * 2 + 1  # of 32 pixels, 16 each, and [CLS]
    assert scored.n_tokens.tolist() == [patches + 5, patches + 6]
    assert scored.truncated.tolist() == [False, True]
    whole = load(stock["blip"]).score([(asks("a square painted"), shows(noise[0])), (asks("a square painted in"), shows(noise[0]))]).scores
    assert scored.scores[1] == pytest.approx(whole[1], abs=1e-5)  # [CLS], four words, [SEP]


def test_the_identity_changes_with_weights_length_and_precision(stock: dict[str, Path], tmp_path: Path) -> None:
    other = save_blip(tmp_path / "other", seed=2)
    found = {
        load(stock["blip"]).identity.fingerprint,
        load(other).identity.fingerprint,
        load(stock["blip"], max_length=6).identity.fingerprint,
        load(stock["blip"], precision="bf16").identity.fingerprint,
    }
    assert len(found) == 4
    assert load(stock["blip"], name="mine", batch_size=3).identity.fingerprint in found


def test_half_precision_is_near(stock: dict[str, Path], noise: list[Path]) -> None:
    pairs = all_pairs(noise)
    exact, half = (load(stock["blip"], precision=precision).score(pairs).scores for precision in ("fp32", "bf16"))
    assert half.dtype == np.float32
    assert 0 < np.abs(exact - half).max() < 0.2 * np.ptp(exact) + 0.2


# Bad input


@pytest.mark.parametrize(
    ("query", "document", "found"),
    [
        (Query("q", "a text"), Document("d", "another"), "a text and a text"),
        (Query("q", "", image=Path("a.png")), Document("d", "", image=Path("b.png")), "an image and an image"),
        (Query("q", "a text", image=Path("a.png")), Document("d", "t"), "an image with a text and a text"),
        (Query("q", ""), Document("d", "", image=Path("b.png")), "nothing and an image"),
    ],
)
def test_a_pair_that_is_not_an_image_and_a_text_is_refused(stock: dict[str, Path], query: Query, document: Document, found: str) -> None:
    message = f'teacher "fusion-blip": query q, document d: a fusion model reads one image and one text; found {found}. Set which documents'
    with pytest.raises(DataError) as refusal:
        load(stock["blip"]).score([(query, document)])
    assert str(refusal.value).startswith(message)


def test_an_image_that_cannot_be_read_is_named(stock: dict[str, Path], noise: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(noise[0].read_bytes()[:100])
    with pytest.raises(DataError, match=r"broken\.png"):
        load(stock["blip"]).score([(asks("red"), shows(broken))])


def test_an_unknown_family_is_one_line_that_names_the_known_ones(towers: dict[str, Path]) -> None:
    known = r'vit is of the family "vit", which no adapter reads; known are blip, bridgetower, flava, vilt and what a table "train"'
    with pytest.raises(ConfigError, match=known):
        load(towers["vit"])


def test_a_model_without_a_matching_head_is_refused(stock: dict[str, Path], tmp_path: Path) -> None:
    for path in stock["blip"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: tensor for name, tensor in weights.items() if not name.startswith("itm_head")}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"was never taught to match \(itm_head\.\w+ is not among its weights\)"):
        load(tmp_path)


def test_a_model_without_a_processor_of_images_is_refused(stock: dict[str, Path], tmp_path: Path) -> None:
    for path in stock["blip"].iterdir():
        if path.name != "preprocessor_config.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match="is no whole BlipForImageTextRetrieval"):
        load(tmp_path)


def test_a_length_above_the_models_is_refused(stock: dict[str, Path], taught: Path) -> None:
    with pytest.raises(ConfigError, match="max_length: 25 tokens, but the model reads 24 at most"):
        load(stock["vilt"], max_length=25)
    with pytest.raises(ConfigError, match="max_length: 13 tokens, but the model was taught on 12"):
        load(taught, max_length=13)


@pytest.mark.parametrize("model", [None, "student"])
def test_a_teacher_without_a_model_is_refused(model: str | None) -> None:
    with pytest.raises(ConfigError, match="a fusion teacher needs a model, or image_model and text_model with a table train"):
        fusion.load(FusionSettings(model=model), SimpleNamespace())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {}, "image_model": "v"}, "needs text_model"),
        ({"train": {}, "text_model": "t"}, "needs image_model"),
        ({"train": {}, "image_model": "v", "text_model": "t", "model": "m"}, "either a model, or image_model and text_model"),
        ({"image_model": "v", "text_model": "t"}, "must be taught first: add train = {}"),
        ({"train": {"width": 30, "heads": 4}, "image_model": "v", "text_model": "t"}, "width is 30, it must be a multiple of heads, 4"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FusionSettings.model_validate(values)


# A taught one


def test_a_taught_model_ranks_squares_for_captions_and_captions_for_squares(taught: Path, squares: dict[str, Path]) -> None:
    teacher, colours = load(taught), list(COLOURS)
    captions = [captions_of(colour)[number % 2] for number, colour in enumerate(colours)]
    for_text = teacher.score([(asks(text), shows(squares[colour])) for text in captions for colour in colours]).scores.reshape(len(colours), -1)
    for_image = teacher.score([(Query(colour, "", image=squares[colour]), Document("c", text)) for colour in colours for text in captions])
    assert for_text.argmax(axis=1).tolist() == list(range(len(colours)))
    assert for_image.scores.reshape(len(colours), -1).argmax(axis=1).tolist() == list(range(len(colours)))
    assert (np.diag(for_text) > 0).all()  # matching is likelier than not
    assert ((for_text < 0).sum(axis=1) == len(colours) - 1).all()
    assert teacher.identity.unit == "log_odds"


def test_a_taught_models_scores_do_not_depend_on_the_batch(taught: Path, squares: dict[str, Path]) -> None:
    pairs = all_pairs(list(squares.values()))
    together = load(taught, batch_size=64).score(pairs)
    alone = load(taught, batch_size=1)
    np.testing.assert_allclose(together.scores, [alone.score([pair]).scores[0] for pair in pairs], atol=1e-5)
    assert set(together.n_tokens[: len(squares)].tolist()) == {4 + 1 + 5}  # four patches and [CLS], three words between two marks


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_taught_model_in_half_precision_is_near(taught: Path, squares: dict[str, Path], precision: str) -> None:
    pairs = all_pairs(list(squares.values()))
    exact, half = (load(taught, precision=each).score(pairs).scores for each in ("fp32", precision))
    assert half.dtype == np.float32
    assert 0 < np.abs(exact - half).max() < 0.2 * np.ptp(exact)


def test_a_taught_models_towers_are_stock_folders(taught: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    assert {path.name for path in taught.iterdir()} == {"config.json", "model.safetensors", "image", "text"}
    assert AutoModel.from_pretrained(taught / "image").config.model_type == "vit"
    assert SentenceTransformer(str(taught / "text"), device="cpu").encode(["a red square"]).shape == (1, 32)


def test_teaching_again_gives_the_same_weights_and_another_seed_others(make: Callable[..., FusionModel], lessons: MatchedPairs, tmp_path: Path) -> None:
    short = TEACHING.model_copy(update={"epochs": 2, "dropout": 0.2})
    for name, seed in (("one", 7), ("same", 7), ("other", 8)):
        teach_fusion(make(short), lessons, None, short, tmp_path / name, seed)
    one, same, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "same", "other"))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_a_stopped_teaching_goes_on_and_ends_with_the_same_model(
    make: Callable[..., FusionModel], lessons: MatchedPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = TEACHING.model_copy(update={"epochs": 3, "batch_size": 8, "dropout": 0.2})
    held = reversed_pairs(lessons)
    whole = teach_fusion(make(short), lessons, held, short, tmp_path / "whole", 7)
    told: list[tuple[int, int]] = []

    def stop_at_5(step: int, steps: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(teaching, "SAVE_STEPS", 2)
    with pytest.raises(KeyboardInterrupt):
        teach_fusion(make(short), lessons, held, short, tmp_path / "stopped", 7, stop_at_5)
    assert (tmp_path / "stopped" / "checkpoint.pt").exists()
    curve = teach_fusion(make(short), lessons, held, short, tmp_path / "stopped", 7, lambda step, steps: told.append((step, steps)))
    assert told == [(step, 9) for step in range(5, 10)]
    assert {path.name for path in (tmp_path / "stopped").iterdir()} == {"model"}
    assert curve == whole
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert load_fusion_model(tmp_path / "stopped" / "model", "t").similarity == load_fusion_model(tmp_path / "whole" / "model", "t").similarity


def reversed_pairs(lessons: MatchedPairs) -> MatchedPairs:
    """Half of the lessons, in another order; as if they were held out."""
    return MatchedPairs.of([(lessons.images[image], lessons.texts[text]) for image, text in lessons.pairs[:2:-1].tolist()])


def test_the_epoch_that_orders_held_out_pairs_best_is_kept(
    make: Callable[..., FusionModel], lessons: MatchedPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four epochs whose held-out ranks are told beforehand, the second is what a teaching stopped there would have; training itself is not disturbed."""
    found = iter(np.eye(11)[[0, 7, 3, 5]] * np.array([[0.5], [0.9], [0.4], [0.9]]))
    seen: list[dict[str, torch.Tensor]] = []

    def ranks(model: FusionModel, *arguments: Any) -> Any:
        assert not model.training
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(found)

    monkeypatch.setattr(teaching, "reciprocal_ranks", ranks)
    four = TEACHING.model_copy(update={"epochs": 4, "dropout": 0.2, "frozen_text": True})
    curve = teach_fusion(make(four), lessons, reversed_pairs(lessons), four, tmp_path / "held", 7)
    assert [(point["reciprocal_rank"], point["similarity"]) for point in curve] == [(0.5, 0.0), (0.9, 0.7), (0.4, 0.3), (0.9, 0.5)]
    kept = load_fusion_model(tmp_path / "held" / "model", "t")
    assert kept.similarity == 0.7
    assert all(torch.equal(value, kept.state_dict()[name]) for name, value in seen[1].items())
    teach_fusion(make(four), lessons, None, four, tmp_path / "last", 7)
    last = load_fusion_model(tmp_path / "last" / "model", "t")
    assert last.similarity == 0.0
    assert all(torch.equal(value, last.state_dict()[name]) for name, value in seen[3].items())


@pytest.mark.parametrize("image", ["vit", "efficientnet"])
def test_a_frozen_tower_stays_as_it_is_and_sees_each_image_once(
    make: Callable[..., FusionModel], lessons: MatchedPairs, tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = TEACHING.model_copy(update={"epochs": 2, "frozen_image": True, "frozen_text": True})
    model = make(frozen, image)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    read: list[Path] = []
    monkeypatch.setattr(teaching, "read_image", lambda path: read.append(path) or read_image(path))
    teach_fusion(model, lessons, lessons, frozen, tmp_path, 7)
    after = model.state_dict()
    towers = [name for name in after if name.split(".")[0] in ("image_tower", "text_tower")]
    assert towers
    assert all(torch.equal(before[name], after[name]) for name in towers)
    assert not torch.equal(before["head.weight"], after["head.weight"])
    assert sorted(read) == sorted([*lessons.images, *lessons.images])  # once to teach and once as what is held out, in both epochs together


def test_towers_that_are_not_frozen_learn(make: Callable[..., FusionModel], lessons: MatchedPairs, tmp_path: Path) -> None:
    model = make(TEACHING, "efficientnet")
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    teach_fusion(model, lessons, None, TEACHING.model_copy(update={"epochs": 1}), tmp_path, 7)
    moved = {name.split(".")[0] for name, tensor in model.named_parameters() if not torch.equal(before[name], tensor)}
    assert {"image_tower", "text_tower", "head", "fusion", "log_scale"} <= moved


def test_a_loss_that_is_not_finite_is_told_with_the_way_out(make: Callable[..., FusionModel], lessons: MatchedPairs, tmp_path: Path) -> None:
    model = make()
    model.head.bias.data.fill_(math.nan)
    with pytest.raises(DataError, match=r"teach: the losses are .*nan.* at step 0\. Lower learning_rate, which is 0.003"):
        teach_fusion(model, lessons, None, TEACHING, tmp_path, 7)


def test_an_image_size_that_a_tower_cannot_read_is_refused(towers: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"teacher t: image_model: .*vit gives no tokens of an image of 40 pixels \("):
        ImageTower.open(towers["vit"], 40, "teacher t")
    tower = ImageTower.open(towers["efficientnet"], 32, "teacher t")
    assert tower.pixels([Image.new("RGB", (90, 20))]).shape == (1, 3, 32, 32)
    assert tower.tokens == 4 * ImageTower.open(towers["efficientnet"], None, "teacher t").tokens


def test_a_text_tower_that_is_none_or_too_short_is_refused(towers: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"max_length: 25 tokens, but .*encoder reads 24 at most"):
        TextTower.open(towers["text"], 25, "teacher t")


@pytest.mark.parametrize(("file", "found"), [("config.json", "KeyError"), ("model.safetensors", "does not hold this model's weights")])
def test_a_damaged_folder_is_refused(taught: Path, tmp_path: Path, file: str, found: str) -> None:
    for path in taught.rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(taught)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path.relative_to(taught)).write_bytes(path.read_bytes())
    if file == "config.json":
        (tmp_path / file).write_text(json.dumps({"model_type": "retriever_fusion", "width": 32}))
    else:
        weights = load_file(tmp_path / file)
        weights.pop("head.weight")
        save_file(weights, tmp_path / file)
    with pytest.raises(ConfigError, match=found):
        load_fusion_model(tmp_path, "teacher t")


# What is taught


def test_pairs_of_a_held_out_query_are_taught_from_neither_side(squares: dict[str, Path]) -> None:
    captions = {f"{colour}#{n}": text for colour in ("red", "green", "blue") for n, text in enumerate(captions_of(colour))}
    documents = Documents([*(shows(squares[colour]) for colour in ("red", "green", "blue")), *(Document(name, text) for name, text in captions.items())])
    queries = {name: Query(name, text) for name, text in captions.items()}
    queries |= {colour: Query(colour, "", image=squares[colour]) for colour in ("red", "green", "blue")}
    qrels = {name: {f"{name.split('#')[0]}.png": 1} for name in captions}
    qrels |= {colour: {f"{colour}#{n}": 1 for n in (0, 1)} for colour in ("red", "green", "blue")}
    lessons = [name for name in queries if name != "red#1"]
    found, held = matched_pairs(queries, lessons, ["red#1"], qrels, documents)  # type: ignore[arg-type]
    assert held is None  # one pair has nothing to be told from
    _, held = matched_pairs(queries, lessons, ["red#1", "red"], qrels, documents)  # type: ignore[arg-type]
    assert held is not None
    assert {(held.images[image].stem, held.texts[text]) for image, text in held.pairs.tolist()} == {("red", text) for text in captions_of("red")}
    named = {(found.images[image].stem, found.texts[text]) for image, text in found.pairs.tolist()}
    assert named == {(colour, text) for colour in ("green", "blue") for text in captions_of(colour)}
    both = found.together(np.array([0, 1]), np.arange(len(found.texts)))
    assert both.sum(dim=1).tolist() == [2, 2]
    without, held = matched_pairs(queries, lessons, [], qrels, documents, unseen=["red#1", "green#0"])  # type: ignore[arg-type]
    assert held is None
    assert {without.images[image].stem for image, _ in without.pairs.tolist()} == {"blue"}  # whose pairs are of no unseen query
    with pytest.raises(DataError, match="teach: 0 pairs of an image and a text in the train qrels"):
        matched_pairs(queries, [], ["red#1"], qrels, documents)  # type: ignore[arg-type]


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_comparing_loss_is_that_of_slow_loops(n: int, m: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    cosines = generator.uniform(-1, 1, (n, m))
    together = generator.random((n, m)) < 0.4
    together[:, 0], together[0, :] = True, True
    scale = 7.0
    total = 0.0
    for matrix, belongs in ((cosines, together), (cosines.T, together.T)):
        rows = []
        for scores, marks in zip(matrix, belongs, strict=True):
            exponents = [math.exp(scale * score) for score in scores]
            rows.append(-sum(math.log(e / sum(exponents)) for e, mark in zip(exponents, marks, strict=True) if mark) / marks.sum())
        total += sum(rows) / len(rows) / 2
    found = compare_loss(torch.tensor(cosines), torch.tensor(together), torch.tensor(scale))
    assert found.item() == pytest.approx(total, rel=1e-6)


def test_negatives_are_drawn_as_often_as_the_softmax_says_and_never_belong() -> None:
    logits = torch.tensor([[9.0, 1.0, 0.0, -40.0]])
    together = torch.tensor([[True, False, False, False]])
    generator = torch.Generator().manual_seed(3)
    rows, drawn = draw_negatives(logits.expand(4000, 4), together.expand(4000, 4), generator)
    assert rows.tolist() == list(range(4000))
    counts = torch.bincount(drawn, minlength=4)
    assert counts[0] == 0
    assert counts[1].item() / 4000 == pytest.approx(math.e / (math.e + 1), abs=0.03)
    assert counts[3] < 5


@pytest.mark.parametrize("candidates", [3, 16])
def test_reciprocal_ranks_are_those_of_a_slow_loop(
    make: Callable[..., FusionModel], squares: dict[str, Path], lessons: MatchedPairs, candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion_held_out, "CANDIDATES", candidates)
    monkeypatch.setattr(fusion_held_out, "TOGETHER", 5)
    model = make().eval()
    with torch.inference_mode():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(3))  # what it says has nothing to do with the cosine
        images = model.of_images(model.image_tower(model.image_tower.pixels([read_image(path) for path in squares.values()])))
        states, mask = model.text_tower(lessons.texts, torch.device("cpu"))
        texts = model.of_texts(states)
        together = lessons.together(np.arange(len(images)), np.arange(len(texts)))
        found = fusion_held_out.reciprocal_ranks(model, images, texts, mask, together)
        for place, share in enumerate(fusion_held_out.SHARES):
            model.similarity = share
            every = torch.stack([model.scores(image.expand(len(texts), -1, -1), texts, mask) for image in images])
            cosines = model.image_vectors(images) @ model.text_vectors(texts, mask).T
            ranks = []
            for scores, asked, fits in [*zip(every, cosines, together, strict=True), *zip(every.T, cosines.T, together.T, strict=True)]:
                shown = sorted(range(len(asked)), key=lambda one: -float(asked[one]))[:candidates]
                ordered = sorted(shown, key=lambda one: -float(scores[one]))
                ranks.append(next((1 / (rank + 1) for rank, one in enumerate(ordered) if fits[one]), 0.0))
            assert found[place] == pytest.approx(np.mean(ranks), abs=1e-6)
    assert len(set(found.tolist())) > 2


def test_a_score_has_the_share_of_the_cosine_that_its_file_says(taught: Path, squares: dict[str, Path], tmp_path: Path) -> None:
    pairs = all_pairs(list(squares.values())[:3])
    scores = []
    for share in (0.0, 0.25, 1.0):
        model = load_fusion_model(taught, "t")
        model.similarity = share
        model.save(tmp_path / str(share))
        teacher = load(tmp_path / str(share))
        scores.append(teacher.score(pairs).scores)
    np.testing.assert_allclose(scores[1], 0.75 * scores[0] + 0.25 * scores[2], rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        image = model.image_vectors(model.of_images(model.image_tower(model.image_tower.pixels([read_image(squares["red"])]))))
        states, mask = model.text_tower([TEXTS[0]], torch.device("cpu"))
        assert scores[2][0] == pytest.approx(float(model.scale * (image * model.text_vectors(model.of_texts(states), mask)).sum()), rel=1e-4)


def test_a_row_to_which_everything_belongs_gets_no_negative() -> None:
    together = torch.tensor([[True, True], [True, False]])
    rows, drawn = draw_negatives(torch.zeros(2, 2), together, torch.Generator().manual_seed(1))
    assert (rows.tolist(), drawn.tolist()) == ([1], [1])
    rows, drawn = draw_negatives(torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool), torch.Generator().manual_seed(1))
    assert (len(rows), len(drawn)) == (0, 0)


def test_a_tensor_is_made_once_and_what_was_asked_for_longest_ago_goes_first() -> None:
    made: list[str] = []

    def make_them(names: Any) -> Iterator[torch.Tensor]:
        made.extend(names)
        return [torch.zeros(10) for _ in names]  # type: ignore[return-value]

    cache = TensorCache(3 * 40)
    get = partial(cache.get, make=make_them, together=2)
    assert list(get(["a", "b", "a", "c"])) == ["a", "b", "c"]
    get(["a"])
    get(["d"])  # b goes
    assert made == ["a", "b", "c", "d"]
    get(["a", "c", "d"])
    assert made == ["a", "b", "c", "d"]
    assert set(get(["a", "b", "c", "d", "e"])) == set("abcde")  # more than there is room for
    assert made[4:] == ["b", "e"]


# The step


def pipeline_of(squares: dict[str, Path], folder: Path, steps: list[bool]) -> Any:
    """What the step asks of an experiment; it notes whether a step was done or unchanged."""
    queries = {text: Query(text, text, fields={"direction": "text_to_image"}) for colour in squares for text in captions_of(colour)}

    def step(name: str, inputs: Any, settings: Any, work: Any) -> Any:
        done = run_step(Step(name, inputs, settings, 1), folder, work)
        steps.append(done.done_now)
        return done

    return SimpleNamespace(
        experiment=SimpleNamespace(seed=1, training=SimpleNamespace(validation_documents="any")),
        judgements="judged",
        held_out=(list(queries)[2:], list(queries)[:2]),
        queries=lambda split, reads: queries,
        conversations=lambda split: queries,
        qrels=lambda split: {text: {f"{colour}.png": 1} for colour in squares for text in captions_of(colour)},
        collection=Documents([shows(path) for path in squares.values()]),
        reporter=Quiet(),
        step=step,
    )


def test_the_step_teaches_once_and_names_the_model(towers: dict[str, Path], squares: dict[str, Path], tmp_path: Path) -> None:
    steps: list[bool] = []
    pipeline = pipeline_of(squares, tmp_path, steps)
    asked = FusionSettings(name="small", image_model=str(towers["vit"]), text_model=str(towers["text"]), train=TEACHING.model_copy(update={"epochs": 1}))
    ready = taught_fusion(pipeline, asked, asked.train)  # type: ignore[arg-type]
    assert (ready.label, ready.train, ready.image_model) == ("small", None, None)
    assert Path(str(ready.model)) == tmp_path / "teach-small" / "model"
    manifest = json.loads((tmp_path / "teach-small" / "manifest.json").read_text())
    assert manifest["result"] == {"pairs": 22, "images": 11, "texts": 22}
    assert [point["epoch"] for point in json.loads((tmp_path / "teach-small" / "curve.json").read_text())] == [1]
    assert fusion.load(ready, pipeline).identity.name == "small"
    assert taught_fusion(pipeline, asked, asked.train) == ready  # type: ignore[arg-type]
    assert steps == [True, False]
    for changed in (asked.model_copy(update={"reads": "rewrite"}), asked):  # what it reads decides what it learns
        taught_fusion(pipeline, changed, changed.train)  # type: ignore[arg-type]
    pipeline.collection.fingerprint = "other images"
    taught_fusion(pipeline, asked, asked.train)  # type: ignore[arg-type]
    assert steps == [True, False, True, True, True]


def test_models_in_folds_have_not_seen_the_images_that_they_score(towers: dict[str, Path], squares: dict[str, Path], tmp_path: Path) -> None:
    pipeline = pipeline_of(squares, tmp_path, [])
    teaching = TEACHING.model_copy(update={"epochs": 1, "folds": 2})
    asked = FusionSettings(name="small", image_model=str(towers["vit"]), text_model=str(towers["text"]), train=teaching, weight=2.0)
    ready = taught_fusion(pipeline, asked, teaching)
    assert isinstance(ready, CrossFittedSettings)
    assert (ready.label, ready.weight, set(ready.fold_of)) == ("small", 2.0, set(pipeline.held_out[0]))
    colours = [{colour for colour in squares for text in captions_of(colour) if ready.fold_of.get(text) == number} for number in (0, 1)]
    assert not colours[0] & colours[1]  # the captions of an image stay together
    taught = [json.loads((tmp_path / "teach-small" / f"fold-{number}" / "curve.json").read_text()) for number in (1, 2)]
    assert [[point["epoch"] for point in curve] for curve in taught] == [[1], [1]]
    teacher = CrossFittedTeacher("small", [fusion.load(part, pipeline) for part in ready.parts], ready.fold_of)
    assert (teacher.identity.kind, teacher.parts[0].identity.model != teacher.parts[1].identity.model) == ("fusion", True)
    image = shows(next(iter(squares.values())))
    asked_pairs = [(Query(text, text), image) for text in pipeline.held_out[0]]
    own = [part.score(asked_pairs).scores for part in teacher.parts]
    assert np.allclose(
        teacher.score(asked_pairs).scores, [own[ready.fold_of[query.query_id]][place] for place, (query, _) in enumerate(asked_pairs)], atol=1e-5
    )


def test_the_shape_survives_its_file(taught: Path) -> None:
    assert load_fusion_model(taught, "t").shape == FusionShape(width=32, layers=1, heads=2, dimensions=16, dropout=0.0, max_length=12)
