"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685): few weights are trained, and merged into the model at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from torch import nn

from retriever.errors import ConfigError
from retriever.training_settings import LoraSettings

FILE = "adapters.safetensors"
"""The trained weights in the folders of checkpoints and of the best model so far."""


class Adapters:
    """The adapters of a model that is being trained.

    Only adapters are trained, and modules that follow the transformer (such as the projection of a late-interaction student),
    which are small and often new. Checkpoints hold these weights alone. sentence-transformers' own `add_adapter` would write
    folders that name the start on the hub, which a student with fewer layers or a new head does not come from.
    """

    def __init__(self, model: Any, settings: LoraSettings, seed: int) -> None:
        """Puts adapters into the model; they change nothing before they are trained.

        Args:
            model: a sentence-transformers model with a transformer.
            settings: of the experiment file.
            seed: of the adapters' first weights.

        Raises:
            ConfigError: the model has no transformer, is a cross-encoder, or has no layers of the names in `settings.modules`.
        """
        check_adapters(model)
        from peft import LoraConfig, LoraModel

        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=list(settings.modules) if settings.modules else "all-linear",
        )
        self.model = model
        self._learning = [weight for weight in model.parameters() if weight.requires_grad]
        transformer = model.transformers_model
        with torch.random.fork_rng(devices=[]):  # peft makes adapters on the processor and moves them
            torch.manual_seed(seed)
            try:
                self._adapted = LoraModel(transformer, config, "default")  # changes the layers of the transformer in place
            except ValueError as error:  # no layer of such a name
                known = sorted({name.rsplit(".", 1)[-1] for name, layer in transformer.named_modules() if isinstance(layer, nn.Linear)})
                raise ConfigError(f"training.lora.modules: none of {', '.join(settings.modules or ())} is in the model; it has {', '.join(known)}") from error

    def save(self, folder: Path) -> None:
        """Writes the trained weights."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: weight.detach().contiguous() for name, weight in self._trained().items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Puts saved weights into the model."""
        saved = load_file(folder / FILE)
        with torch.no_grad():
            for name, weight in self._trained().items():
                weight.copy_(saved[name])

    def merge(self) -> None:
        """Adds what was learned to the transformer's weights and takes the adapters out: the model is a stock one again."""
        self._adapted.merge_and_unload()
        transformer = self.model.transformers_model
        if hasattr(transformer, "peft_config"):
            del transformer.peft_config
        for weight in self._learning:
            weight.requires_grad_(True)

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}


def check_adapters(model: Any) -> None:
    """Sees to it that a model can have adapters.

    Raises:
        ConfigError: it cannot.
    """
    if isinstance(model, CrossEncoder):
        raise ConfigError("training.lora: a cross_encoder's new head must be trained too, which adapters leave as it is. Leave training.lora out")
    if model.transformers_model is None:
        raise ConfigError("training.lora: the student has no transformer that could have adapters. Leave training.lora out")


def with_adapters(trainer: type[Any], adapters: Adapters) -> type[Any]:
    """A trainer whose checkpoints hold what is trained, and nothing of the start."""

    def save(self: Any, output_dir: str | None = None, state_dict: object = None) -> None:
        adapters.save(Path(output_dir or self.args.output_dir))

    def load(self: Any, checkpoint_path: str) -> None:
        adapters.load(Path(checkpoint_path))

    return type(trainer.__name__, (trainer,), {"_save": save, "_load_from_checkpoint": load})
