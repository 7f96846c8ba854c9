"""Trainings that several processes and a single one must end alike; as a module it is what torchrun starts."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from retriever.files import write_json
from retriever.plugins import load_kind
from retriever.progress import silence_libraries
from retriever.ragged_encodings import encode_ragged
from retriever.settings.student import STUDENT_KINDS
from retriever.settings.training import TrainingSettings
from retriever.training.parallel import average_gradients, processes
from retriever.training.trainer import train_student
from retriever.training.watcher import Supervision
from tests.training_material import animal_lessons

TRAINING = TrainingSettings(
    documents_per_query=4,
    epochs=1,
    batch_size=9,  # 28 samples: parts of 5 and 4, and a last batch of one sample, of which the second process gets nothing
    learning_rate=1e-3,
    losses={"kl_divergence": 1.0},
    teacher_temperature=1.0,  # a sharper one makes roundings larger than the test allows
    precision="fp32",
    checkpoint_steps=2,
)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dense": ({}, {"losses": {"margin_mse": 1.0}, "teacher_scale": 0.3}),
    "cached": ({}, {"gradient_cache": True}),
    "late_interaction": ({"kind": "late_interaction", "dimensions": 8}, {}),
    "cached_late_interaction": ({"kind": "late_interaction", "dimensions": 8}, {"gradient_cache": True}),
    "sparse": ({"kind": "sparse", "inference_free_queries": True}, {}),
    "static": ({"kind": "static"}, {}),
    "cross_encoder": ({"kind": "cross_encoder"}, {}),
    "frozen_documents": ({"kind": "late_interaction", "dimensions": 8, "frozen_documents": True}, {}),
    "patience": ({}, {"patience": 1, "evaluations_per_epoch": 4}),
}
"""Name -> keys of the student, keys of the training."""


def load(name: str, encoder: Path) -> Any:
    """The student of a case."""
    keys = {"kind": "dense", "model": str(encoder), **CASES[name][0]}
    return load_kind("students", keys["kind"], name).load(STUDENT_KINDS[keys["kind"]](**keys))


def train_case(name: str, student: Any, folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Weights and curve of a training; its measure gets better with every validation but where patience is tried."""
    training = TRAINING.model_copy(update=CASES[name][1])
    collection, samples = animal_lessons(folder / f"collection-{processes().rank}", training)
    if name == "frozen_documents":
        samples = dataclasses.replace(samples, encodings=encode_ragged(student, collection, folder / f"encodings-{processes().rank}"))
    qualities = iter([0.5, 0.4, 0.3, 0.2, 0.1] if name == "patience" else [0.1, 0.2, 0.3])
    curve = train_student(student.model, samples, collection, training, folder / "run", 7, Supervision(lambda: {"validation": next(qualities)}))
    return {key: value.clone(memory_format=torch.contiguous_format) for key, value in student.model.state_dict().items()}, curve


def main(encoder: Path, folder: Path) -> None:
    """All of them in each process; the first one writes the weights, curves and a mean of gradients."""
    silence_libraries()
    students = {name: load(name, encoder) for name in CASES}  # before there is a process group: transformers would let the first one alone write a folder
    torch.distributed.init_process_group("gloo")
    rank = processes().rank
    weights = torch.nn.ParameterDict({name: torch.zeros(2) for name in ("both", "one", "none")})
    weights["both"].grad = torch.tensor([1.0, 2.0]) * (1 + rank)
    weights["one"].grad = torch.tensor([4.0, 8.0]) if rank else None
    average_gradients(weights)
    found: dict[str, Any] = {name: None if weight.grad is None else weight.grad.tolist() for name, weight in weights.items()}
    for name, student in students.items():
        trained, found[name] = train_case(name, student, folder / name)
        save_file(trained, folder / f"{name}-{rank}.safetensors")
    if rank == 0:
        write_json(folder / "found.json", found)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
