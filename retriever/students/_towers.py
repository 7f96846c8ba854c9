"""Two towers made into one stock model: images and texts go their own ways into a common space (Radford et al. 2021, arXiv:2103.00020)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import nn

from retriever.errors import ConfigError
from retriever.models.modalities import reads_images
from retriever.models.names import find_model
from retriever.models.routes import is_routed
from retriever.models.vision import find_vision_model
from retriever.settings.student import ImageTextSettings

DIMENSIONS = 256
"""Of the common space, where none are asked for."""

SEED = 1
"""Of new projections: the same start is the same student."""

POOLED_BY_THEMSELVES = ("clip_vision_model", "siglip_vision_model", "siglip2_vision_model")
"""Models whose own vector of an image is more than one of their last states: a trained norm or attention comes after these."""

CLASS_TOKENS = ("cls_token", "class_embedding")


def two_towers(settings: ImageTextSettings) -> SentenceTransformer:
    """The stock model of an image tower and a text tower, each with a linear projection, vectors of length 1, compared by cosine.

    A frozen text tower without `dimensions` has no projection: vectors of texts are then the text model's own, an index of
    them stays, and images are projected into their space (as locked towers are, Zhai et al. 2021, arXiv:2111.07991).

    Raises:
        ConfigError: there is no such model, or it is none of images or of texts.
    """
    image = image_tower(find_vision_model(str(settings.image_model), settings.revision).folder, settings.image_size)
    encoder = text_encoder(settings)
    text = [module for module in encoder if not isinstance(module, Normalize)]
    own = int(encoder.get_embedding_dimension() or 0)
    dimensions = settings.dimensions or (own if settings.frozen_text else DIMENSIONS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        image = [*image, _projection(_width(image), dimensions)]
        text = [*text, *([] if settings.frozen_text and settings.dimensions is None else [_projection(own, dimensions)])]
    ways: dict[str, Any] = {"image": image, "text": text}
    prompts = {task: prompt for task, prompt in encoder.prompts.items() if prompt is not None}
    made = SentenceTransformer(modules=[Router(ways, default_route="text"), Normalize()], similarity_fn_name="cosine", prompts=prompts)
    made.default_prompt_name = encoder.default_prompt_name
    return made


def image_tower(folder: Path, image_size: int | None) -> list[nn.Module]:
    """The modules that make one vector of an image: its class token, the mean over the places of a feature map, or the model's own.

    Raises:
        ConfigError: transformers cannot open the folder, or the model does not read images of that size.
    """
    options: dict[str, Any] = {"model_kwargs": {"use_safetensors": True, "local_files_only": True}, "config_kwargs": {"local_files_only": True}}
    options["processor_kwargs"] = {"local_files_only": True, **_sizes(image_size)}
    try:
        transformer = Transformer(str(folder), **options)
        if transformer.config.model_type in POOLED_BY_THEMSELVES:
            way = {"method": "forward", "method_output_name": "pooler_output"}
            options |= {"modality_config": {"image": way}, "module_output_name": "sentence_embedding"}
            return _tried([Transformer(str(folder), **options)], image_size)
        has_class = any(name.endswith(CLASS_TOKENS) for name, _ in transformer.auto_model.named_parameters())
        return _tried([transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode="cls" if has_class else "mean")], image_size)
    except (ValueError, KeyError, TypeError, OSError, AttributeError) as error:
        raise ConfigError(f"student.image_model: {folder} does not open as a model of images ({str(error)[:200]}). Name another one") from error


def text_encoder(settings: ImageTextSettings) -> SentenceTransformer:
    """The model whose modules become the text tower.

    Raises:
        ConfigError: it encodes queries and documents apart, or reads images too.
    """
    found = find_model(str(settings.text_model), settings.revision, "student.text_model")
    encoder = SentenceTransformer(str(found.folder), local_files_only=True, model_kwargs={"use_safetensors": True})
    if is_routed(encoder) or reads_images(encoder):
        what = "reads images already: give it as student.model" if reads_images(encoder) else "encodes queries and documents apart. Take its start"
        raise ConfigError(f"student.text_model: {settings.text_model} {what}")
    return encoder


def _sizes(image_size: int | None) -> dict[str, Any]:
    """Settings of an image processor that give squares of that size."""
    square = {"height": image_size, "width": image_size}
    return {"size": square, "crop_size": square, "do_resize": True} if image_size else {}


def _tried(modules: list[nn.Module], image_size: int | None) -> list[nn.Module]:
    """The modules, after one image went through them.

    Raises:
        ConfigError: it did not.
    """
    try:
        _width(modules)
    except (ValueError, RuntimeError) as error:
        advice = "Leave student.image_size out" if image_size else "Name another one"
        raise ConfigError(f"student.image_model: the model does not read its own images ({str(error)[:200]}). {advice}") from error
    return modules


@torch.no_grad()
def _width(modules: list[nn.Module]) -> int:
    """C, of the vectors that modules make of images; a config may tell another number than that of the output that is taken."""
    first: Any = modules[0]
    modes = {module: module.training for module in first.modules()}
    first.eval()
    features = first.preprocess([Image.new("RGB", (32, 32), "white")])
    for module in modules:
        features = module(features)
    for module, mode in modes.items():
        module.training = mode
    return int(features["sentence_embedding"].shape[-1])


def _projection(width: int, dimensions: int) -> Dense:
    """A linear layer without a bias, as CLIP has it, that keeps the length of vectors on average."""
    layer = Dense(width, dimensions, bias=False, activation_function=nn.Identity())
    nn.init.normal_(layer.linear.weight, std=width**-0.5)
    return layer
