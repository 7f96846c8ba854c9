"""Training ends when validations bring nothing more, and goes on counting after a stop; its curve is there for TensorBoard too."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from retriever.collection import Collection
from retriever.config import read_experiment
from retriever.errors import MissingExtraError
from retriever.pipeline import Pipeline
from retriever.settings.training import TrainingSettings
from retriever.steps.train import read_curve
from retriever.training.samples import TrainingSamples
from retriever.training.trainer import check_training, train_student
from retriever.training.watcher import EVENTS, Supervision, TrainingProgress
from tests.tiny_experiment import write_experiment
from tests.training_material import Stopped, animal_lessons

TRAINING = TrainingSettings(documents_per_query=4, epochs=2, batch_size=4, learning_rate=1e-3, checkpoint_steps=4, evaluations_per_epoch=7, patience=3)
STEPS = 14
QUALITIES = [0.3, 0.5, 0.4, 0.6, 0.6, 0.5, 0.1, 0.9]  # at steps 0, 1, 2 ...: the best is step 3, and nothing is gained in the three that follow

Curve = list[dict[str, float]]
Lessons = tuple[Collection, TrainingSamples]


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Lessons:
    return animal_lessons(tmp_path_factory.mktemp("lessons") / "collection", TRAINING)


def train(
    encoder: Path,
    lessons: Lessons,
    folder: Path,
    qualities: Sequence[float] = QUALITIES,
    training: TrainingSettings = TRAINING,
    stop_at: int | None = None,
) -> tuple[Curve, list[TrainingProgress]]:
    """Validations say what `qualities` says, from step 0 on or from that of the last checkpoint."""
    told: list[TrainingProgress] = []
    answers = iter(qualities)

    def progress(at: TrainingProgress) -> None:
        told.append(at)
        if at.step == stop_at:
            raise Stopped

    model = SentenceTransformer(str(encoder), device="cpu", local_files_only=True)
    return train_student(model, lessons[1], lessons[0], training, folder, 7, Supervision(lambda: {"validation": next(answers)}, progress)), told


def validations(curve: Curve) -> list[tuple[float, float]]:
    return [(point["step"], point["validation"]) for point in curve if "validation" in point]


# Patience


def test_training_ends_after_as_many_validations_without_a_gain_as_patience_has(lessons: Lessons, encoder_folder: Path, tmp_path: Path) -> None:
    curve, told = train(encoder_folder, lessons, tmp_path)
    assert validations(curve) == list(enumerate(QUALITIES[:7]))
    assert max(point["step"] for point in curve if "loss" in point) == 6
    assert [at.step for at in told] == [1, 2, 3, 4, 5, 6]
    assert [at.stopped for at in told] == [False] * 5 + [True]
    assert json.loads((tmp_path / "curve.json").read_text(encoding="utf-8")) == curve


def test_without_patience_every_step_is_made(lessons: Lessons, encoder_folder: Path, tmp_path: Path) -> None:
    curve, told = train(encoder_folder, lessons, tmp_path, [0.9, *[0.1] * STEPS], TRAINING.model_copy(update={"patience": None}))
    assert len(validations(curve)) == STEPS + 1
    assert not any(at.stopped for at in told)


def test_the_last_step_is_no_early_stop(lessons: Lessons, encoder_folder: Path, tmp_path: Path) -> None:
    _, told = train(encoder_folder, lessons, tmp_path, [0.9, *[0.1] * STEPS], TRAINING.model_copy(update={"patience": STEPS}))
    assert told[-1].step == STEPS
    assert not told[-1].stopped


@pytest.mark.parametrize("stop_at", [5, 6])
def test_a_stopped_training_goes_on_counting(lessons: Lessons, encoder_folder: Path, tmp_path: Path, stop_at: int) -> None:
    with pytest.raises(Stopped):
        train(encoder_folder, lessons, tmp_path, stop_at=stop_at)
    curve, told = train(encoder_folder, lessons, tmp_path, QUALITIES[stop_at:])  # the checkpoint of that step had not been written yet
    assert validations(curve) == list(enumerate(QUALITIES[:7]))
    assert [at.step for at in told] == list(range(stop_at, 7))
    assert told[-1].stopped


def test_a_stop_after_the_end_does_not_begin_again(lessons: Lessons, encoder_folder: Path, tmp_path: Path) -> None:
    expected, _ = train(encoder_folder, lessons, tmp_path)
    curve, told = train(encoder_folder, lessons, tmp_path, [])
    assert curve == expected
    assert [(at.step, at.stopped) for at in told] == [(6, True)]


def test_the_bar_is_full_at_an_early_end_and_a_line_says_why(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    changes = {"learning_rate = 2e-2": "learning_rate = 1e-9\npatience = 2\nevaluations_per_epoch = 2"}  # so small that no rank changes
    pipeline = Pipeline(read_experiment(write_experiment(tmp_path, shared_beir_folder, encoder_folder, changes)), tmp_path / "work")
    said: list[str] = []
    pipeline.reporter.say = said.append  # type: ignore[method-assign]
    curve = read_curve(pipeline.trained.folder)
    steps = [point["step"] for point in curve if "validation" in point]
    assert len(steps) == 3
    assert any(line.startswith(f"train: ended at step {steps[-1]} of ") and line.endswith(": 2 validations without a gain") for line in said)


# TensorBoard


def test_event_files_hold_the_curve_and_stay_when_the_step_is_done(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    pytest.importorskip("tensorboard", reason='needs the extra "tensorboard"')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes = {"learning_rate = 2e-2": "learning_rate = 2e-3\ntensorboard = true"}
    done = Pipeline(read_experiment(write_experiment(tmp_path, shared_beir_folder, encoder_folder, changes)), tmp_path / "work").trained
    events = EventAccumulator(str(done.folder / EVENTS))
    events.Reload()
    curve = read_curve(done.folder)
    assert {"train/loss", "train/learning_rate", "train/kl_divergence", "train/contrastive", "validation/quality"} <= set(events.Tags()["scalars"])
    for tag, name in (
        ("train/loss", "loss"),
        ("train/contrastive", "contrastive"),
        ("train/learning_rate", "learning_rate"),
        ("validation/quality", "validation"),
    ):
        expected = [(point["step"], pytest.approx(point[name])) for point in curve if name in point]
        assert [(event.step, event.value) for event in events.Scalars(tag)] == expected


def test_a_stopped_training_leaves_each_step_once_in_the_event_files(lessons: Lessons, encoder_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason='needs the extra "tensorboard"')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training = TRAINING.model_copy(update={"tensorboard": True, "evaluations_per_epoch": 1})
    with pytest.raises(Stopped):
        train(encoder_folder, lessons, tmp_path, training=training, stop_at=6)
    curve, _ = train(encoder_folder, lessons, tmp_path, training=training)
    events = EventAccumulator(str(tmp_path / EVENTS))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [point["step"] for point in curve if "loss" in point]


def test_without_tensorboard_the_extra_is_named_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r'pip install "retriever-distill\[tensorboard\]"'):
        check_training(TRAINING.model_copy(update={"tensorboard": True}))
