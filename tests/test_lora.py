"""Training of low-rank adapters: only they move, and what is saved at the end is a stock model without them."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retriever.collection import Collection
from retriever.config import experiment_from
from retriever.errors import ConfigError, MissingExtraError
from retriever.plugins import load_kind
from retriever.settings.student import STUDENT_KINDS
from retriever.settings.training import LoraSettings, TrainingSettings
from retriever.training.lora import FILE, Adapters
from retriever.training.samples import TrainingSamples
from retriever.training.trainer import check_training, train_student
from retriever.training.watcher import Supervision, TrainingProgress
from retriever.types import Document, Query
from tests.tiny_experiment import process_environment
from tests.training_material import Stopped, animal_lessons, weights

LORA = LoraSettings(rank=4, alpha=8)
TRAINING = TrainingSettings(documents_per_query=4, epochs=2, batch_size=8, learning_rate=1e-2, checkpoint_steps=2, lora=LORA, precision="fp32")
STEPS = 7
KINDS: dict[str, dict[str, Any]] = {"dense": {}, "sparse": {}, "late_interaction": {"dimensions": 8}}
QUERY, DOCUMENT = Query("q", "a red hunter"), Document("d", "it drives nails")

Lessons = tuple[Collection, TrainingSamples]


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Lessons:
    return animal_lessons(tmp_path_factory.mktemp("lessons") / "collection", TRAINING)


@pytest.fixture
def peft() -> None:
    pytest.importorskip("peft", reason='needs the extra "lora"')


def student_of(kind: str, encoder: Path, **keys: Any) -> Any:
    return load_kind("students", kind, kind).load(STUDENT_KINDS[kind](kind=kind, model=str(encoder), **keys))


def train(model: Any, lessons: Lessons, folder: Path, stop_at: int | None = None, training: TrainingSettings = TRAINING) -> list[dict[str, float]]:
    """Every validation is better than the one before, by what the steps since the start say."""
    collection, samples = lessons
    steps = iter([0, 4, STEPS]) if not (folder / "curve.json").exists() else itertools.count(100)

    def progress(at: TrainingProgress) -> None:
        if at.step == stop_at:
            raise Stopped

    return train_student(model, samples, collection, training, folder, 7, Supervision(lambda: {"validation": float(next(steps))}, progress))


# What adapters are


@pytest.mark.usefixtures("peft")
def test_new_adapters_change_nothing_and_are_the_same_for_the_same_seed(encoder_folder: Path) -> None:
    texts = ["owl", "it drives nails"]
    plain = student_of("dense", encoder_folder).model
    before = plain.encode(texts)
    first, again, other = (student_of("dense", encoder_folder).model for _ in range(3))
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        Adapters(model, LORA, seed)
    assert np.array_equal(first.encode(texts), before)
    assert all(torch.equal(tensor, weights(again)[name]) for name, tensor in weights(first).items())
    assert any(not torch.equal(tensor, weights(other)[name]) for name, tensor in weights(first).items())


@pytest.mark.usefixtures("peft")
def test_merging_adds_alpha_over_rank_times_the_product_of_the_adapters_to_the_weights(encoder_folder: Path) -> None:
    model = student_of("dense", encoder_folder).model
    before = weights(model)
    adapters = Adapters(model, LoraSettings(rank=2, alpha=6, modules=("query",)), 1)
    generator = torch.Generator().manual_seed(3)
    products = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight  # [r, in], [out, r]
            up.data = torch.randn(up.shape, generator=generator)
            products[f"{name}.weight"] = 6 / 2 * (up @ down).detach()
    adapters.merge()
    merged = weights(model)
    assert len(products) == 2  # a query layer in each of two transformer layers
    assert merged.keys() == before.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, before[name] + products.get(name, torch.zeros(())))


# Training


@pytest.mark.usefixtures("peft")
@pytest.mark.parametrize(("kind", "also"), [("dense", []), ("sparse", []), ("late_interaction", ["1.linear.weight"])])
def test_only_adapted_layers_and_what_follows_the_transformer_move(lessons: Lessons, encoder_folder: Path, tmp_path: Path, kind: str, also: list[str]) -> None:
    student = student_of(kind, encoder_folder, **KINDS[kind])
    before = weights(student.model)
    linear = {f"{name}.weight" for name, layer in student.model.transformers_model.named_modules() if isinstance(layer, torch.nn.Linear)}
    train(student.model, lessons, tmp_path)
    after = weights(student.model)
    assert after.keys() == before.keys()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved
    assert set(also) <= moved
    assert all(any(name.endswith(weight) for weight in linear) for name in moved - set(also))


@pytest.mark.usefixtures("peft")
def test_what_is_saved_is_a_stock_folder_that_scores_the_same_without_peft(lessons: Lessons, encoder_folder: Path, tmp_path: Path) -> None:
    expected = {}
    for kind, keys in KINDS.items():
        student = student_of(kind, encoder_folder, **keys)
        train(student.model, lessons, tmp_path / f"training-{kind}")
        student.save(tmp_path / kind)
        expected[kind] = float(student.score(student.encode_queries([QUERY]), student.encode_documents([DOCUMENT]))[0])
        assert not any("adapter" in path.name for path in (tmp_path / kind).rglob("*"))
    code = f"""
