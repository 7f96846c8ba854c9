"""The curve as event files, which TensorBoard draws while training runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class EventFiles:
    """Scalars by step: `train/...` for losses and the learning rate, `validation/...` for what the held-out queries say.

    transformers' TensorBoardCallback would write next to the checkpoints, and knows of no validation but the trainer's own.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """Goes on after `step`; what a stopped run wrote of later steps is not shown any more."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, point: Mapping[str, float]) -> None:
        """One point of the curve; it is on the disk when this returns."""
        group = "validation" if "validation" in point else "train"
        for name, value in point.items():
            if name != "step":
                self._writer.add_scalar(f"{group}/{'quality' if name == 'validation' else name}", value, int(point["step"]))
        self._writer.flush()

    def close(self) -> None:
        """Ends the files."""
        self._writer.close()
