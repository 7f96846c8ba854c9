"""Reinforced training by two real processes: the batch of both is compared as a whole, so that they train what one trains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed

from retriever.config import experiment_from
from retriever.errors import RetrieverError
from retriever.files import write_json
from retriever.pipeline import Pipeline
from retriever.reinforced import step as reinforce_step
from retriever.reinforced.step import reinforce
from retriever.steps.train import read_curve
from retriever.students.image_text import load_folder
from retriever.training import parallel
from retriever.training.parallel import Processes, gather_rows
from retriever.training.reinforced_batches import ReinforcedSamples
from retriever.workers.orders import Order, from_bytes, to_bytes
from tests.forked_commands import RETRIEVER, ForkedCommands
from tests.image_text_material import save_vit
from tests.reinforced_material import CASES, TEACHERS, TRAINING, gradients_of, samples_from, save_material, student_for, train_case, without_dropout
from tests.test_parallel_training import assert_close
from tests.tiny_experiment import command


@pytest.fixture(scope="module")
def folder(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Towers without dropout, the squares, and the dataset that the teachers made of them."""
    folder = tmp_path_factory.mktemp("reinforced")
    vision = without_dropout(save_vit(folder / "vit"), folder / "vision")
    values = save_material(folder, vision, without_dropout(encoder_folder, folder / "encoder"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reinforce_step, "load_teachers", lambda *_: TEACHERS)
        shutil.copytree(reinforce(Pipeline(experiment_from(values), folder / "work")).folder, folder / "dataset")
    write_json(folder / "values.json", values)
    return folder


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return Pipeline(experiment_from(json.loads((folder / "values.json").read_text(encoding="utf-8"))), folder / "work")


@pytest.fixture(scope="module")
def samples(folder: Path, pipeline: Pipeline) -> ReinforcedSamples:
    return samples_from(folder / "dataset", pipeline, epochs=TRAINING.epochs)


# What is known without another process


def test_one_process_has_all_rows() -> None:
    rows = torch.ones(2, 3, requires_grad=True)
    assert gather_rows([rows])[0] is rows


def test_an_order_brings_the_same_draws_of_the_same_dataset(samples: ReinforcedSamples, tmp_path: Path) -> None:
    found = from_bytes(to_bytes(Order(samples, TRAINING, tmp_path, 7, None))).samples
    assert isinstance(found, ReinforcedSamples)
    assert found.dataset.fingerprint == samples.dataset.fingerprint
    assert list(found.doc_ids) == list(samples.doc_ids)
    for name in ("augmentations", "captions", "synthetic"):
        np.testing.assert_array_equal(getattr(found, name), getattr(samples, name), strict=True)


def test_a_process_that_has_ended_is_told_where_rows_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> None:
        raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1")

    monkeypatch.setattr(parallel, "processes", lambda: Processes(0, 2))
    monkeypatch.setattr(distributed, "all_gather", closed)
    with pytest.raises(RetrieverError, match="another of the 2 processes has ended"):
        gather_rows([torch.zeros(1, 2)])


# Two processes


@pytest.fixture(scope="module")
def together(folder: Path, forked_commands: ForkedCommands) -> tuple[Path, list[dict[str, Any]]]:
    """The folder with the gradients and weights of both processes, and what each found."""
    done = forked_commands.together("-m", "tests.reinforced_material", folder)
    assert done.status == 0, done.err
    return folder, [json.loads((folder / f"found-{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.mark.slow
def test_rows_are_gathered_in_the_order_of_processes_and_gradients_average_to_those_of_one(together: tuple[Path, list[dict[str, Any]]]) -> None:
    _, (first, second) = together
    for found in (first["gathered"], second["gathered"]):
        assert (found["rows"], found["numbers"], found["nothing"]) == ([[1.0], [2.0], [3.0]], [7], [0, 4])
    assert first["gathered"]["gradients"] == [[[2.0], [4.0]], 14.0]  # 1 and 2, times two processes; the factor's is 1 + 4 + 9
    assert second["gathered"]["gradients"] == [[[6.0]], 14.0]


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(
    together: tuple[Path, list[dict[str, Any]]], pipeline: Pipeline, samples: ReinforcedSamples, cached: bool
) -> None:
    folder, _ = together
    alone = gradients_of(student_for(folder), samples, pipeline.collection, cached)
    assert float(alone["0 scale.logarithm"]) != 0
    assert float(alone["1 reinforced"]) == 0  # an image alone has nothing to be told from
    for rank in range(2):
        found = load_file(folder / f"gradients-{int(cached)}-{rank}.safetensors")
        assert found.keys() == alone.keys()
        for name, gradient in alone.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_trains(
    together: tuple[Path, list[dict[str, Any]]], pipeline: Pipeline, samples: ReinforcedSamples, tmp_path: Path, name: str
) -> None:
    folder, (found, _) = together
    weights, curve = train_case(name, student_for(folder, name), samples, pipeline.collection, tmp_path / "run")
    assert len(curve) == len(found[name])
    for alone, both in zip(curve, found[name], strict=True):
        assert both == pytest.approx(alone, rel=1e-4, abs=1e-6)
    assert_same_weights(load_file(folder / f"{name}-0.safetensors"), weights)


def assert_same_weights(*both: dict[str, Tensor]) -> None:
    """But for the biases of keys, which change no softmax: their gradients are rounding, of which Adam makes whole steps."""
    assert_close(*({name: weight for name, weight in one.items() if not name.endswith(("k_proj.bias", "key.bias"))} for one in both))


# The command

EXPERIMENT = """\
name = "squares"
collection.path = "{folder}/squares"
candidates = {{ sources = ["student"], depth = 5 }}
student = {{ kind = "image_text", image_model = "{folder}/vision", text_model = "{folder}/encoder", dimensions = 12, image_size = 16 }}
evaluation.latency_queries = 2
teacher = [{{ kind = "embedding" }}]

[training]
documents_per_query = 2
epochs = 2
batch_size = 3
learning_rate = 1e-3
precision = "fp32"
learn_scale = true
reinforced = "{folder}/dataset"
losses = {{ reinforced = 0.7, contrastive = 0.3 }}
"""


@pytest.mark.slow
def test_two_processes_of_train_make_the_student_that_one_process_makes(folder: Path, tmp_path: Path, forked_commands: ForkedCommands) -> None:
    (tmp_path / "squares.toml").write_text(EXPERIMENT.format(folder=folder))
    both = forked_commands.together(*RETRIEVER, "train", tmp_path / "squares.toml", "--work", tmp_path / "both")
    assert both.status == 0, both.err
    alone = command("train", tmp_path / "squares.toml", "--work", tmp_path / "alone")
    assert alone.status == 0, alone.err
    trained = [tmp_path / work / "squares" / "train" for work in ("both", "alone")]
    for found, expected in zip(*map(read_curve, trained), strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert_same_weights(*(load_folder(one / "student").model.state_dict() for one in trained))
