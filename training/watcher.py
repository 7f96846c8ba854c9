"""What goes on beside the training loop: validation, the best model, the curve, checkpoints to go on from, and progress told."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from retriever.errors import DataError
from retriever.files import recover_folder, replace_folder, write_json
from retriever.training import parallel
from retriever.training.events import EventFiles
from retriever.training.frozen import CacheProgress
from retriever.training.lora import Adapters
from retriever.training.scale import LearnedScale
from retriever.training.sparsity import SparsityController

Validate = Callable[[], Mapping[str, float]]
"""What a model reaches: "validation", higher is better, and what else the curve should show; "excess" above 0 rules it out while there is a better one."""

EVENTS = "tensorboard"
"""The folder of the event files."""

SPARSITY, SCALE = "sparsity.json", "scale.json"
"""The states of the control of active dimensions, and of a learned scale, at the last checkpoints, by step."""


@dataclasses.dataclass(frozen=True)
class TrainingProgress:
    """Where the loop is, for a progress bar: steps done and in all, the last loss, the best validation, and whether that was the last step before its time.

    While texts go through frozen layers, before the first step, only `cached` tells something.
    """

    step: int
    steps: int
    loss: float | None
    validation: float | None
    stopped: bool = False
    cached: CacheProgress | None = None


@dataclasses.dataclass(frozen=True)
class Supervision:
    """What goes on beside the loop.

    Attributes:
        validate: measures the model; it is asked at step 0 too.
        progress: called at every step.
        sparsity: steers the active dimensions of a sparse student; it goes on where a stop left it.
    """

    validate: Validate
    progress: Callable[[TrainingProgress], None] | None = None
    sparsity: SparsityController | None = None


def step_of(checkpoint: Path | None) -> int:
    """The steps that were done when a checkpoint was written."""
    return int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; a torn one is removed."""
    for path in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))  # the trainer writes this file last
            return path
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(path)
    return None


def best_point(curve: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """The validation whose model is kept; of equal ones the first."""
    return max((point for point in curve if "validation" in point), key=rank)


def rank(point: Mapping[str, float]) -> tuple[float, float]:
    """What a validation is chosen by: first that nothing is in excess, or as little as can be, then quality."""
    return -point.get("excess", 0.0), point["validation"]


class Watcher(TrainerCallback):
    """Validates, keeps the best model, draws the curve and reports progress."""

    def __init__(
        self,
        folder: Path,
        supervision: Supervision,
        steps: frozenset[int],
        patience: int | None = None,
        adapters: Adapters | None = None,
        scale: LearnedScale | None = None,
    ) -> None:
        self.folder = folder
        self.validate = supervision.validate
        self.progress = supervision.progress
        self.sparsity = supervision.sparsity
        self.steps = steps
        self.patience = patience
        self.adapters = adapters
        self.scale = scale
        self.events: EventFiles | None = None
        self.stateful = {name: one for name, one in ((SPARSITY, self.sparsity), (SCALE, scale)) if one}
        self.states: dict[str, dict[str, dict[str, float]]] = {name: {} for name in self.stateful}
        self.curve: list[dict[str, float]] = []
        self.loss: float | None = None

    @property
    def spent(self) -> bool:
        """Whether patience is at its end: as many validations as it has brought no gain."""
        points = [point for point in self.curve if "validation" in point]
        return bool(self.patience and points) and len(points) - 1 - points.index(best_point(points)) >= (self.patience or 0)  # type: ignore[arg-type]

    def resume(self, model: Any, checkpoint: Path | None, events: bool = False) -> None:
        """Takes up the curve where the checkpoint left it; without one, begins it with the untrained model."""
        step = step_of(checkpoint)
        self.events = EventFiles(self.folder / EVENTS, step) if events else None
        recover_folder(self.folder / "best")
        path = self.folder / "curve.json"
        if checkpoint and path.exists():
            self.curve = [point for point in json.loads(path.read_text(encoding="utf-8")) if point["step"] <= step]
        for name, one in self.stateful.items() if checkpoint else ():
            self.states[name] = json.loads((self.folder / name).read_text(encoding="utf-8"))
            one.restore(self.states[name][str(step)])
        if not any("validation" in point for point in self.curve):
            self._validate(model, 0)

    def load_best(self, model: Any) -> None:
        """Puts the weights that validated best into the model."""
        if self.adapters:
            self.adapters.load(self.folder / "best")
        else:
            model.load_state_dict(type(model)(str(self.folder / "best"), device="cpu", local_files_only=True).state_dict())
        model.eval()

    def close(self) -> None:
        """Ends the event files, if there are any."""
        if self.events:
            self.events.close()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Keeps the loss and its terms; a checkpoint of this step is written after them, so that none is lost by a stop."""
        if not logs or "loss" not in logs:
            return
        terms = {name: value for name, value in logs.items() if isinstance(value, float) and name != "epoch"}
        for name, value in terms.items():
            if not math.isfinite(value):
                raise DataError(f"training: {name} is {value} at step {state.global_step}. Lower training.learning_rate, which is {args.learning_rate}")
        self.loss = logs["loss"]
        self._add({"step": state.global_step, **terms})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any) -> None:
        """Validates at the steps where it is due."""
        if state.global_step in self.steps:
            self._validate(getattr(model, "module", model), state.global_step)
            control.should_save = True
            stops = parallel.shared(self.spent)
            control.should_training_stop |= stops
        for name, one in self.stateful.items() if control.should_save else ():  # the checkpoint is written after this, so that none is without its state
            self.states[name] = {**dict(list(self.states[name].items())[-2:]), str(state.global_step): one.state()}
            write_json(self.folder / name, self.states[name])
        self.tell(state.global_step, state.max_steps)

    def tell(self, step: int, steps: int) -> None:
        """Says how far training is."""
        if self.progress:
            self.progress(TrainingProgress(step, steps, self.loss, self._best(), step < steps and self.spent))

    def tell_cached(self, at: CacheProgress) -> None:
        """Says how many texts went through frozen layers, which is before the first step."""
        if self.progress:
            self.progress(TrainingProgress(0, 0, None, None, cached=at))

    def _validate(self, model: Any, step: int) -> None:
        training = model.training
        model.eval()
        point = {"step": step, **self.validate(), **({"scale": self.scale.value} if self.scale else {})}
        model.train(training)
        if rank(point) > max((rank(other) for other in self.curve if "validation" in other), default=(-math.inf, -math.inf)):
            new = self.folder / "best.new"
            if self.adapters:
                self.adapters.save(new)
            else:
                model.save_pretrained(str(new), create_model_card=False)
            replace_folder(new, self.folder / "best")
        self._add(point)

    def _add(self, point: dict[str, float]) -> None:
        """Writes a point of the curve."""
        self.curve.append(point)
        write_json(self.folder / "curve.json", self.curve)
        if self.events:
            self.events.write(point)

    def _best(self) -> float:
        return best_point(self.curve)["validation"]
