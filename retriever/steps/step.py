"""Steps of an experiment: each has a folder and a manifest, and is not repeated while its inputs stay the same."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from retriever.errors import RetrieverError
from retriever.files import explain_full_disk, fingerprint, lock, recover_folder, replace_folder, write_json

MANIFEST = "manifest.json"
PACKAGES = ("retriever-distill", "torch", "transformers", "sentence-transformers", "faiss-cpu", "faiss-gpu-cu12", "ranx", "bm25s", "numpy")


LEFTOVERS = ("best", "checkpoints", "frozen")
"""Folders from which a stopped training goes on; taken away when its step is done."""


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step is made from; equal steps give equal results.

    Attributes:
        name: its folder under the experiment's.
        inputs: fingerprints of what it reads.
        settings: of the experiment file, those it depends on.
        seed: of the experiment.
    """

    name: str
    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    seed: int

    @property
    def key(self) -> str:
        """Sixteen hexadecimal digits that change with inputs, settings or seed."""
        return fingerprint({"name": self.name, "inputs": dict(self.inputs), "settings": dict(self.settings), "seed": self.seed})


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished step: its folder and what its work returned."""

    folder: Path
    key: str
    result: dict[str, Any]
    done_now: bool


def run_step(step: Step, parent: Path, work: Callable[[Path], dict[str, Any] | None], in_place: bool = False) -> Done:
    """The finished step, done now unless its folder under `parent` holds it already.

    The work happens in a hidden folder beside the final one, which it replaces when it is done: a stop leaves the old
    result whole, and the same step continues in the hidden folder next time. Work that was stopped with other inputs
    or settings is thrown away; work that was done, and only not put in its place yet, is not done again.

    Args:
        step: what it is made from.
        parent: the experiment's folder.
        work: fills the folder it is given and returns what the manifest shall remember.
        in_place: the folder is added to, never replaced (the store of scores).

    Raises:
        RetrieverError: another process is at work on the same step.
    """
    final = parent / step.name
    if found := _finished(step, final):
        recover_folder(final)
        return found
    with lock(parent / f".{step.name}.lock", f"making the step {step.name}"):
        recover_folder(final)  # under the lock: another process may stand between the two renames
        if found := _finished(step, final):
            return found
        folder = final if in_place else parent / f".{step.name}.partial"
        with explain_full_disk(folder):
            done = None if in_place else _finished(step, folder)  # a stop came before it took its place
            result = done.result if done else _work(step, folder, work, in_place)
            if not in_place:
                remove_leftovers(folder)
                replace_folder(folder, final)
    return Done(final, step.key, result, done_now=True)


def _work(step: Step, folder: Path, work: Callable[[Path], dict[str, Any] | None], in_place: bool) -> dict[str, Any]:
    """Lets `work` fill a folder and remembers what it returned; from the manifest on, the step is done."""
    if not in_place:
        _empty_unless_begun(folder, step)
    folder.mkdir(parents=True, exist_ok=True)
    result = work(folder) or {}
    write_json(folder / MANIFEST, {**dataclasses.asdict(step), "key": step.key, "result": result, "versions": versions()})
    return result


def forget(done: Done) -> None:
    """Lets a step be done again the next time it is asked for: what it left cannot be opened."""
    (done.folder / MANIFEST).unlink()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """A step folder's manifest, or nothing where the step is not finished.

    Raises:
        RetrieverError: the manifest is there and cannot be read.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RetrieverError(f"{path}: not a manifest ({error}). Remove {folder} and run the step again") from error
    if not isinstance(manifest, dict) or not {"key", "result"} <= manifest.keys():
        raise RetrieverError(f"{path}: not a manifest. Remove {folder} and run the step again")
    return manifest


def changed(step: Step, parent: Path) -> list[str]:
    """What differs from the finished step in its folder, a line each: inputs by name, settings with both values; empty when nothing is there."""
    old = read_manifest(parent / step.name)
    if old is None:
        return []
    inputs, settings = (_differences(old.get(part, {}), json.loads(json.dumps(getattr(step, part)))) for part in ("inputs", "settings"))
    seed = [f"seed {old.get('seed')} -> {step.seed}"] if old.get("seed") != step.seed else []
    return [*inputs, *(f"{name} {before} -> {now}" for name, (before, now) in settings.items()), *seed]


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (before.get(name), now.get(name)) for name in sorted({*before, *now}) if before.get(name) != now.get(name)}


def versions() -> dict[str, str]:
    """Versions of the packages whose code decides results."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _finished(step: Step, folder: Path) -> Done | None:
    found = read_manifest(folder)
    return Done(folder, step.key, found["result"], done_now=False) if found and found["key"] == step.key else None


def remove_leftovers(folder: Path) -> None:
    """Takes away what only a stop would have needed, once the manifest says that none can come any more."""
    (folder / "step.json").unlink(missing_ok=True)
    for name in LEFTOVERS:
        shutil.rmtree(folder / name, ignore_errors=True)


def _empty_unless_begun(folder: Path, step: Step) -> None:
    """Empties the hidden folder when what lies there was begun for another key."""
    try:
        begun = json.loads((folder / "step.json").read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        begun = None
    if begun != step.key:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / "step.json", {"key": step.key})
