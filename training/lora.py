"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685): few weights are trained, and merged into the model at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from torch import nn

from retriever.errors import ConfigError
from retriever.models.modalities import freeze
from retriever.settings.training import LoraSettings
from retriever.training.towers import staying

FILE = "adapters.safetensors"
"""The trained weights in the folders of checkpoints and of the best model so far."""


class Adapters:
    """The adapters of a model that is being trained.

    Only adapters are trained, and modules that follow a transformer (such as the projection of a late-interaction student),
    which are small and often new. Of two towers each that learns gets its own; their norms keep the statistics that they have, since
    checkpoints hold the trained weights alone. sentence-transformers' own `add_adapter` would write folders that name the start on
    the hub, which a student with fewer layers or a new head does not come from.
    """

    def __init__(self, model: Any, settings: LoraSettings, seed: int) -> None:
        """Puts adapters into the model; they change nothing before they are trained.

        Args:
            model: a sentence-transformers model with a transformer.
            settings: of the experiment file.
            seed: of the adapters' first weights.

        Raises:
            ConfigError: the model has no transformer, is a cross-encoder, has no layers of the names in `settings.modules`, or nothing
                of it may learn.
        """
        check_adapters(model)
        from peft import LoraConfig, LoraModel

        self.model = model
        self._learning = [weight for weight in model.parameters() if weight.requires_grad]
        layers = {transformer: linear_layers(transformer) for transformer in transformers_of(model)}
        self._norms = [module for transformer in layers for module in transformer.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self._adapted: list[LoraModel] = []
        with torch.random.fork_rng(devices=[]):  # peft makes adapters on the processor and moves them
            torch.manual_seed(seed)
            for transformer, names in _chosen(layers, settings.modules).items():
                if not names:
                    freeze([transformer])
                    continue
                config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=names)
                self._adapted.append(LoraModel(transformer, config, "default"))  # changes the layers of the transformer in place
        for norm in self._norms:
            norm.eval()
            vars(norm)["train"] = staying(norm)

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
        """Adds what was learned to the transformers' weights and takes the adapters out: the model is a stock one again."""
        for adapted in self._adapted:
            adapted.merge_and_unload()
        for transformer in transformers_of(self.model):
            if hasattr(transformer, "peft_config"):
                del transformer.peft_config
        for norm in self._norms:
            vars(norm).pop("train", None)
        for weight in self._learning:
            weight.requires_grad_(True)

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}


def transformers_of(model: Any) -> list[Any]:
    """The transformers of a model: one, or that of each tower."""
    found = [module.auto_model for module in model.modules() if isinstance(module, Transformer)]
    return found or [model.transformers_model]


def linear_layers(transformer: Any) -> list[str]:
    """The names of layers that an adapter can stand beside: linear ones whose weights learn, without a head of words.

    A convolution over single places is a linear layer of channels, and all that a convolutional tower has of them. Gates of one
    channel, which such a tower has where it has none, would have nothing to add to.
    """
    head = transformer.get_output_embeddings() if hasattr(transformer, "get_output_embeddings") else None
    return [name for name, layer in transformer.named_modules() if layer is not head and _is_linear(layer) and layer.weight.requires_grad]


def _is_linear(layer: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.groups == 1 and min(layer.in_channels, layer.out_channels) > 1
    return isinstance(layer, nn.Linear)


def _chosen(layers: Mapping[nn.Module, Sequence[str]], modules: Sequence[str] | None) -> dict[nn.Module, list[str]]:
    """Of each transformer the layers that get an adapter: all, or those of some names. One without any stays as it is.

    Raises:
        ConfigError: none has any.
    """
    if not any(layers.values()):
        raise ConfigError("training.lora: no linear layer of the student's transformer learns. Let a tower learn, or leave training.lora out")
    found = {one: [name for name in names if modules is None or _is_called(name, modules)] for one, names in layers.items()}
    if not any(found.values()):
        known = sorted({name.rsplit(".", 1)[-1] for names in layers.values() for name in names})
        raise ConfigError(f"training.lora.modules: none of {', '.join(modules or ())} is in the model; it has {', '.join(known)}")
    return found


def _is_called(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.endswith(f".{module}") for module in modules)


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
