"""Images of the next batch that are read while a step computes: the same batches, each image read once, errors where they belong."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retriever.collection import Collection
from retriever.errors import DataError
from retriever.settings.training import TrainingSettings
from retriever.training import batches
from retriever.training.ahead import ReadAhead
from retriever.training.batches import Batcher
from retriever.training.towers import FrozenTowers
from tests.image_text_material import open_squares, save_vit, student_of
from tests.test_momentum import SETTINGS, lessons_of


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vit(tmp_path_factory.mktemp("towers") / "vit")


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return open_squares(tmp_path_factory.mktemp("squares"))


def numbers_of(batch: int, samples: int, size: int = 6) -> list[dict[str, int]]:
    return [{"label": number} for number in range(batch * size, min(batch * size + size, samples))]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return all(same(one[key], other[key]) for key in one) and one.keys() == other.keys() if isinstance(one, dict) else bool(one == other)


# What is begun


def test_the_next_batch_is_a_batch_size_further_and_there_is_none_after_the_last() -> None:
    with ThreadPoolExecutor(1) as pool:
        ahead = ReadAhead(pool, 4)
        assert ahead.following(np.array([0, 1, 2, 3]), 7).tolist() == [4, 5, 6]
        assert ahead.following(np.array([2, 3]), 8).tolist() == [6, 7]  # the second process's part of a batch
        assert ahead.following(np.array([4, 5, 6]), 7).tolist() == []


def test_what_was_begun_is_waited_for_and_anything_else_is_made_at_once() -> None:
    begun = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        ahead = ReadAhead(pool, 4)
        assert ahead.take("a", lambda: 1) == 1
        ahead.begin({"known": 2}, {"a": lambda: begun.wait(10) and 3})
        assert ahead.take("known", lambda: 1) == 2  # while the thread is not done
        begun.set()
        assert ahead.take("a", lambda: 1) == 3
        assert ahead.take("b", lambda: 4) == 4
        ahead.begin({}, {})
        assert ahead.take("a", lambda: 5) == 5


# Batches


@pytest.mark.parametrize("frozen", [False, True])
def test_batches_are_the_same_and_each_image_of_the_next_one_is_read_by_the_other_thread(
    vision: Path, encoder_folder: Path, squares: Collection, monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    student = student_of(vision, encoder_folder, frozen_image=frozen)
    samples = lessons_of(squares, TrainingSettings.model_validate({**SETTINGS, "epochs": 1}))
    read, plain = batches.read_image, Batcher(student.model, samples, squares, images_together=4, towers=FrozenTowers(student.model))
    steps = -(-len(samples) // 6)
    expected = [plain(numbers_of(step, len(samples))) for step in range(steps)]
    threads: list[list[str]] = [[] for _ in range(steps)]
    with ThreadPoolExecutor(1, "images") as pool:
        ahead = Batcher(student.model, samples, squares, images_together=4, towers=FrozenTowers(student.model), ahead=ReadAhead(pool, 6))
        for step in range(steps):
            monkeypatch.setattr(batches, "read_image", lambda path: threads[step].append(threading.current_thread().name) or read(path))  # noqa: B023
            made = ahead(numbers_of(step, len(samples)))
            pool.submit(lambda: None).result()  # the thread is done with the next one
            assert same(made, expected[step])
    assert any(name.startswith("images") for name in threads[0])
    assert not any(name.startswith("Main") for names in threads[1:] for name in names)


def test_an_image_that_cannot_be_read_stops_the_batch_that_holds_it(vision: Path, encoder_folder: Path, squares: Collection, monkeypatch: Any) -> None:
    student, samples = student_of(vision, encoder_folder), lessons_of(squares, TrainingSettings.model_validate(SETTINGS))
    with ThreadPoolExecutor(1) as pool:
        batcher = Batcher(student.model, samples, squares, ahead=ReadAhead(pool, 6))

        def damaged(path: Path) -> None:
            raise DataError(f"{path}: damaged")

        read = batches.read_image
        monkeypatch.setattr(batches, "read_image", lambda path: read(path) if threading.current_thread() is threading.main_thread() else damaged(path))
        batcher(numbers_of(0, len(samples)))
        with pytest.raises(DataError, match="damaged"):
            batcher(numbers_of(1, len(samples)))
