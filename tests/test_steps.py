"""Steps: done once, done again when something changes, and mended after any stop."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retriever.errors import RetrieverError
from retriever.files import lock, write_json
from retriever.steps.step import Done, Step, changed, forget, read_manifest, run_step, versions

STEP = Step("train", {"start": "abc", "target": "def"}, {"epochs": 2, "losses": {"margin_mse": 1.0}}, 1)


class Work:
    """Writes a file, and counts how often it was asked to."""

    def __init__(self, content: str = "content", stop_before: str | None = None) -> None:
        self.content = content
        self.stop_before = stop_before
        self.found: list[set[str]] = []

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.found.append({path.name for path in folder.iterdir()} - {"step.json"})
        for name in ("first", "second"):
            if name == self.stop_before:
                raise KeyboardInterrupt
            (folder / name).write_text(self.content)
        return {"said": self.content}


def stopped(step: Step, parent: Path, work: Callable[[Path], dict[str, Any]]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_step(step, parent, work)


def test_a_step_is_done_once_and_then_only_opened(tmp_path: Path) -> None:
    work = Work()
    assert run_step(STEP, tmp_path, work) == Done(tmp_path / "train", STEP.key, {"said": "content"}, done_now=True)
    written = (tmp_path / "train" / "manifest.json").stat().st_mtime_ns
    assert run_step(STEP, tmp_path, work) == Done(tmp_path / "train", STEP.key, {"said": "content"}, done_now=False)
    assert len(work.found) == 1
    assert (tmp_path / "train" / "manifest.json").stat().st_mtime_ns == written


def test_the_manifest_says_what_the_step_was_made_from(tmp_path: Path) -> None:
    run_step(STEP, tmp_path, Work())
    manifest = read_manifest(tmp_path / "train")
    assert manifest
    assert manifest.pop("versions") == versions()
    assert {"torch", "numpy", "sentence-transformers"} <= versions().keys()
    assert manifest == {
        "name": "train",
        "inputs": {"start": "abc", "target": "def"},
        "settings": {"epochs": 2, "losses": {"margin_mse": 1.0}},
        "seed": 1,
        "key": STEP.key,
        "result": {"said": "content"},
    }
    assert {path.name for path in (tmp_path / "train").iterdir()} == {"first", "second", "manifest.json"}


OTHERS = [
    Step("train", {"start": "abd", "target": "def"}, STEP.settings, 1),
    Step("train", STEP.inputs, {"epochs": 3, "losses": {"margin_mse": 1.0}}, 1),
    Step("train", STEP.inputs, {"epochs": 2, "losses": {"margin_mse": 0.5}}, 1),
    Step("train", STEP.inputs, {"epochs": 2}, 1),
    Step("train", STEP.inputs, STEP.settings, 2),
]
CHANGES = [["start"], ["epochs 2 -> 3"], ["losses {'margin_mse': 1.0} -> {'margin_mse': 0.5}"], ["losses {'margin_mse': 1.0} -> None"], ["seed 1 -> 2"]]


@pytest.mark.parametrize(("other", "said"), list(zip(OTHERS, CHANGES, strict=True)), ids=[change[0] for change in CHANGES])
def test_a_step_is_done_again_when_an_input_a_setting_or_the_seed_changes(tmp_path: Path, other: Step, said: list[str]) -> None:
    run_step(STEP, tmp_path, Work("old"))
    assert changed(other, tmp_path) == said
    assert run_step(other, tmp_path, Work("new")).result == {"said": "new"}
    assert changed(other, tmp_path) == []
    assert (tmp_path / "train" / "first").read_text() == "new"


def test_nothing_has_changed_where_nothing_was_done(tmp_path: Path) -> None:
    assert changed(STEP, tmp_path) == []


def test_a_stopped_step_goes_on_with_what_it_had(tmp_path: Path) -> None:
    stopped(STEP, tmp_path, Work(stop_before="second"))
    assert not (tmp_path / "train").exists()
    work = Work()
    assert run_step(STEP, tmp_path, work).done_now
    assert work.found == [{"first"}]


def test_what_was_stopped_with_other_settings_is_thrown_away(tmp_path: Path) -> None:
    stopped(OTHERS[1], tmp_path, Work(stop_before="second"))
    work = Work()
    run_step(STEP, tmp_path, work)
    assert work.found == [set()]


def test_a_stop_leaves_the_old_result_in_its_place(tmp_path: Path) -> None:
    run_step(STEP, tmp_path, Work("old"))
    stopped(OTHERS[0], tmp_path, Work("new", stop_before="second"))
    assert (tmp_path / "train" / "first").read_text() == "old"
    assert not run_step(STEP, tmp_path, Work()).done_now


@pytest.mark.parametrize("renames", [1, 2])
def test_a_stop_between_the_two_renames_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int) -> None:
    run_step(STEP, tmp_path, Work("old"))
    rename, moved = os.replace, []

    def stop_after(source: Path, target: Path) -> None:
        rename(source, target)
        moved.extend([target] if Path(source).is_dir() or Path(target).is_dir() else [])
        if len(moved) == renames:
            raise KeyboardInterrupt

    monkeypatch.setattr("retriever.files.os.replace", stop_after)
    stopped(OTHERS[0], tmp_path, Work("new"))
    monkeypatch.undo()
    done = run_step(OTHERS[0], tmp_path, Work("newest"))
    assert done.result == {"said": "new"}  # what was done is not done again
    assert (done.folder / "first").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"train", ".train.lock"}


def test_what_a_stop_would_have_needed_is_there_until_the_step_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(folder: Path) -> None:
        (folder / "checkpoints").mkdir(exist_ok=True)

    def stop(*_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("retriever.steps.step.write_json", lambda path, value: write_json(path, value) if path.name == "step.json" else stop())
    stopped(STEP, tmp_path, work)
    assert (tmp_path / ".train.partial" / "checkpoints").is_dir()
    monkeypatch.undo()
    monkeypatch.setattr("retriever.steps.step.replace_folder", stop)
    stopped(STEP, tmp_path, work)
    monkeypatch.undo()
    done = run_step(STEP, tmp_path, Work("never"))
    assert [path.name for path in done.folder.iterdir()] == ["manifest.json"]


def test_a_stop_between_the_two_renames_keeps_the_old_step_too(tmp_path: Path) -> None:
    run_step(STEP, tmp_path, Work("old"))
    (tmp_path / "train").rename(tmp_path / ".train.old")
    work = Work()
    assert run_step(STEP, tmp_path, work) == Done(tmp_path / "train", STEP.key, {"said": "old"}, done_now=False)
    assert work.found == []


def test_a_folder_that_is_added_to_keeps_what_it_holds(tmp_path: Path) -> None:
    run_step(STEP, tmp_path, Work("old"), in_place=True)
    (tmp_path / "train" / "shard").write_text("kept")
    work = Work("new")
    run_step(OTHERS[0], tmp_path, work, in_place=True)
    assert work.found == [{"first", "second", "shard", "manifest.json"}]
    assert (tmp_path / "train" / "shard").read_text() == "kept"


def test_a_second_process_is_told_in_one_line(tmp_path: Path) -> None:
    with lock(tmp_path / ".train.lock", "making the step train"), pytest.raises(RetrieverError) as caught:
        run_step(STEP, tmp_path, Work())
    assert str(caught.value) == f"{tmp_path}: process {os.getpid()} is already making the step train here. Wait for it, or stop it first"


def test_a_finished_step_is_opened_while_another_process_holds_the_lock(tmp_path: Path) -> None:
    run_step(STEP, tmp_path, Work())
    with lock(tmp_path / ".train.lock", "making the step train"):
        assert not run_step(STEP, tmp_path, Work()).done_now


def test_what_another_process_finished_meanwhile_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Work("other's")

    def finish_first(final: Path) -> None:
        monkeypatch.undo()
        run_step_unlocked(other, final)

    def run_step_unlocked(work: Work, final: Path) -> None:
        final.mkdir()
        result = work(final)
        (final / "manifest.json").write_text(json.dumps({"key": STEP.key, "result": result}))

    monkeypatch.setattr("retriever.steps.step.recover_folder", finish_first)
    ours = Work()
    assert run_step(STEP, tmp_path, ours).result == {"said": "other's"}
    assert ours.found == []


def test_a_forgotten_step_is_done_again(tmp_path: Path) -> None:
    forget(run_step(STEP, tmp_path, Work("damaged")))
    assert run_step(STEP, tmp_path, Work("good")) == Done(tmp_path / "train", STEP.key, {"said": "good"}, done_now=True)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"key": "abc"}', "\x00\x00"])
def test_a_damaged_manifest_is_named_with_what_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "manifest.json").write_text(content)
    with pytest.raises(RetrieverError) as caught:
        run_step(STEP, tmp_path, Work())
    assert str(caught.value).startswith(f"{tmp_path / 'train' / 'manifest.json'}: not a manifest")
    assert str(caught.value).endswith(f". Remove {tmp_path / 'train'} and run the step again")


def test_a_full_disk_is_one_line_and_the_step_goes_on_afterwards(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "first").write_text("kept")
        raise ValueError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(RetrieverError, match=r"\.train\.partial: the disk is full"):
        run_step(STEP, tmp_path, fill)
    work = Work()
    run_step(STEP, tmp_path, work)
    assert work.found == [{"first"}]