import json, sys
sys.modules["peft"] = None
from pathlib import Path
from retriever.plugins import load_kind
from retriever.types import Document, Query
found = {{}}
for kind in {list(KINDS)!r}:
    student = load_kind("students", kind, kind).load_folder(Path({str(tmp_path)!r}) / kind)
    found[kind] = float(student.score(student.encode_queries([Query("q", "a red hunter")]), student.encode_documents([Document("d", "it drives nails")]))[0])
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], env=process_environment(HF_HUB_OFFLINE="1"), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == pytest.approx(expected, abs=1e-5)


@pytest.mark.usefixtures("peft")
def test_the_best_checkpoint_is_kept_and_a_stop_changes_nothing(lessons: Lessons, encoder_folder: Path, tmp_path: Path) -> None:
    whole, stopped = (student_of("dense", encoder_folder).model for _ in range(2))
    curve = train(whole, lessons, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(stopped, lessons, tmp_path / "stopped", stop_at=5)
    assert (tmp_path / "stopped" / "checkpoints" / "checkpoint-4" / FILE).exists()
    assert not (tmp_path / "stopped" / "checkpoints" / "checkpoint-4" / "model.safetensors").exists()
    model = student_of("dense", encoder_folder).model
    again = train(model, lessons, tmp_path / "stopped")
    assert [point["step"] for point in again] == [point["step"] for point in curve]
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(model).items())


@pytest.mark.usefixtures("peft")
def test_a_training_that_brings_nothing_ends_with_the_start(lessons: Lessons, encoder_folder: Path, tmp_path: Path) -> None:
    model = student_of("dense", encoder_folder).model
    before = weights(model)
    qualities = iter([0.9, 0.1, 0.1])
    train_student(model, lessons[1], lessons[0], TRAINING, tmp_path, 7, Supervision(lambda: {"validation": next(qualities)}))
    for name, tensor in weights(model).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.usefixtures("peft")
def test_a_gradient_cache_gives_adapters_the_same_training(lessons: Lessons, encoder_folder: Path, tmp_path: Path) -> None:
    plain, cached = (student_of("dense", encoder_folder).model for _ in range(2))
    for model in (plain, cached):
        for layer in model.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0  # the two draw in another order
    train(plain, lessons, tmp_path / "plain")
    train(cached, lessons, tmp_path / "cached", training=TRAINING.model_copy(update={"gradient_cache": True}))
    for name, tensor in weights(cached).items():
        torch.testing.assert_close(tensor, weights(plain)[name], rtol=1e-4, atol=2e-4)


# Mistakes


@pytest.mark.usefixtures("peft")
def test_layers_that_the_model_has_not_are_refused_with_those_it_has(encoder_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.lora\.modules: none of q_proj is in the model; it has dense, key, query, value$"):
        Adapters(student_of("dense", encoder_folder).model, LoraSettings(modules=("q_proj",)), 1)


def test_a_static_student_is_refused(encoder_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.lora: the student has no transformer"):
        Adapters(student_of("static", encoder_folder).model, LORA, 1)


@pytest.mark.parametrize("kind", ["static", "cross_encoder"])
def test_an_experiment_whose_student_takes_no_adapters_is_refused_at_once(kind: str) -> None:
    values = {"name": "tiny", "collection": {"path": "x"}, "teacher": [{"kind": "lexical"}], "student": {"kind": kind, "model": "m"}}
    with pytest.raises(ConfigError, match=rf"training\.lora: a {kind} student"):
        experiment_from({**values, "training": {"lora": {}}})


def test_without_peft_the_extra_is_named_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r'pip install "retriever-distill\[lora\]"'):
        check_training(TRAINING)
