"""The loop: it learns, keeps the best checkpoint, and a stop at any instant changes nothing in the end."""

import itertools
import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from torch import Tensor

from retriever.collection import Collection
from retriever.errors import ConfigError, DataError
from retriever.settings.training import TrainingSettings
from retriever.training.samples import TrainingSamples
from retriever.training.trainer import on_one_device, train_student
from retriever.training.watcher import Supervision, TrainingProgress, best_point, last_whole_checkpoint
from tests.forked_commands import ForkedCommands
from tests.tiny_experiment import process_environment
from tests.training_material import Stopped, animal_lessons, weights

ROOT = Path(__file__).resolve().parent.parent
TRAINING = TrainingSettings(documents_per_query=4, epochs=2, batch_size=4, learning_rate=1e-3, checkpoint_steps=4, evaluations_per_epoch=2)
STEPS = 14  # 28 judged pairs, 4 a batch, 2 epochs

Curve = list[dict[str, float]]
Lessons = tuple[Collection, TrainingSamples]


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Lessons:
    return animal_lessons(tmp_path_factory.mktemp("lessons") / "collection", TRAINING)


@pytest.fixture(scope="module")
def uninterrupted(lessons: Lessons, encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], Curve]:
    """Weights and curve of a run that nothing stopped."""
    model = load(encoder_folder)
    curve = train(model, lessons, tmp_path_factory.mktemp("uninterrupted"))
    return weights(model), curve


