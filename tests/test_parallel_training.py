"""Two real processes train what one would, to rounding; only the first one writes, and none waits for ever."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from retriever.errors import ConfigError
from retriever.steps.train import read_curve
from retriever.training.parallel import PartBatcher, Processes, check_batch_size, processes, shared
from retriever.workers.processes import refuse_several, several
from tests.forked_commands import RETRIEVER, ForkedCommands
from tests.parallel_material import CASES, load, train_case
from tests.tiny_experiment import STEPS, command, process_environment, write_experiment

CHANGES = {
    "losses = { kl_divergence = 1.0, contrastive = 0.5 }": "losses = { kl_divergence = 1.0 }",  # in-batch negatives are those of a part
    "learning_rate = 2e-2": "learning_rate = 1e-3\ncheckpoint_steps = 1",
}
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
"""Adam divides by the size of a gradient, so that rounding counts for more where a gradient is small."""


@pytest.fixture(scope="module")
def steady_encoder(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder without dropout, which every process draws for itself."""
    folder = tmp_path_factory.mktemp("steady") / "encoder"
    shutil.copytree(encoder_folder, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine; a hang is an error too."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *map(str, arguments)]
    environment = process_environment(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg")
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300, check=False)


# Who gets what


@given(start=st.integers(0, 1000), size=st.integers(1, 100), count=st.integers(1, 9))
def test_parts_are_the_whole_in_order_and_of_nearly_equal_size(start: int, size: int, count: int) -> None:
    parts = [Processes(rank, count).part_of(start, start + size) for rank in range(count)]
    assert [number for part in parts for number in part] == list(range(start, start + size))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


def parts_of_a_run(samples: int, batch_size: int, count: int) -> list[list[tuple[list[int], float]]]:
    """Step -> process -> sample numbers and weight, with rows dealt out one by one as accelerate deals them."""
    batchers = [PartBatcher(lambda batch: {"label": {"samples": batch}}, samples, batch_size, Processes(rank, count)) for rank in range(count)]
    rows = batchers[0].dataset()["label"]
    found = []
    for first in range(0, len(rows), count):
        labels = [batcher([{"label": rows[first + rank]}])["label"] for rank, batcher in enumerate(batchers)]
        found.append([([one["label"] for one in label["samples"]], float(label["weight"])) for label in labels])
    return found


def test_the_parts_of_a_small_run() -> None:
    assert parts_of_a_run(samples=7, batch_size=3, count=2) == [
        [([0, 1], pytest.approx(4 / 3)), ([2], pytest.approx(2 / 3))],
        [([3, 4], pytest.approx(4 / 3)), ([5], pytest.approx(2 / 3))],
        [([6], 2.0), ([6], 0.0)],
    ]


@given(samples=st.integers(1, 40), batch_size=st.integers(1, 12), count=st.integers(1, 4))
def test_weighted_means_of_parts_average_to_the_mean_of_the_batch(samples: int, batch_size: int, count: int) -> None:
    for step, parts in enumerate(parts_of_a_run(samples, batch_size, count)):
        batch = range(step * batch_size, min((step + 1) * batch_size, samples))
        mean = sum(weight * sum(numbers) / len(numbers) for numbers, weight in parts) / count
        assert mean == pytest.approx(sum(batch) / len(batch), rel=1e-5)


def test_a_batch_smaller_than_the_number_of_processes_is_refused() -> None:
    check_batch_size(4, 4)
    with pytest.raises(ConfigError, match=r"training\.batch_size: 3 samples cannot be divided among 4 processes"):
        check_batch_size(3, 4)


def test_alone_nothing_is_shared_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes() == Processes(0, 1)
    assert shared("mine") == "mine"
    assert not several()
    refuse_several("teaching a teacher", "retriever teach")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert several()
    with pytest.raises(ConfigError, match=r"teaching a teacher: one process does this alone, and there are 2\. Run first, without torchrun: retriever teach"):
        refuse_several("teaching a teacher", "retriever teach")


# The training


@pytest.fixture(scope="module")
def together(steady_encoder: Path, forked_commands: ForkedCommands, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder with the weights of both processes, and what the first one found."""
    folder = tmp_path_factory.mktemp("together")
    done = forked_commands.together("-m", "tests.parallel_material", steady_encoder, folder)
    assert done.status == 0, done.err
    return folder, json.loads((folder / "found.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_gradients_are_averaged_and_a_weight_that_nobody_used_has_none(together: tuple[Path, dict[str, Any]]) -> None:
    _, found = together
    assert found["both"] == [1.5, 3.0]  # of (1, 2) and (2, 4)
    assert found["one"] == [2.0, 4.0]  # of nothing and (4, 8)
    assert found["none"] is None


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_trains(together: tuple[Path, dict[str, Any]], steady_encoder: Path, tmp_path: Path, name: str) -> None:
    folder, found = together
    weights, curve = train_case(name, load(name, steady_encoder), tmp_path)
    assert len(curve) == len(found[name])
    for alone, both in zip(curve, found[name], strict=True):
        assert both == pytest.approx(alone, rel=1e-4, abs=1e-6)
    if name != "cross_encoder":  # the gradients of a new head are so small that Adam makes steps of rounding
        assert_close(load_file(folder / f"{name}-0.safetensors"), weights)


@pytest.mark.slow
def test_all_processes_have_the_same_weights_when_nothing_is_better_than_the_last(together: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = together
    first, second = (load_file(folder / f"cached_late_interaction-{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **ROUNDING, msg=name)


# The command


@pytest.fixture(scope="module")
def alone(steady_encoder: Path, shared_beir_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment that one process did."""
    folder = tmp_path_factory.mktemp("alone")
    done = command("train", write_experiment(folder, shared_beir_folder, steady_encoder, CHANGES), "--work", folder / "work")
    assert done.status == 0, done.err
    return folder / "work" / "tiny"


def assert_same_student(experiment: Path, alone: Path) -> None:
    for both, one in zip(read_curve(experiment / "train"), read_curve(alone / "train"), strict=True):
        assert both == pytest.approx(one, rel=1e-4, abs=1e-6)
    assert_close(*(load_file(folder / "train" / "student" / "model.safetensors") for folder in (experiment, alone)))


@pytest.mark.slow
def test_two_processes_of_distill_make_every_step_once_and_the_same_student(
    tmp_path: Path, shared_beir_folder: Path, steady_encoder: Path, alone: Path, forked_commands: ForkedCommands
) -> None:
    file = write_experiment(tmp_path, shared_beir_folder, steady_encoder, CHANGES)
    done = forked_commands.together(*RETRIEVER, "distill", file, "--work", tmp_path / "work")
    assert done.status == 0, done.err
    for step in STEPS:
        told = "BM25 index: " if step == "bm25" else f"{step}: done, "  # making that one is told by its bar
        assert f"\n{done.err}".count(f"\n{told}") == 1, done.err
    assert done.out.count("report: ") == 1
    assert_same_student(tmp_path / "work" / "tiny", alone)
    assert not list((tmp_path / "work" / "tiny").glob(".*.partial"))


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_one_alone_goes_on_from_the_checkpoint(
    tmp_path: Path, shared_beir_folder: Path, steady_encoder: Path, alone: Path
) -> None:
    file = write_experiment(tmp_path, shared_beir_folder, steady_encoder, CHANGES)
    died = torchrun("tests.dying_process", "train", file, "--work", tmp_path / "work")
    assert died.returncode != 0
    assert "training (train)" not in died.stdout
    partial = tmp_path / "work" / "tiny" / ".train.partial"
    assert sorted(path.name for path in (partial / "checkpoints").iterdir()) == ["checkpoint-1", "checkpoint-2"]
    done = command("train", file, "--work", tmp_path / "work")
    assert done.status == 0, done.err
    assert_same_student(tmp_path / "work" / "tiny", alone)


@pytest.mark.slow
def test_a_mistake_that_the_first_process_meets_is_told_once(
    tmp_path: Path, shared_beir_folder: Path, steady_encoder: Path, forked_commands: ForkedCommands
) -> None:
    file = write_experiment(tmp_path, shared_beir_folder, steady_encoder, {**CHANGES, "batch_size = 8": "batch_size = 1"})
    done = forked_commands.together(*RETRIEVER, "train", file, "--work", tmp_path / "work")
    assert done.status != 0
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert lines == ["error: training.batch_size: 1 samples cannot be divided among 2 processes. Set 2 at least, or start fewer"]
