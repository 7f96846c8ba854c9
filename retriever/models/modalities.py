"""Models that read images as well as texts: their ways in, and towers on them that do not learn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

from sentence_transformers.base.modules import Dense, Router, Transformer
from torch import nn

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")

CLIP_PARTS: Mapping[Modality, str] = {"image": "vision_model", "text": "text_model"}
"""What transformers calls the towers of one CLIP-like model; its projections stand beside them."""


def reads_images(model: Any) -> bool:
    """Whether a sentence-transformers model takes images and texts alike."""
    return {"image", "text"} <= set(getattr(model, "modalities", ()))


def text_reader(model: Any) -> Any:
    """The module that reads texts: the tower of texts, or the whole of a model that is not built of modules for either."""
    return routes(model).get("text", [model[0]])[0]


def as_texts(model: Any, texts: Sequence[str]) -> list[Any]:
    """Texts for a model that may take images, marked as what they are.

    sentence-transformers would take a text that is the address or the path of an image for that image, and fetch or open it. A
    table of word vectors reads unmarked texts alone, and never images.
    """
    return [{"text": text} for text in texts] if reads_images(model) and isinstance(text_reader(model), Transformer) else list(texts)


def text_options(model: Any) -> dict[str, Any]:
    """What to tell `encode` and `preprocess` beside those texts."""
    return {"modality": "text"} if routes(model) else {}


def routes(model: Any) -> dict[str, list[nn.Module]]:
    """The modules that images and texts go through, one after the other, by modality; empty for a model that does not route by it."""
    first = model[0]
    if not isinstance(first, Router) or not set(MODALITIES) <= set(first.sub_modules):
        return {}
    return {modality: list(cast(Any, first.sub_modules[modality])) for modality in MODALITIES}


def tower(model: Any, modality: Modality, projected: bool = True) -> list[nn.Module]:
    """The modules of a tower without the projection after it; empty where the model is not built of two towers.

    Args:
        model: of sentence-transformers.
        modality: which tower.
        projected: the last linear layer on its way is a projection; else it is the tower's own.
    """
    modules = routes(model).get(modality)
    if modules is None:
        part = getattr(getattr(model[0], "auto_model", None), CLIP_PARTS[modality], None)
        return [part] if isinstance(part, nn.Module) else []
    return modules[:-1] if projected and isinstance(modules[-1], Dense) else modules


def freeze(modules: Iterable[nn.Module]) -> None:
    """Takes the gradients from all weights of modules."""
    for module in modules:
        for weight in module.parameters():
            weight.requires_grad_(False)


def frozen_modules(model: Any, modality: Modality) -> list[nn.Module]:
    """The modules at the beginning of a tower's way that do not learn: none where its first one does."""
    modules = tower(model, modality, projected=False)
    learning = next((place for place, module in enumerate(modules) if any(weight.requires_grad for weight in module.parameters())), len(modules))
    return modules[:learning]
