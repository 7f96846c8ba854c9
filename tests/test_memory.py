"""Too little memory is one line that names the settings which would help, and spoils nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer

from retriever.config import read_experiment
from retriever.errors import ConfigError, RetrieverError
from retriever.pipeline import Pipeline
from retriever.settings.training import TrainingSettings
from retriever.training.memory import explain_memory, means_no_memory, training_advice
from retriever.training.trainer import train_student
from retriever.training.watcher import Supervision
from tests.tiny_experiment import write_experiment
from tests.training_material import animal_lessons

CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes. Error code 12"


def test_the_ways_in_which_libraries_say_it_are_known() -> None:
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU), RuntimeError("MPS backend out of memory (...)")):
        assert means_no_memory(error)
    with pytest.raises(MemoryError) as numpys:
        np.empty(2**62, dtype=np.int8)
    assert means_no_memory(numpys.value)
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(2**62, dtype=torch.int8)
    assert means_no_memory(torchs.value)


def test_another_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), explain_memory("training", "less"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({}, "training.gradient_cache = true, or training.batch_size = 8, training.documents_per_query = 4, training.lora = {}"),
        (
            {"gradient_cache": True, "max_length": 256},
            "training.batch_size = 8, or training.max_length = 128, training.documents_per_query = 4, training.lora = {}",
        ),
        (
            {"gradient_cache": True, "batch_size": 1, "documents_per_query": 2, "matryoshka": [384, 128, 64], "lora": {}},
            "training.matryoshka = [384, 64]",
        ),
        ({"gradient_cache": True, "batch_size": 1, "documents_per_query": 2, "lora": {}}, "a smaller student.model"),
    ],
)
def test_the_advice_names_what_is_not_set_yet_in_the_order_in_which_it_helps(settings: dict[str, Any], advice: str) -> None:
    assert training_advice(TrainingSettings.model_validate(settings)) == advice


def test_the_advised_batch_is_one_that_processes_can_divide() -> None:
    assert "batch_size = 6," in training_advice(TrainingSettings(batch_size=16), processes=3)
    assert "batch_size" not in training_advice(TrainingSettings(batch_size=5), processes=3)
    assert "gradient_cache" not in training_advice(TrainingSettings(), pairs=True)


def test_training_without_memory_is_one_line_and_leaves_the_step_as_it_was(
    tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_experiment(tmp_path, shared_beir_folder, encoder_folder)
    before = Pipeline(read_experiment(file), tmp_path / "work").trained.folder
    weights = (before / "student" / "model.safetensors").read_bytes()
    forward = Transformer.forward

    def greedy(self: Transformer, features: dict[str, Any], **keys: Any) -> Any:
        if self.training:
            raise RuntimeError(CPU)
        return forward(self, features, **keys)

    monkeypatch.setattr(Transformer, "forward", greedy)
    again = Pipeline(read_experiment(file, ["training.epochs=3"]), tmp_path / "work")
    with pytest.raises(RetrieverError, match=r"^training: memory will not do\. Set training\.gradient_cache = true, or training\.batch_size = 4, ") as refusal:
        _ = again.trained
    assert "\n" not in str(refusal.value)
    assert (before / "student" / "model.safetensors").read_bytes() == weights
    monkeypatch.undo()
    assert Pipeline(read_experiment(file), tmp_path / "work").trained.done_now is False


def test_a_validation_without_memory_names_the_batch_of_encoding(
    tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(read_experiment(write_experiment(tmp_path, shared_beir_folder, encoder_folder)), tmp_path / "work")
    pipeline.target.scores("train")

    def greedy(self: SentenceTransformer, *_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SentenceTransformer, "encode_document", greedy)
    with pytest.raises(RetrieverError, match=r"^validation: memory will not do\. Set index\.batch_size = 32, or student\.max_length"):
        _ = pipeline.trained


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_half_precision_without_a_gpu_is_refused(encoder_folder: Path, tmp_path: Path) -> None:
    training = TrainingSettings(documents_per_query=4, precision="fp16")
    collection, samples = animal_lessons(tmp_path / "collection", training)
    model = SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True)
    with pytest.raises(ConfigError, match=r'^training\.precision: "fp16" needs a CUDA GPU'):
        train_student(model, samples, collection, training, tmp_path / "run", 1, Supervision(lambda: {"validation": 0.0}))
    assert not (tmp_path / "run").exists()
