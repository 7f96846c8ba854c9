"""Zero-shot classification: an image is given the name, among those of a field, whose text the student finds nearest (CLIP, Radford et al. 2021)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.eval.significance import bootstrap_interval, generator_for


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """The share of images that are named right, with its 95 % bootstrap interval."""

    value: float
    interval: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    """What zero-shot classification gave.

    Attributes:
        field: of the images, whose values are the names.
        template: the text of a name, which stands where {} is.
        images: how many were named; those without the field are left out.
        names: all values of the field.
        most_frequent: the share of images that have the most frequent name: what a guess without looking reaches.
        accuracies: run -> accuracy.
    """

    field: str
    template: str
    images: int
    names: Sequence[str]
    most_frequent: float
    accuracies: Mapping[str, Accuracy]


def accuracy(run: str, scores: NDArray[np.float32], right: NDArray[np.bool_], seed: int) -> Accuracy:
    """How often the name with the highest score is right; of equal scores the first name counts.

    Args:
        run: whose scores; part of what the bootstrap's generator is made of.
        scores: float32 [I, N], of each image with each name's text.
        right: bool [I, N], the names that an image has.
        seed: of the bootstrap samples.
    """
    hits = right[np.arange(len(scores)), scores.argmax(axis=1)].astype(np.float64)
    return Accuracy(float(hits.mean()), bootstrap_interval(hits, generator_for(seed, "zero-shot", run)))


def zero_shot_from_json(values: Mapping[str, Any]) -> ZeroShot:
    """What `dataclasses.asdict` made of it, after a way through JSON."""
    accuracies = {run: Accuracy(found["value"], tuple(found["interval"])) for run, found in values["accuracies"].items()}
    return ZeroShot(**{**values, "accuracies": accuracies})