def load(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def sameness(model: SentenceTransformer) -> float:
    """A quality that depends on the weights alone: minus the mean similarity of unlike texts."""
    vectors = model.encode(["owl", "saw", "a red hunter", "it drives nails"], convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)
    return -float((vectors @ vectors.T).mean())


def train(
    model: SentenceTransformer,
    lessons: Lessons,
    folder: Path,
    validate: Callable[[SentenceTransformer], float] = sameness,
    progress: Callable[[TrainingProgress], None] | None = None,
    training: TrainingSettings = TRAINING,
) -> Curve:
    collection, samples = lessons
    return train_student(model, samples, collection, training, folder, 7, Supervision(lambda: {"validation": validate(model)}, progress))


def steps_of(curve: Curve, name: str) -> list[float]:
    return [point["step"] for point in curve if name in point]


def assert_same_training(model: SentenceTransformer, curve: Curve, expected: tuple[dict[str, Tensor], Curve]) -> None:
    """Weights and curve equal those of the uninterrupted run, bit for bit."""
    for name, tensor in weights(model).items():
        assert torch.equal(tensor, expected[0][name]), name
    assert curve == expected[1]


# Learning


def test_the_loss_falls(encoder_folder: Path, tmp_path: Path) -> None:
    training = TRAINING.model_copy(update={"losses": {"margin_mse": 1.0}, "teacher_scale": 0.3, "learning_rate": 3e-3, "epochs": 8, "batch_size": 8})
    curve = train(load(encoder_folder), animal_lessons(tmp_path / "collection", training), tmp_path, lambda _: 0.0, training=training)
    losses = [point["loss"] for point in curve if "loss" in point]
    assert len(losses) == 28
    assert sum(losses[-7:]) < 0.5 * sum(losses[:7])


def test_the_curve_has_every_loss_term_and_every_validation_once(uninterrupted: tuple[dict[str, Tensor], Curve]) -> None:
    _, curve = uninterrupted
    assert steps_of(curve, "validation") == [0, 4, 7, 10, 14]
    assert steps_of(curve, "loss") == list(range(1, STEPS + 1))
    for point in curve:
        if "loss" in point:
            assert point["margin_mse"] + point["contrastive"] == pytest.approx(point["loss"], abs=2e-4)  # the terms are logged with 4 digits


def test_training_twice_gives_the_same_model(lessons: Lessons, encoder_folder: Path, tmp_path: Path, uninterrupted: tuple[dict[str, Tensor], Curve]) -> None:
    model = load(encoder_folder)
    assert_same_training(model, train(model, lessons, tmp_path), uninterrupted)


def test_the_model_ends_with_the_checkpoint_that_validated_best(lessons: Lessons, encoder_folder: Path, tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []
    qualities = iter([0.3, 0.5, 0.9, 0.9, 0.2])  # of two equal ones the first

    def validate(model: SentenceTransformer) -> float:
        assert not model.training  # no dropout while it is measured
        seen.append(weights(model))
        return next(qualities)

    model = load(encoder_folder)
    curve = train(model, lessons, tmp_path, validate)
    assert [point["validation"] for point in curve if "validation" in point] == [0.3, 0.5, 0.9, 0.9, 0.2]
    assert all(torch.equal(tensor, seen[2][name]) for name, tensor in weights(model).items())
    assert not all(torch.equal(tensor, seen[4][name]) for name, tensor in weights(model).items())
    assert not model.training


def test_a_student_that_only_gets_worse_stays_as_it_was(lessons: Lessons, encoder_folder: Path, tmp_path: Path) -> None:
    qualities = itertools.count(0, -1)
    model = load(encoder_folder)
    train(model, lessons, tmp_path, lambda _: next(qualities))
    start = weights(load(encoder_folder))
    assert all(torch.equal(tensor, start[name]) for name, tensor in weights(model).items())


def test_the_length_read_in_training_does_not_stay(lessons: Lessons, encoder_folder: Path, tmp_path: Path) -> None:
    lengths = []

    def validate(model: SentenceTransformer) -> float:
        lengths.append(model.max_seq_length)
        return 0.0

    model = load(encoder_folder)
    train(model, lessons, tmp_path, validate, training=TRAINING.model_copy(update={"max_length": 9}))
    assert set(lengths) == {9}
    assert model.max_seq_length == 64


def test_a_process_trains_on_one_device_with_the_batch_that_was_asked_for(tmp_path: Path) -> None:
    arguments = SentenceTransformerTrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=4, use_cpu=True)
    assert arguments.device.type == "cpu"
    arguments._n_gpu = 2  # as transformers finds where there are two
    assert arguments.train_batch_size == 8
    assert on_one_device(arguments).train_batch_size == 4


def test_vectors_are_as_long_as_the_largest_size_or_it_is_refused(lessons: Lessons, encoder_folder: Path, tmp_path: Path) -> None:
    model = load(encoder_folder)
    width = int(model.get_embedding_dimension() or 0)
    model.truncate_dim = 8  # cuts what is encoded, and not what is trained
    with pytest.raises(ConfigError, match=f"training.matryoshka: {width + 1}, but the student's vectors have {width} dimensions. Give {width} at most"):
        train(model, lessons, tmp_path, training=TRAINING.model_copy(update={"matryoshka": (width + 1, 8)}))
    assert model.truncate_dim == 8


def test_texts_are_trained_on_with_the_prompts_they_are_encoded_with(lessons: Lessons, encoder_folder: Path, tmp_path: Path) -> None:
    model = load(encoder_folder)
    model.prompts = {"query": "ask: ", "document": "read: "}
    asked: list[tuple[str, str | None]] = []
    preprocess = model.preprocess

    def watched(inputs: list[str], prompt: str | None = None, **settings: Any) -> dict[str, Tensor]:
        asked.extend((text, prompt) for text in inputs)
        return preprocess(inputs, prompt=prompt, **settings)

    model.preprocess = watched
    train(model, lessons, tmp_path, lambda _: 0.0)
    prompted = Counter((text, prompt) for text, prompt in asked if prompt is not None)  # without one, texts are counted for a model card
    collection, samples = lessons
    batches = [samples.documents[start : start + TRAINING.batch_size] for start in range(0, len(samples), TRAINING.batch_size)]
    documents = [document.full_text for rows in batches for document in collection.documents_by_row(np.unique(rows).tolist())]
    assert prompted == Counter([(query.text, "ask: ") for query in samples.queries] + [(text, "read: ") for text in documents])


def test_progress_is_told_at_every_step(lessons: Lessons, encoder_folder: Path, tmp_path: Path) -> None:
    told: list[TrainingProgress] = []
    qualities = iter([0.3, 0.5, 0.9, 0.1, 0.2])
    train(load(encoder_folder), lessons, tmp_path, lambda _: next(qualities), told.append)
    assert [at.step for at in told] == list(range(1, STEPS + 1))
    assert {at.steps for at in told} == {STEPS}
    assert [at.validation for at in told] == [0.3] * 3 + [0.5] * 3 + [0.9] * 8
    assert told[0].loss is None
    assert told[-1].loss is not None


def test_a_loss_that_explodes_is_one_clear_line(lessons: Lessons, encoder_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"training: \w+ is (nan|inf) at step \d+. Lower training\.learning_rate, which is 1e\+30") as refusal:
        train(load(encoder_folder), lessons, tmp_path, lambda _: 0.0, training=TRAINING.model_copy(update={"learning_rate": 1e30}))
    assert "\n" not in str(refusal.value)


def test_training_prints_nothing_to_standard_output(lessons: Lessons, encoder_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(load(encoder_folder), lessons, tmp_path)
    assert capfd.readouterr().out == ""


# Which model is kept


def test_the_best_validation_is_chosen_among_those_without_excess() -> None:
    curve = [
        {"step": 0, "validation": 0.9, "excess": 2.0},
        {"step": 4, "loss": 1.0},
        {"step": 5, "validation": 0.5, "excess": 0.0},
        {"step": 9, "validation": 0.6},
    ]
    assert best_point(curve)["step"] == 9
    assert best_point(curve[:2])["step"] == 0
    assert best_point([{"step": 0, "validation": 0.9, "excess": 2.0}, {"step": 5, "validation": 0.1, "excess": 0.5}])["step"] == 5  # none fits: the nearest


# Stops


@pytest.mark.parametrize("stop_at", [1, 4, 5, 13])
def test_a_stopped_training_ends_as_if_it_had_not_been_stopped(
    lessons: Lessons, encoder_folder: Path, tmp_path: Path, uninterrupted: tuple[dict[str, Tensor], Curve], stop_at: int
) -> None:
    def stop(at: TrainingProgress) -> None:
        if at.step == stop_at:
            raise Stopped

    with pytest.raises(Stopped):
        train(load(encoder_folder), lessons, tmp_path, progress=stop)
    first: list[int] = []
    model = load(encoder_folder)
    curve = train(model, lessons, tmp_path, progress=lambda at: first.append(at.step))
    saved = [step for step in (0, 4, 7, 8, 10, 12) if step < stop_at]  # a checkpoint is written after the step's progress is told
    assert first[0] == saved[-1] + 1
    assert_same_training(model, curve, uninterrupted)


def test_a_killed_training_goes_on_from_its_checkpoint(
    lessons: Lessons, encoder_folder: Path, tmp_path: Path, uninterrupted: tuple[dict[str, Tensor], Curve], forked_commands: ForkedCommands
) -> None:
    code = f"""
from pathlib import Path
from tests.test_trainer import TRAINING, animal_lessons, load, train
lessons = animal_lessons(Path({str(tmp_path / "collection")!r}), TRAINING)
train(load(Path({str(encoder_folder)!r})), lessons, Path({str(tmp_path / "run")!r}), progress=lambda at: print(at.step, flush=True))
"""
    environment = process_environment(OMP_NUM_THREADS=str(torch.get_num_threads()))  # sums in another order differ in the last bit
    child = forked_commands.start("-c", code, environment=environment, streams={"out": (pipe := forked_commands.pipe())})
    with pipe.open() as lines:
        next(line for line in lines if int(line) == 9)
        os.kill(child, signal.SIGKILL)
    assert forked_commands.wait(child).status == -signal.SIGKILL
    first: list[int] = []
    model = load(encoder_folder)
    curve = train(model, lessons, tmp_path / "run", progress=lambda at: first.append(at.step))
    assert 8 < first[0] <= STEPS  # it may have run on a little before the signal came
    for name, tensor in weights(model).items():
        torch.testing.assert_close(tensor, uninterrupted[0][name], rtol=1e-5, atol=1e-6, msg=name)
    assert [point["step"] for point in curve] == [point["step"] for point in uninterrupted[1]]


def test_a_torn_checkpoint_is_removed_and_the_one_before_it_used(
    lessons: Lessons, encoder_folder: Path, tmp_path: Path, uninterrupted: tuple[dict[str, Tensor], Curve]
) -> None:
    def stop(at: TrainingProgress) -> None:
        if at.step == 11:
            raise Stopped

    with pytest.raises(Stopped):
        train(load(encoder_folder), lessons, tmp_path, progress=stop)
    state = tmp_path / "checkpoints" / "checkpoint-10" / "trainer_state.json"
    state.write_bytes(state.read_bytes()[:100])
    assert last_whole_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "checkpoint-8"
    assert not (tmp_path / "checkpoints" / "checkpoint-10").exists()
    first: list[int] = []
    model = load(encoder_folder)
    curve = train(model, lessons, tmp_path, progress=lambda at: first.append(at.step))
    assert first[0] == 9
    assert_same_training(model, curve, uninterrupted)


def test_a_stop_while_the_best_model_is_swapped_loses_it_not(lessons: Lessons, encoder_folder: Path, tmp_path: Path) -> None:
    qualities = iter([0.9, 0.1, 0.1])

    def stop(at: TrainingProgress) -> None:
        if at.step == 8:
            raise Stopped

    with pytest.raises(Stopped):
        train(load(encoder_folder), lessons, tmp_path, lambda _: next(qualities), stop)
    os.replace(tmp_path / "best", tmp_path / ".best.old")
    model = load(encoder_folder)
    train(model, lessons, tmp_path, lambda _: 0.2)
    start = weights(load(encoder_folder))
    assert all(torch.equal(tensor, start[name]) for name, tensor in weights(model).items())


def test_a_training_that_is_done_is_only_read_again(
    lessons: Lessons, encoder_folder: Path, tmp_path: Path, uninterrupted: tuple[dict[str, Tensor], Curve]
) -> None:
    train(load(encoder_folder), lessons, tmp_path)
    told: list[TrainingProgress] = []
    model = load(encoder_folder)
    assert_same_training(model, train(model, lessons, tmp_path, progress=told.append), uninterrupted)
    assert told == []


def test_the_last_whole_checkpoint_is_the_highest_number_with_a_state(tmp_path: Path) -> None:
    assert last_whole_checkpoint(tmp_path / "none") is None
    for step in (5, 90, 100, 110):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert last_whole_checkpoint(tmp_path) is None  # the trainer writes the state last: without it, nothing is whole
    assert list(tmp_path.iterdir()) == []
    for step in (5, 90, 100, 110):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (tmp_path / "checkpoint-110" / "trainer_state.json").write_text("")
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-100", "checkpoint-5", "checkpoint-90"]
