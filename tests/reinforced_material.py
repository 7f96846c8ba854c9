"""Coloured squares, teachers that know colours, and trainings that several processes and a single one must end alike; torchrun starts it as a module."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from retriever.collection import Collection
from retriever.config import experiment_from
from retriever.files import write_json
from retriever.pipeline import Pipeline
from retriever.progress import silence_libraries
from retriever.reinforced.shards import ReinforcedDataset, ReinforcedTeacher
from retriever.reinforced.teachers import TeacherModels
from retriever.settings.training import TrainingSettings
from retriever.students.image_text import ImageTextStudent
from retriever.training.parallel import PartBatcher, average_gradients, gather_rows, processes
from retriever.training.reinforced_batches import ReinforcedBatcher, ReinforcedSamples, make_reinforced_samples
from retriever.training.reinforced_terms import ReinforcedLoss
from retriever.training.scale import LearnedScale
from retriever.training.trainer import train_student
from retriever.training.watcher import Supervision
from tests.image_text_material import student_of

COLOURS = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "cyan": (0, 255, 255), "black": (0, 0, 0)}
TEST = {"white": (255, 255, 255)}
TRAINING = TrainingSettings(
    epochs=2,
    batch_size=5,  # 12 samples: parts of 3 and 2, and a last batch of two
    learning_rate=1e-3,
    losses={"reinforced": 0.7, "contrastive": 0.3},
    precision="fp32",
    checkpoint_steps=2,
)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "towers": ({}, {"learn_scale": True}),
    "cached": ({}, {"learn_scale": True, "gradient_cache": True}),
    "frozen_image": ({"frozen_image": True}, {}),
}
"""Name -> keys of the student, keys of the training."""


class ColourTeacher:
    """Knows the nearest colour of an image and the colour that a text names: a dimension for each; the rest says how sure it is."""

    def images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        means = np.stack([np.asarray(image).reshape(-1, 3).mean(axis=0) for image in images])
        known = np.array([*COLOURS.values(), *TEST.values()])
        return self._vectors(np.abs(means[:, None] - known[None]).sum(axis=2).argmin(axis=1))

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """A caption without a colour fits every image alike."""
        named = [next((number for number, name in enumerate([*COLOURS, *TEST]) if name in text), -1) for text in texts]
        vectors = self._vectors(np.array(named))
        vectors[np.array(named) < 0] = 1.0
        return vectors

    @staticmethod
    def _vectors(numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.eye(8, dtype=np.float32)[numbers] + np.float32(0.1)


TEACHERS = TeacherModels((ReinforcedTeacher("one", 8, 30.0, "1"), ReinforcedTeacher("two", 8, 10.0, "2")), (ColourTeacher(), ColourTeacher()))


def save_squares(folder: Path) -> Path:
    """Coloured squares with a darker edge, three captions each; the white one is for the test split."""
    folder.mkdir()
    lines = []
    for number, (colour, rgb) in enumerate((COLOURS | TEST).items()):
        image = Image.new("RGB", (24, 20 + number), rgb)
        image.paste(tuple(value // 2 for value in rgb), (0, 0, 4, 20))
        image.save(folder / f"{colour}.png")
        told = {"captions": [colour, f"all in {colour}"], "split": "test"} if colour in TEST else {"captions": [colour, f"all in {colour}", "a square"]}
        lines.append(json.dumps({"image": f"{colour}.png", **told}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def save_material(folder: Path, vision: Path, encoder: Path, **training: Any) -> dict[str, Any]:
    """Writes the squares with some synthetic captions, and gives the values of an experiment on them."""
    save_squares(folder / "squares")
    (folder / "written.jsonl").write_text('{"image": "red.png", "captions": ["something red"]}\n{"image": "blue.png", "captions": ["so blue", "blue, blue"]}\n')
    return {
        "name": "squares",
        "collection": {"path": str(folder / "squares")},
        "candidates": {"sources": ["student"], "depth": 5},
        "teacher": [{"kind": "embedding"}],
        "student": {"kind": "image_text", "image_model": str(vision), "text_model": str(encoder), "dimensions": 12, "image_size": 16},
        "reinforce": {"augmentations": 3, "crop_scale": [0.3, 1.0], "operations": ["Sharpness"], "synthetic_captions": str(folder / "written.jsonl")},
        "training": {"documents_per_query": 2, "batch_size": 6, "precision": "fp32", "max_length": 16, **training},
        "evaluation": {"latency_queries": 2},
    }


def samples_from(dataset: Path, pipeline: Pipeline, held: Sequence[str] = (), epochs: int = 1, seed: int = 1) -> ReinforcedSamples:
    """What an experiment's training draws from a dataset."""
    queries, qrels = pipeline.queries("train"), pipeline.qrels("train")
    return make_reinforced_samples(ReinforcedDataset(dataset), queries, qrels, held, pipeline.collection, epochs, np.random.default_rng(seed))


