"""Training from a reinforced dataset: what teaches, what a batch holds, what its losses are, and a student that learns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from retriever.config import experiment_from, read_experiment
from retriever.errors import ConfigError, DataError
from retriever.images.augmentation import apply, pixels_fingerprint
from retriever.images.reading import read_image
from retriever.pipeline import Pipeline
from retriever.reinforced import step as reinforce_step
from retriever.reinforced.shards import ReinforcedDataset, list_shards
from retriever.reinforced.step import reinforce
from retriever.settings.training import TrainingSettings
from retriever.students.image_text import ImageTextStudent
from retriever.training.ahead import ReadAhead
from retriever.training.families import check_losses
from retriever.training.loss_table import LOSS_TABLE
from retriever.training.reinforced_batches import ReinforcedBatcher, ReinforcedSamples, is_reinforced, make_reinforced_samples
from retriever.training.reinforced_loss import both_ways, paired_contrastive, reinforced
from retriever.training.reinforced_terms import ReinforcedLoss, known_to_fit
from retriever.training.towers import FrozenTowers
from retriever.training.trainer import train_student
from retriever.training.watcher import Supervision
from tests.image_text_material import save_efficientnet, save_vit, student_of
from tests.reinforced_material import COLOURS, TEACHERS, samples_from, save_material
from tests.training_material import Stopped, weights


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vit(tmp_path_factory.mktemp("vision") / "vit")


@pytest.fixture
def values(tmp_path: Path, vision: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(reinforce_step, "load_teachers", lambda pipeline, _=None: TEACHERS)
    return save_material(tmp_path, vision, encoder_folder)


@pytest.fixture
def pipeline(values: dict[str, Any], tmp_path: Path) -> Pipeline:
    return Pipeline(experiment_from(values), tmp_path / "work")


@pytest.fixture
def student(vision: Path, encoder_folder: Path) -> ImageTextStudent:
    return student_of(vision, encoder_folder, image_size=16)


def samples_of(pipeline: Pipeline, held: Sequence[str] = (), epochs: int = 1, seed: int = 1) -> ReinforcedSamples:
    return samples_from(reinforce(pipeline).folder, pipeline, held, epochs, seed)


# What teaches


def test_each_epoch_has_each_image_once_with_an_augmentation_and_captions_drawn_anew(pipeline: Pipeline) -> None:
    samples = samples_of(pipeline, epochs=50)
    for epoch in range(50):
        assert sorted(samples.doc_ids[6 * epoch : 6 * epoch + 6]) == sorted(f"{colour}.png" for colour in COLOURS)
    assert samples.doc_ids[:6] != samples.doc_ids[6:12]
    assert set(samples.augmentations) == {0, 1, 2}
    assert set(samples.captions) == {0, 1, 2}
    of = np.array(samples.doc_ids)
    assert {colour: set(samples.synthetic[of == f"{colour}.png"]) for colour in ("red", "blue", "lime")} == {"red": {0}, "blue": {0, 1}, "lime": {-1}}
    again = samples_of(pipeline, epochs=50)
    assert again.doc_ids == samples.doc_ids
    assert (again.captions == samples.captions).all()
    assert samples_of(pipeline, epochs=50, seed=2).doc_ids != samples.doc_ids


def test_a_caption_or_an_image_that_is_held_out_teaches_nothing(pipeline: Pipeline) -> None:
    samples = samples_of(pipeline, held=["red.png#0", "lime.png#0", "lime.png#1", "lime.png#2", "blue.png"], epochs=40)
    of = np.array(samples.doc_ids)
    assert set(of) == {"red.png", "yellow.png", "cyan.png", "black.png"}
    assert set(samples.captions[of == "red.png"]) == {1, 2}
    assert set(samples.captions[of == "cyan.png"]) == {0, 1, 2}
    queries = {name: query for name, query in pipeline.queries("train").items() if name != "cyan.png#2"}  # as one that is a test query too
    rest = make_reinforced_samples(samples.dataset, queries, pipeline.qrels("train"), [], pipeline.collection, 40, np.random.default_rng(1))
    assert set(rest.captions[np.array(rest.doc_ids) == "cyan.png"]) == {0, 1}
    one_way = {name: query for name, query in queries.items() if query.image}
    every = make_reinforced_samples(samples.dataset, one_way, pipeline.qrels("train"), ["red.png"], pipeline.collection, 40, np.random.default_rng(1))
    assert (len(set(every.doc_ids)), set(every.captions[np.array(every.doc_ids) == "cyan.png"])) == (5, {0, 1, 2})
    with pytest.raises(DataError, match=r"no image of it teaches: all its captions are held out"):
        samples_of(pipeline, held=[f"{colour}.png" for colour in COLOURS])


def test_an_image_of_which_a_caption_is_held_out_does_not_teach_where_captions_alone_ask(values: dict[str, Any], tmp_path: Path) -> None:
    values["collection"] |= {"train": "train.text_to_image", "test": "test.text_to_image"}
    pipeline = Pipeline(experiment_from(values), tmp_path / "work")
    held = pipeline.held_out[1]
    kept = {caption.partition("#")[0] for caption in held}
    assert (len(held), len(kept)) == (3, 1)  # a tenth of 18 would be two captions
    assert set(samples_of(pipeline, held=held).doc_ids) == {f"{colour}.png" for colour in COLOURS} - kept


# A batch


def test_a_batch_holds_the_images_that_the_teachers_saw_and_what_they_made_of_them(pipeline: Pipeline, student: ImageTextStudent) -> None:
    samples = samples_of(pipeline)
    batcher = ReinforcedBatcher(student.model, samples, pipeline.collection)
    made = batcher([{"label": number} for number in range(6)])
    label = made["label"]
    assert made["query_input_ids"].shape[0] == 6 + 2
    assert made["document_0_pixel_values"].shape == (6, 3, 16, 16)
    assert label["samples"].tolist() == list(range(6))
    assert label["written"].tolist() == 6 * [0] + 2 * [1]
    assert [samples.doc_ids[place] for place in label["of"].tolist()] == [*samples.doc_ids, *(one for one in samples.doc_ids if one in ("red.png", "blue.png"))]
    for place, doc_id in enumerate(samples.doc_ids):
        item = samples.dataset.of_document(doc_id)
        number = int(samples.augmentations[place])
        seen = apply(read_image(pipeline.collection.document(doc_id).image or Path()), item.augmentations[number])
        assert pixels_fingerprint(seen) == item.pixels[number]
        own = student.model.preprocess([seen], task="document")["pixel_values"][0]
        torch.testing.assert_close(made["document_0_pixel_values"][place], own)
        torch.testing.assert_close(label["images"][place], torch.from_numpy(item.images[number]))
        torch.testing.assert_close(label["texts"][place], torch.from_numpy(item.texts[int(samples.captions[place])]))
    items = [samples.dataset.of_document(doc_id) for doc_id in samples.doc_ids]
    texts = [item.captions[row] for item, row in zip(items, samples.captions.tolist(), strict=True)]
    texts += [item.synthetic[row] for item, row in zip(items, samples.synthetic.tolist(), strict=True) if row >= 0]
    assert known_to_fit(label).tolist() == [[text in (*item.captions, *item.synthetic) for text in texts] for item in items]


def test_an_image_that_has_changed_is_no_longer_what_the_teachers_saw(values: dict[str, Any], tmp_path: Path, student: ImageTextStudent) -> None:
    values["reinforce"]["store_images"] = False
    pipeline = Pipeline(experiment_from(values), tmp_path / "work")
    batcher = ReinforcedBatcher(student.model, samples_of(pipeline), pipeline.collection)
    batch = [{"label": number} for number in range(6)]
    batcher(batch)
    Image.new("RGB", (24, 20), "pink").save(tmp_path / "squares" / "red.png")
    with pytest.raises(DataError, match=r"red\.png: augmented again, it has other pixels than the teachers saw"):
        batcher(batch)


def test_a_frozen_tower_makes_each_augmented_image_once(pipeline: Pipeline, vision: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = student_of(vision, encoder_folder, image_size=16, frozen_image=True)
    samples, towers = samples_of(pipeline), FrozenTowers(student.model)
    batcher = ReinforcedBatcher(student.model, samples, pipeline.collection, towers=towers)
    batch = [{"label": number} for number in range(6)]
    with towers.attached():
        made = batcher(batch)
        assert "document_0_pixel_values" not in made
        monkeypatch.setattr(ReinforcedBatcher, "_image", lambda *_: pytest.fail("an image was read again"))
        torch.testing.assert_close(batcher(batch)["document_0_sentence_embedding"], made["document_0_sentence_embedding"])


def test_what_is_at_hand_is_not_read_by_another_thread(pipeline: Pipeline, vision: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = student_of(vision, encoder_folder, image_size=16, frozen_image=True)
    samples, towers, pool = samples_of(pipeline, epochs=20), FrozenTowers(student.model), ThreadPoolExecutor(1)
    batcher = ReinforcedBatcher(student.model, samples, pipeline.collection, towers=towers, ahead=ReadAhead(pool, 6))
    plain = ReinforcedBatcher(student.model, samples, pipeline.collection, towers=FrozenTowers(student.model))
    with towers.attached(), pool:
        for epoch in range(20):
            made, expected = (one([{"label": number} for number in range(6 * epoch, 6 * epoch + 6)]) for one in (batcher, plain))
            torch.testing.assert_close(made["document_0_sentence_embedding"], expected["document_0_sentence_embedding"])
            assert torch.equal(made["label"]["images"], expected["label"]["images"])
        assert len(batcher.kept) == 6
        monkeypatch.setattr(ReinforcedDataset, "of_document", lambda *_: pytest.fail("what is known of an image was read again"))
        monkeypatch.setattr(ReinforcedBatcher, "_image", lambda *_: pytest.fail("an image was read again"))
        for epoch in range(20):
            batcher([{"label": number} for number in range(6 * epoch, 6 * epoch + 6)])


def test_images_are_encoded_in_groups_where_memory_is_saved(pipeline: Pipeline, student: ImageTextStudent) -> None:
    samples, batch = samples_of(pipeline), [{"label": number} for number in range(6)]
    whole, parts = (ReinforcedBatcher(student.model, samples, pipeline.collection, images_together=size)(batch) for size in (None, 4))
    pixels = [parts[f"document_{group}_pixel_values"] for group in range(2)]
    assert [len(group) for group in pixels] == [4, 2]
    torch.testing.assert_close(torch.cat(pixels), whole["document_0_pixel_values"], rtol=0, atol=0)


# Losses


def test_both_losses_are_summed_over_real_and_synthetic_captions(pipeline: Pipeline, student: ImageTextStudent) -> None:
    samples = samples_of(pipeline)
    settings = TrainingSettings(losses={"reinforced": 0.75, "contrastive": 0.25}, student_scale=7.0, precision="fp32")
    loss = ReinforcedLoss(student.model, samples, settings)
    made = ReinforcedBatcher(student.model, samples, pipeline.collection)([{"label": number} for number in range(6)])
    label, generator = made["label"], torch.Generator().manual_seed(1)
    texts, images = (torch.nn.functional.normalize(torch.randn(count, 12, generator=generator), dim=1) for count in (8, 6))
    terms = loss.terms((texts,), (images,), label)
    scores, places, same = 7 * images @ texts.T, label["of"][6:], known_to_fit(label)
    pairs = [
        both_ways(scores[:, :6], label["images"].split(8, 1), label["texts"][:6].split(8, 1), [30.0, 10.0]),
        both_ways(scores[places][:, 6:], label["images"][places].split(8, 1), label["texts"][6:].split(8, 1), [30.0, 10.0]),
    ]
    real, written = (reinforced(own, wanted, torch.ones_like(own, dtype=torch.bool)) for own, wanted in pairs)
    assert float(terms["reinforced"]) == pytest.approx(0.75 * float(real + written), rel=1e-5)
    real = paired_contrastive(scores[:, :6], same[:, :6])
    written = paired_contrastive(scores[places][:, 6:], same[places][:, 6:])
    assert float(terms["contrastive"]) == pytest.approx(0.25 * float(real + written), rel=1e-5)


def test_other_losses_beside_it_and_students_of_texts_are_refused(encoder_folder: Path) -> None:
    assert not is_reinforced(TrainingSettings(losses={"contrastive": 1.0, "reinforced": 0.0}))
    assert is_reinforced(TrainingSettings(losses={"contrastive": 1.0, "reinforced": 0.5, "gram": 0.0}))
    with pytest.raises(ConfigError, match=r"reinforced takes batches of images and captions, which gram cannot read. Keep reinforced and contrastive"):
        is_reinforced(TrainingSettings(losses={"gram": 1.0, "reinforced": 0.5}))
    with pytest.raises(ConfigError, match=r"training\.frozen_layers: reinforced training reads other images"):
        is_reinforced(TrainingSettings(losses={"reinforced": 0.5}, frozen_layers=1))
    from sentence_transformers import SentenceTransformer

    with pytest.raises(ConfigError, match=r'reinforced teaches images and texts, and the student reads texts alone. Set student\.kind = "image_text"'):
        check_losses(SentenceTransformer(str(encoder_folder)), {"reinforced": LOSS_TABLE["reinforced"]})


# A student that learns


def learned(pipeline: Pipeline, student: ImageTextStudent, folder: Path, stop_at: int | None = None, **changes: Any) -> list[dict[str, float]]:
    """Trains on the squares; the validation is how many colours find their image first."""
    told = {"losses": {"reinforced": 1.0}, "epochs": 4, "batch_size": 4, "learning_rate": 1e-2, "precision": "fp32", "checkpoint_steps": 3}
    settings = TrainingSettings.model_validate(told | changes)
    documents = [pipeline.collection.document(f"{colour}.png") for colour in COLOURS]
    queries = [pipeline.queries("train")[f"{colour}.png#0"] for colour in COLOURS]

    def validate() -> dict[str, float]:
        found = student.encode_queries(queries) @ student.encode_documents(documents).T
        return {"validation": float((found.argmax(axis=1) == np.arange(len(COLOURS))).mean())}

    def tell(at: Any) -> None:
        if stop_at is not None and at.step >= stop_at:
            raise Stopped

    return train_student(student.model, samples_of(pipeline, epochs=settings.epochs), pipeline.collection, settings, folder, 1, Supervision(validate, tell))


def test_a_student_learns_from_what_the_teachers_made_of_augmented_squares(pipeline: Pipeline, encoder_folder: Path, tmp_path: Path) -> None:
    student = student_of(save_efficientnet(tmp_path / "vision"), encoder_folder, image_size=16)
    curve = learned(pipeline, student, tmp_path / "train", epochs=24, learning_rate=3e-3, projection_learning_rate=1e-2)
    validations = [point["validation"] for point in curve if "validation" in point]
    assert validations[0] < 0.7
    assert max(validations) == 1.0
    assert {"reinforced"} <= {name for point in curve for name in point}


@pytest.mark.parametrize("gradient_cache", [False, True])
def test_training_that_was_stopped_ends_with_the_same_weights(
    pipeline: Pipeline, vision: Path, encoder_folder: Path, tmp_path: Path, gradient_cache: bool
) -> None:
    told = {"losses": {"reinforced": 0.7, "contrastive": 0.3}, "gradient_cache": gradient_cache, "learn_scale": True}
    whole, stopped = (student_of(vision, encoder_folder, image_size=16) for _ in range(2))
    learned(pipeline, whole, tmp_path / "whole", **told)
    with pytest.raises(Stopped):
        learned(pipeline, stopped, tmp_path / "stopped", stop_at=4, **told)
    again = student_of(vision, encoder_folder, image_size=16)
    learned(pipeline, again, tmp_path / "stopped", **told)
    for name, weight in weights(whole.model).items():
        torch.testing.assert_close(weights(again.model)[name], weight, msg=name)


def test_the_train_step_makes_the_dataset_that_it_learns_from_and_depends_on_it(values: dict[str, Any], tmp_path: Path) -> None:
    values["training"] |= {"losses": {"reinforced": 1.0}, "epochs": 1}
    values["teacher"][0]["logit_scale"] = 20.0
    done = Pipeline(experiment_from(values), tmp_path / "work").trained
    manifest = json.loads((done.folder / "manifest.json").read_text())
    folder = tmp_path / "work" / "squares" / "reinforced"
    assert manifest["inputs"]["reinforced dataset"] == ReinforcedDataset(folder).fingerprint
    assert manifest["result"]["samples"] <= 6
    again = Pipeline(experiment_from(values), tmp_path / "work").trained
    assert again.done_now is False
    values["training"]["reinforced"] = str(folder)
    values["reinforce"]["augmentations"] = 7  # of no concern where a folder is named
    assert Pipeline(experiment_from(values), tmp_path / "work").trained.done_now
    assert len(list_shards(folder)) == 1
    values["training"]["reinforced"] = str(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"nowhere/reinforced\.json: cannot be read"):
        _ = Pipeline(experiment_from(values), tmp_path / "work").trained


def test_paths_are_relative_to_the_experiment_file(values: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "x" / "e.toml"
    path.parent.mkdir()
    path.write_text(
        'name = "e"\n[collection]\npath = "c"\n[[teacher]]\nkind = "lexical"\n[student]\nmodel = "m"\n[training]\nreinforced = "../sets/one"\n'
        '[reinforce]\nsynthetic_captions = "written.jsonl"\n'
    )
    experiment = read_experiment(path)
    assert experiment.training.reinforced == tmp_path / "sets" / "one"
    assert experiment.reinforce
    assert experiment.reinforce.synthetic_captions == tmp_path / "x" / "written.jsonl"
