"""Towers that do not learn: each image and each text goes through them once, and training begins with the vectors that they made.

They evaluate while the rest trains: no dropout, and the statistics of their norms stay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retriever.models.modalities import MODALITIES, Modality, frozen_modules, routes
from retriever.models.tensor_cache import TensorCache

VECTOR = "sentence_embedding"
"""The feature that a tower makes, and that stands in for it."""

LIMIT = 1 << 30
"""Bytes of vectors kept for a tower: 200,000 images of 1,280 numbers. What does not fit is made again."""

TOGETHER = 64
"""Images or texts that go through a tower at a time."""

Read = Callable[[Sequence[Any]], Mapping[str, Any]]
"""Gives the features of some images or texts."""


class FrozenTowers:
    """What towers that do not learn make of images and texts, kept in memory.

    While `attached`, features that hold a tower's vectors already skip it; all others are read as ever, so that validation,
    checkpoints and what is saved see the whole stock model.
    """

    def __init__(self, model: Any, limit: int = LIMIT) -> None:
        self.model = model
        self.modules: dict[Modality, list[nn.Module]] = {one: modules for one in MODALITIES if (modules := frozen_modules(model, one))}
        self._skippable = set(routes(model))  # of a model in one piece, such as CLIP, a tower cannot be skipped
        self._caches = {modality: TensorCache(limit) for modality in self.modules}

    def stands_in_for(self, modality: Modality) -> bool:
        """Whether vectors can stand in for this tower."""
        return modality in self.modules and modality in self._skippable

    def holds(self, modality: Modality, names: Iterable[Hashable]) -> bool:
        """Whether the vectors of all that have these names are there."""
        return self.stands_in_for(modality) and all(name in self._caches[modality] for name in names)

    def features(self, modality: Modality, names: Sequence[Hashable], inputs: Sequence[Any], read: Read) -> dict[str, Any]:
        """The features of some images or texts: the tower's vectors [n, C].

        Args:
            modality: which tower.
            names: [n], equal for what gives equal vectors.
            inputs: [n], the images' paths or the texts.
            read: gives the features of some of the inputs, which go through the tower.
        """
        of_name = dict(zip(names, inputs, strict=True))
        found = self._caches[modality].get(list(names), lambda missing: self._made(modality, read([of_name[name] for name in missing])), TOGETHER)
        return {VECTOR: torch.stack([found[name] for name in names]), "modality": modality}

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Lets the towers evaluate, and vectors stand in for them, for as long as the block runs."""
        modes = [(module, module.training) for modules in self.modules.values() for top in modules for module in top.modules()]
        for modality, modules in self.modules.items():
            for module in modules:
                module.eval()
                vars(module)["train"] = staying(module)  # the trainer calls this on the whole model at every step
                if modality in self._skippable:
                    vars(module)["forward"] = _unless_there(module.forward)
        try:
            yield
        finally:
            for modules in self.modules.values():
                for module in modules:
                    del vars(module)["train"]
                    vars(module).pop("forward", None)
            for module, mode in modes:
                module.training = mode

    @torch.no_grad()
    def _made(self, modality: Modality, features: Mapping[str, Any]) -> list[Tensor]:
        here = {name: value.to(self.model.device) if isinstance(value, Tensor) else value for name, value in features.items()}
        for module in self.modules[modality]:
            here = module(here)
        return list(here[VECTOR].float().cpu().unbind())


def staying(module: nn.Module) -> Callable[..., nn.Module]:
    """A `train` that changes nothing."""
    return lambda mode=True: module


def _unless_there(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward pass that leaves features alone which hold the vectors already, and nothing that they could be made of."""

    def stand_in(features: Any, *args: Any, **kwargs: Any) -> Any:
        made = VECTOR in features and not {"input_ids", "pixel_values", "token_embeddings"} & set(features)
        return features if made else forward(features, *args, **kwargs)

    return stand_in
