"""The image-text student: towers, a common space, a stock folder; and its training, one direction a batch."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import BertTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from retriever.collection import Collection
from retriever.errors import ConfigError, DataError
from retriever.images.reading import read_image
from retriever.models.modalities import frozen_modules
from retriever.runs import Run
from retriever.scores.store import TeacherScores
from retriever.settings.student import ImageTextSettings
from retriever.settings.teacher import EmbeddingSettings
from retriever.settings.training import TrainingSettings
from retriever.steps.encoders import load_encoder
from retriever.steps.train import best_validation
from retriever.students.dense import load_folder as load_dense
from retriever.students.image_text import ImageTextStudent, load, load_folder
from retriever.training.adapter import DistillationLoss
from retriever.training.batches import Batcher
from retriever.training.samples import TrainingSamples, direction, in_batches, make_samples
from retriever.training.scale import LearnedScale
from retriever.training.towers import FrozenTowers
from retriever.training.trainer import train_student
from retriever.training.watcher import Supervision, TrainingProgress
from retriever.types import Document, Query
from tests.image_text_material import COLOURS, open_squares, save_efficientnet, save_vit, student_of
from tests.training_material import Stopped, weights

Curve = list[dict[str, float]]
TOWERS = ("efficientnet", "vit")


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny vision models."""
    folder = tmp_path_factory.mktemp("towers")
    return {"efficientnet": save_efficientnet(folder / "efficientnet"), "vit": save_vit(folder / "vit")}


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return open_squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(scope="module")
def clip_folder(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of one layer a tower, with random weights and the scale 1 / 0.07."""
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    tokenizer = BertTokenizer.from_pretrained(encoder_folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 8}
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 32, "eos_token_id": tokenizer.sep_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8}, projection_dim=8))
    model.save_pretrained(folder)
    square = {"height": 16, "width": 16}
    tokenizer.model_max_length = 32
    CLIPProcessor(CLIPImageProcessorPil(size=square, crop_size=square), tokenizer).save_pretrained(folder)
    return folder


def pictures(collection: Collection, count: int = 3) -> list[Document]:
    return [document for document in collection.documents() if document.image][:count]


# What it encodes and saves


@pytest.mark.parametrize("tower", TOWERS)
def test_stock_sentence_transformers_opens_it_and_ranks_the_same(
    towers: dict[str, Path], encoder_folder: Path, squares: Collection, tmp_path: Path, tower: str
) -> None:
    student = student_of(towers[tower], encoder_folder)
    student.save(tmp_path / "student")
    stock = SentenceTransformer(str(tmp_path / "student"), device="cpu", local_files_only=True)
    texts, images = ["red", "an owl at night", "a square in blue"], pictures(squares, 5)
    ours = student.encode_queries([Query(text, text) for text in texts]) @ student.encode_documents(images).T
    theirs = stock.similarity(stock.encode(texts), stock.encode([read_image(Path(str(image.image))) for image in images])).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.argsort(-ours, axis=1).tolist() == np.argsort(-theirs, axis=1).tolist()
    assert load_folder(tmp_path / "student").identity == student.identity


def test_images_and_texts_come_back_in_their_order_whatever_the_batch_size(towers: dict[str, Path], encoder_folder: Path, squares: Collection) -> None:
    student = student_of(towers["efficientnet"], encoder_folder)
    mixed = [document for image in pictures(squares, 6) for document in (image, Document("t", f"a text beside {image.doc_id}"))]
    alone = np.concatenate([student.encode_documents([document]) for document in mixed])
    np.testing.assert_allclose(student.encode_documents(mixed), alone, atol=1e-5)
    asked = [Query(document.doc_id, document.text, image=document.image) for document in mixed]
    np.testing.assert_allclose(student.encode_queries(asked), alone, atol=1e-5)
    assert student.encode_documents([]).shape == (0, 12)


def test_a_text_that_is_the_path_of_an_image_is_a_text(towers: dict[str, Path], encoder_folder: Path, squares: Collection, clip_folder: Path) -> None:
    path = str(pictures(squares)[0].image)
    for student in (student_of(towers["vit"], encoder_folder), load(ImageTextSettings(model=str(clip_folder)))):
        texts = [Document("1", path), Document("2", "data:image/png;base64,"), Document("3", "an owl")]
        image = student.encode_documents(pictures(squares)[:1])
        assert np.abs(student.encode_documents(texts)[:1] - image).max() > 1e-3
        np.testing.assert_allclose(student.encode_documents(texts)[2:], student.encode_documents([Document("3", "an owl")]), atol=1e-6)


def test_projections_start_the_same_every_time(towers: dict[str, Path], encoder_folder: Path) -> None:
    torch.manual_seed(3)
    first = student_of(towers["vit"], encoder_folder)
    torch.manual_seed(4)
    assert student_of(towers["vit"], encoder_folder).identity == first.identity


def test_the_size_of_images_is_that_of_the_settings_and_decides_the_identity(towers: dict[str, Path], encoder_folder: Path) -> None:
    small, large = (student_of(towers["efficientnet"], encoder_folder, image_size=size) for size in (16, 24))
    assert small.model.preprocess([Image.new("RGB", (50, 9))])["pixel_values"].shape == (1, 3, 16, 16)
    assert large.model.preprocess([Image.new("RGB", (50, 9))])["pixel_values"].shape == (1, 3, 24, 24)
    assert small.identity != large.identity


def test_max_length_cuts_texts_alone(towers: dict[str, Path], encoder_folder: Path, squares: Collection) -> None:
    student, cut = student_of(towers["vit"], encoder_folder), student_of(towers["vit"], encoder_folder, max_length=7)  # with [CLS] and [SEP]
    long, short = [Document("d", "owl " * 50)], [Document("d", "owl " * 5)]
    np.testing.assert_allclose(cut.encode_documents(long), student.encode_documents(short), atol=1e-6)
    np.testing.assert_allclose(cut.encode_documents(pictures(squares)), student.encode_documents(pictures(squares)), atol=1e-6)


def test_a_frozen_text_tower_without_dimensions_keeps_the_vectors_of_texts(towers: dict[str, Path], encoder_folder: Path) -> None:
    texts = [Document("1", "an owl at night"), Document("2", "cuts wood")]
    kept = student_of(towers["vit"], encoder_folder, frozen_text=True, dimensions=None)
    assert kept.dimensions == 32
    np.testing.assert_allclose(kept.encode_documents(texts), load_dense(encoder_folder).encode_documents(texts), atol=1e-6)
    assert student_of(towers["vit"], encoder_folder, frozen_text=True).dimensions == 12


def test_towers_that_do_not_learn_are_known_again_in_the_saved_folder(towers: dict[str, Path], encoder_folder: Path, tmp_path: Path) -> None:
    student = student_of(towers["efficientnet"], encoder_folder, frozen_image=True)
    assert learning(student) == {"image": ["linear.weight"], "text": ["the tower", "linear.weight"]}
    student.logit_scale = 31.5
    student.save(tmp_path / "student")
    again = load_folder(tmp_path / "student")
    assert learning(again) == learning(student)
    assert again.logit_scale == 31.5
    assert load(ImageTextSettings(model=str(tmp_path / "student"))).logit_scale == 31.5  # as a teacher, or a start, too
    assert len(frozen_modules(again.model, "image")) == 2
    assert load(ImageTextSettings(model=str(tmp_path / "student"), frozen_text=True)).dimensions == 12


def learning(student: ImageTextStudent) -> dict[str, list[str]]:
    """What of each tower takes gradients."""
    names = [name for name, weight in student.model.named_parameters() if weight.requires_grad]
    found = {kind: [name for name in names if f".{kind}." in name] for kind in ("image", "text")}
    towers = {kind: any(".linear." not in name for name in of) for kind, of in found.items()}
    return {kind: ["the tower"] * towers[kind] + ["linear.weight"] * any(".linear." in name for name in of) for kind, of in found.items()}


def test_a_clip_checkpoint_is_a_student_and_a_teacher_with_its_own_scale(clip_folder: Path, squares: Collection, tmp_path: Path) -> None:
    student = load(ImageTextSettings(model=str(clip_folder), frozen_image=True))
    teacher = load_encoder(EmbeddingSettings(family="image_text", model=str(clip_folder)))
    assert (student.dimensions, teacher.unit) == (8, "cosine")
    assert teacher.logit_scale == pytest.approx(1 / 0.07, rel=1e-3)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    image = read_image(Path(str(pictures(squares)[0].image)))
    with torch.no_grad():
        expected = model.get_image_features(**CLIPImageProcessorPil.from_pretrained(clip_folder)(image, return_tensors="pt")).pooler_output
    found = teacher.encode_documents(pictures(squares)[:1])
    np.testing.assert_allclose(found, torch.nn.functional.normalize(expected, dim=1), atol=1e-5)
    frozen = {name.split(".")[2] for name, weight in student.model.named_parameters() if not weight.requires_grad}
    assert frozen == {"vision_model"}
    student.save(tmp_path / "student")
    assert load_folder(tmp_path / "student").identity == teacher.identity


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "is made of image_model and text_model, or is a model; given: none of them"),
        ({"image_model": "a"}, "given: image_model"),
        ({"model": "a", "image_model": "b", "text_model": "c"}, "given: model and image_model and text_model"),
        ({"model": "a", "image_size": 64}, "image_size is that of the model"),
        ({"model": "a", "frozen_documents": True}, "set frozen_text or frozen_image"),
    ],
)
def test_settings_that_make_no_student_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageTextSettings.model_validate(settings)


def test_models_of_the_wrong_kind_are_refused_by_name(towers: dict[str, Path], encoder_folder: Path, clip_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^student\.model: .* reads text, and an image_text student reads image and text\. Give a CLIP-like checkpoint"):
        load(ImageTextSettings(model=str(encoder_folder)))
    with pytest.raises(ConfigError, match=r"^student\.image_model: .* is no model of images alone\. Give it as student\.model"):
        student_of(clip_folder, encoder_folder)
    with pytest.raises(ConfigError, match=r"^student\.image_model: .* does not say how images are read"):
        student_of(encoder_folder, encoder_folder)
    with pytest.raises(ConfigError, match=r"^student\.text_model: .* reads images already: give it as student\.model$"):
        student_of(towers["vit"], clip_folder)
    with pytest.raises(ConfigError, match=r"^student\.image_model: the model does not read its own images .* Leave student\.image_size out$"):
        student_of(towers["vit"], encoder_folder, image_size=40)  # its places are learned for 16 pixels
    with pytest.raises(ConfigError, match=r"^student\.max_length: 129 tokens, but the model reads 128 at most"):
        student_of(towers["vit"], encoder_folder, max_length=129)


def test_damaged_words_on_the_towers_are_one_clear_line(towers: dict[str, Path], encoder_folder: Path, tmp_path: Path) -> None:
    student_of(towers["vit"], encoder_folder, frozen_image=True).save(tmp_path)
    (tmp_path / "towers.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"towers\.json: does not say which towers learn"):
        load_folder(tmp_path)


def test_a_damaged_image_is_named(towers: dict[str, Path], encoder_folder: Path, squares: Collection, tmp_path: Path) -> None:
    whole = Path(str(pictures(squares)[0].image)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:40])
    with pytest.raises(DataError, match=r"cut\.png: "):
        student_of(towers["vit"], encoder_folder).encode_documents([Document("d", "", image=tmp_path / "cut.png")])


# One direction a batch


@examples(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=30),
    epochs=st.integers(1, 4),
    size=st.integers(1, 7),
    seed=st.integers(0, 1000),
)
def test_every_batch_has_one_direction_and_every_epoch_every_lesson(kinds: list[str], epochs: int, size: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(len(kinds)) for _ in range(epochs)]
    found = in_batches(orders, kinds, size, np.random.default_rng(seed)).tolist()
    for start in range(0, len(found), size):
        assert len({kinds[lesson] for lesson in found[start : start + size]}) == 1
    counts = np.bincount(found, minlength=len(kinds))
    assert counts.min() >= epochs
    assert counts.sum() - epochs * len(kinds) <= (size - 1) * (len(set(kinds)) - 1)  # what fills the last batches
    assert in_batches(orders, kinds, size, np.random.default_rng(seed)).tolist() == found


def test_what_an_epoch_leaves_out_fills_no_last_batch() -> None:
    orders, kinds = [np.array([0, 2, 4]), np.array([4, 1, 2])], ["a", "a", "a", "a", "b"]  # lesson 3 has no quality
    for seed in range(30):
        assert 3 not in in_batches(orders, kinds, 3, np.random.default_rng(seed)).tolist()


def test_queries_of_one_direction_come_as_they_always_did() -> None:
    orders = [np.array([2, 0, 1]), np.array([1, 2, 0])]
    generator = np.random.default_rng(1)
    assert in_batches(orders, ["a", "a", "a"], 2, generator).tolist() == [2, 0, 1, 1, 2, 0]
    assert generator.random() == np.random.default_rng(1).random()  # nothing was drawn


def test_a_direction_is_the_kind_of_query_and_what_it_may_find() -> None:
    text, other, same = Query("1", "red", among={"kind": "image"}), Query("2", "red", among={"kind": "caption"}), Query("3", "blue", among={"kind": "image"})
    assert direction(text) == direction(same) != direction(other)
    assert direction(text) != direction(Query("4", "", image=Path("a.png"), among={"kind": "image"}))


def lessons_of(collection: Collection, settings: TrainingSettings) -> TrainingSamples:
    """Lists of the squares: all documents that a query may find, on which the teacher has no opinion."""
    queries, qrels = collection.queries("train"), collection.qrels("train")
    kinds = {document.doc_id: document.fields["kind"] for document in collection.documents()}
    scores = {name: {doc_id: 0.0 for doc_id, kind in kinds.items() if kind == query.among["kind"]} for name, query in queries.items()}
    target = TeacherScores(Run.from_dict("no opinion", scores), "logit", "0" * 16, "no opinion")
    return make_samples(target, queries, qrels, collection, settings, np.random.default_rng(1))


def success(student: ImageTextStudent, collection: Collection) -> dict[str, float]:
    """Success@1 of each direction."""
    documents, qrels, found = list(collection.documents()), collection.qrels("train"), {}
    vectors = student.encode_documents(documents)
    for kind in ("image", "caption"):
        places = np.array([place for place, document in enumerate(documents) if document.fields["kind"] == kind])
        queries = [query for query in collection.queries("train").values() if query.among["kind"] == kind]
        best = places[(student.encode_queries(queries) @ vectors[places].T).argmax(axis=1)]
        hits = [documents[place].doc_id in qrels[query.query_id] for query, place in zip(queries, best.tolist(), strict=True)]
        found[kind] = float(np.mean(hits))
    return found


SETTINGS: dict[str, Any] = {"documents_per_query": 2, "batch_size": 12, "losses": {"contrastive": 1.0}, "checkpoint_steps": 2, "precision": "fp32"}


def test_features_are_those_of_images_or_of_texts_and_documents_come_once(towers: dict[str, Path], encoder_folder: Path, squares: Collection) -> None:
    student, samples = student_of(towers["vit"], encoder_folder), lessons_of(squares, TrainingSettings(**SETTINGS))
    batcher = Batcher(student.model, samples, squares, images_together=5)
    seen = set()
    for start in range(0, len(samples), 12):
        batch = batcher([{"label": number} for number in range(start, min(start + 12, len(samples)))])
        asks_with_images = "query_pixel_values" in batch
        assert asks_with_images != ("query_input_ids" in batch)
        groups = [name for name in batch if name.endswith("pixel_values" if not asks_with_images else "input_ids") and name.startswith("document_")]
        rows = batch["label"]["rows"].tolist()
        assert sum(len(batch[name]) for name in groups) == len(rows) == len(set(rows))
        assert {document.image is None for document in squares.documents_by_row(rows)} == {asks_with_images}
        if not asks_with_images:
            assert max(len(batch[name]) for name in groups) <= 5
            first = squares.documents_by_row(rows[:1])[0]
            pixels = student.model.preprocess([read_image(Path(str(first.image)))])["pixel_values"]
            assert torch.equal(batch[groups[0]][:1], pixels)
        seen.add(asks_with_images)
    assert seen == {True, False}


def test_a_batch_of_both_kinds_of_query_is_refused(towers: dict[str, Path], encoder_folder: Path, squares: Collection) -> None:
    samples = lessons_of(squares, TrainingSettings(**SETTINGS))
    kinds = [query.image is not None for query in samples.queries]
    with pytest.raises(DataError, match="a batch holds queries that are images and queries that are texts"):
        Batcher(student_of(towers["vit"], encoder_folder).model, samples, squares)([{"label": kinds.index(True)}, {"label": kinds.index(False)}])


# Training


def train(
    student: ImageTextStudent, squares: Collection, folder: Path, progress: Callable[[TrainingProgress], None] | None = None, first: int = 0, **settings: Any
) -> Curve:
    """The curve; the last model counts as the best one, for validation counts up from `first`."""
    training, steps = TrainingSettings.model_validate({**SETTINGS, **settings}), itertools.count(first)
    supervision = Supervision(lambda: {"validation": float(next(steps))}, progress)
    return train_student(student.model, lessons_of(squares, training), squares, training, folder, 1, supervision)


def last_scale(curve: Curve) -> float:
    return [point["scale"] for point in curve if "scale" in point][-1]


def test_a_dozen_coloured_squares_are_told_apart_in_both_directions(towers: dict[str, Path], encoder_folder: Path, squares: Collection, tmp_path: Path) -> None:
    student = student_of(towers["efficientnet"], encoder_folder)
    before, rates = success(student, squares), {"learning_rate": 3e-3, "projection_learning_rate": 1e-2}
    training = TrainingSettings.model_validate({**SETTINGS, **rates, "epochs": 12, "learn_scale": True, "checkpoint_steps": 50})
    validate = lambda: {"validation": min(success(student, squares).values())}  # noqa: E731
    curve = train_student(student.model, lessons_of(squares, training), squares, training, tmp_path, 1, Supervision(validate))
    assert max(before.values()) < 0.5
    assert success(student, squares) == {"image": 1, "caption": 1}
    best = best_validation(curve)
    assert best["value"] == 1
    assert curve[0]["scale"] == pytest.approx(20)  # the start
    assert abs(best["scale"] - 20) > 0.1
    assert len(COLOURS) == 12


def test_a_tower_that_does_not_learn_stays_bit_by_bit_and_is_run_once_for_each_image(
    towers: dict[str, Path], encoder_folder: Path, squares: Collection, tmp_path: Path
) -> None:
    student = student_of(towers["efficientnet"], encoder_folder, frozen_image=True)
    before, ran = weights(student.model), count_images(student)
    train(student, squares, tmp_path, epochs=2, learning_rate=1e-2)
    changed = {name for name, weight in student.model.state_dict().items() if not torch.equal(weight, before[name])}
    assert not [name for name in changed if ".image.0." in name]  # its norms' statistics among them
    assert {"0.sub_modules.image.2.linear.weight", "0.sub_modules.text.2.linear.weight"} <= changed
    assert sum(ran) == 12
    assert student.model.training is False
    assert "forward" not in vars(student.model[0].sub_modules["image"][0])


def count_images(student: ImageTextStudent) -> list[int]:
    """Grows by the images of each pass through the image tower."""
    ran: list[int] = []
    reader = student.model[0].sub_modules["image"][0]
    reader.register_forward_pre_hook(lambda module, args: ran.append(len(args[0].get("pixel_values", ()))))
    return ran


@pytest.mark.parametrize("frozen", [{"frozen_image": True}, {"frozen_text": True}, {"frozen_text": True, "dimensions": None}])
def test_stored_vectors_of_a_tower_give_the_loss_and_the_gradients_of_the_tower(
    towers: dict[str, Path], encoder_folder: Path, squares: Collection, frozen: dict[str, Any]
) -> None:
    student = student_of(towers["vit"], encoder_folder, **frozen)
    samples = lessons_of(squares, TrainingSettings(**SETTINGS))
    plain = slopes_of(student, Batcher(student.model, samples, squares), samples)
    standing = FrozenTowers(student.model)
    with standing.attached():
        stood = slopes_of(student, Batcher(student.model, samples, squares, towers=standing), samples)
    assert plain.keys() == stood.keys()
    for name in plain:
        torch.testing.assert_close(stood[name], plain[name], rtol=1e-4, atol=1e-6)


def slopes_of(student: ImageTextStudent, batcher: Batcher, samples: TrainingSamples, **settings: Any) -> dict[str, torch.Tensor]:
    """The loss of the first batch, and the gradients of all weights and of a scale, without dropout."""
    training = TrainingSettings.model_validate({**SETTINGS, **settings})
    scale = LearnedScale(10.0)
    loss = DistillationLoss(student.model.eval(), samples, training, scale=scale)
    student.model.zero_grad()
    batch = batcher([{"label": number} for number in range(12)])
    prefixes = ["query_", *sorted({"_".join(name.split("_")[:2]) + "_" for name in batch if name.startswith("document_")})]
    features = [{name[len(prefix) :]: value for name, value in batch.items() if name.startswith(prefix)} for prefix in prefixes]
    value = sum(loss(features, batch["label"]).values())
    value.backward()
    found = {name: weight.grad.clone() for name, weight in student.model.named_parameters() if weight.grad is not None}
    assert scale.logarithm.grad is not None
    return {**found, "scale": scale.logarithm.grad.clone(), "loss": value.detach()}


def test_cached_gradients_are_the_plain_ones_those_of_the_scale_too(towers: dict[str, Path], encoder_folder: Path, squares: Collection) -> None:
    student = student_of(towers["vit"], encoder_folder, frozen_text=True, dimensions=None)
    samples = lessons_of(squares, TrainingSettings(**SETTINGS))
    plain = slopes_of(student, Batcher(student.model, samples, squares), samples)
    cached = slopes_of(student, Batcher(student.model, samples, squares, images_together=4), samples, gradient_cache=True)
    for name in plain:
        torch.testing.assert_close(cached[name], plain[name], rtol=1e-4, atol=1e-6)


def test_a_learned_scale_survives_a_stop(towers: dict[str, Path], encoder_folder: Path, squares: Collection, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 1, "learn_scale": True, "projection_learning_rate": 1e-2, "student_scale": 99.0}

    def stop(at: TrainingProgress) -> None:
        if at.step == 3:
            raise Stopped

    whole = student_of(towers["vit"], encoder_folder)
    uninterrupted = train(whole, squares, tmp_path / "whole", **settings)
    stopped = student_of(towers["vit"], encoder_folder)
    with pytest.raises(Stopped):
        train(stopped, squares, tmp_path / "stopped", stop, **settings)
    assert set(json.loads((tmp_path / "stopped" / "scale.json").read_text())) == {"2"}
    again = student_of(towers["vit"], encoder_folder)
    assert last_scale(train(again, squares, tmp_path / "stopped", first=1, **settings)) == last_scale(uninterrupted)
    assert last_scale(uninterrupted) != pytest.approx(99, abs=0.01)
    assert all(torch.equal(weight, weights(whole.model)[name]) for name, weight in again.model.state_dict().items())


def test_a_scale_stays_at_100_and_can_come_down_again() -> None:
    scale = LearnedScale(1000.0)
    assert scale().item() == pytest.approx(100)
    with torch.no_grad():
        scale.logarithm.add_(3)
    value = scale()
    value.backward()
    assert value.item() == pytest.approx(100)
    assert scale.logarithm.grad is not None
    assert scale.logarithm.grad.item() == pytest.approx(100)  # of exp, and not 0 as beyond an edge
    other = LearnedScale(5.0)
    other.restore(scale.state())
    assert other.value == scale.value == pytest.approx(100)
    assert LearnedScale(5.0).state() == {"logarithm": pytest.approx(math.log(5))}


def test_projections_and_the_scale_have_a_learning_rate_of_their_own(
    towers: dict[str, Path], encoder_folder: Path, squares: Collection, tmp_path: Path
) -> None:
    student = student_of(towers["vit"], encoder_folder)
    before = weights(student.model)
    settings: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-12, "projection_learning_rate": 1e-2, "learn_scale": True, "warmup": 0.0}
    curve = train(student, squares, tmp_path, **settings)
    last = weights(student.model)
    moved = {name: float((last[name].float() - before[name].float()).abs().max()) for name in before}
    assert {name for name, by in moved.items() if by > 1e-6} == {f"0.sub_modules.{kind}.2.linear.weight" for kind in ("image", "text")}
    assert abs(last_scale(curve) - 20) > 0.01


def test_a_rate_for_projections_needs_some(encoder_folder: Path, squares: Collection, tmp_path: Path) -> None:
    model = SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True)
    samples = lessons_of(squares, TrainingSettings(**SETTINGS))
    training = TrainingSettings.model_validate({**SETTINGS, "projection_learning_rate": 1e-3})
    with pytest.raises(ConfigError, match="the student has no linear layer after its transformer, and no scale learns"):
        train_student(model, samples, squares, training, tmp_path, 1, Supervision(lambda: {"validation": 0.0}))