# Two processes


def without_dropout(model: Path, folder: Path) -> Path:
    """A copy of a model's folder; every process draws its own dropout."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def student_for(folder: Path, name: str = "towers") -> ImageTextStudent:
    """The student of a case; `folder` holds the towers that it begins with."""
    return student_of(folder / "vision", folder / "encoder", image_size=16, **CASES[name][0])


def gathered() -> dict[str, list[Any]]:
    """What comes of two rows of the first process and one of the second, and the gradients of their sum, weighted with 1, 2, 3, and of a factor."""
    rows = torch.tensor([[1.0], [2.0]] if processes().first else [[3.0]], requires_grad=True)
    numbers = torch.tensor([7] if processes().first else [])
    factor = torch.ones((), requires_grad=True)
    all_rows, all_numbers, nothing = gather_rows([rows, numbers.long(), torch.zeros(0, 4)])
    (factor * all_rows[:, 0] * torch.tensor([1.0, 2.0, 3.0])).sum().backward()  # type: ignore[no-untyped-call]
    gradients = [] if rows.grad is None or factor.grad is None else [rows.grad.tolist(), factor.grad.tolist()]
    return {"rows": all_rows.tolist(), "numbers": all_numbers.tolist(), "nothing": list(nothing.shape), "gradients": gradients}


def gradients_of(student: ImageTextStudent, samples: ReinforcedSamples, collection: Collection, gradient_cache: bool) -> dict[str, Tensor]:
    """The terms and all gradients of two batches, of five images and of one, which leaves nothing for a second process."""
    settings = TRAINING.model_copy(update={"gradient_cache": gradient_cache})
    loss = ReinforcedLoss(student.model, samples, settings, scale=LearnedScale(7.0))  # type: ignore[arg-type]
    group, found = processes(), {}
    batcher = PartBatcher(ReinforcedBatcher(student.model, samples, collection), 6, 5, group)
    for step in range(2):
        loss.zero_grad()
        features = batcher([{"label": step * group.count + group.rank}])
        label = features.pop("label")
        terms = loss([_of(features, side) for side in ("query_", "document_0_")], label)
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        if group.count > 1:
            average_gradients(loss)
        found |= {f"{step} {name}": term.detach() for name, term in terms.items()}
        found |= {f"{step} {name}": weight.grad.clone() for name, weight in loss.named_parameters() if weight.grad is not None}
    return found


def _of(features: Mapping[str, Any], side: str) -> dict[str, Any]:
    return {name.removeprefix(side): value for name, value in features.items() if name.startswith(side)}


def train_case(
    name: str, student: ImageTextStudent, samples: ReinforcedSamples, collection: Collection, folder: Path
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Weights and curve of a training whose measure gets better with every validation."""
    qualities = iter([0.1, 0.2, 0.3])
    training = TRAINING.model_copy(update=CASES[name][1])
    supervision = Supervision(lambda: {"validation": next(qualities)})
    curve = train_student(student.model, samples, collection, training, folder, 7, supervision)  # type: ignore[arg-type]
    return {key: value.clone(memory_format=torch.contiguous_format) for key, value in student.model.state_dict().items()}, curve


def main(folder: Path) -> None:
    """All of it in each process; what they found is written beside what they began with."""
    silence_libraries()
    students = {name: student_for(folder, name) for name in CASES}  # before there is a process group: transformers would let the first one alone write a folder
    torch.distributed.init_process_group("gloo")
    rank = processes().rank
    values = json.loads((folder / "values.json").read_text(encoding="utf-8"))
    pipeline = Pipeline(experiment_from(values), folder / f"work-{rank}")
    samples = samples_from(folder / "dataset", pipeline, epochs=TRAINING.epochs)
    for cached in (False, True):
        save_file(gradients_of(student_for(folder), samples, pipeline.collection, cached), folder / f"gradients-{int(cached)}-{rank}.safetensors")
    found: dict[str, Any] = {"gathered": gathered()}
    for name, student in students.items():
        trained, found[name] = train_case(name, student, samples, pipeline.collection, folder / name)
        save_file(trained, folder / f"{name}-{rank}.safetensors")
    write_json(folder / f"found-{rank}.json", found)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
