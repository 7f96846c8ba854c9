"""A student whose vectors can be followed by hand: an image is its mean colour, a text the colours that it names. It learns nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from retriever.images.reading import read_image
from retriever.types import Document, Query

COLOURS = ("red", "green", "blue", "yellow", "black", "white")


class ColourStudent:
    kind = "tests.colour_student"
    identity = document_identity = "colours"
    dimensions = 4
    unit = "cosine"

    def encode_queries(self, queries: Sequence[Query]) -> NDArray[np.float32]:
        return np.stack([_vector(query.image, query.text) for query in queries])

    def encode_documents(self, documents: Sequence[Document]) -> NDArray[np.float32]:
        return np.stack([_vector(document.image, document.full_text) for document in documents])

    def score(self, queries: NDArray[np.float32], documents: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray((queries * documents).sum(axis=1))


def load(settings: Any, batch_size: int = 64) -> ColourStudent:
    return ColourStudent()


def load_folder(folder: Path, batch_size: int = 64) -> ColourStudent:
    return ColourStudent()


def save_squares(folder: Path, size: int = 100) -> dict[str, Path]:
    """Colour -> the file of an image of nothing else, wider than high."""
    folder.mkdir(parents=True, exist_ok=True)
    for colour in COLOURS:
        Image.new("RGB", (size, size // 2), colour).save(folder / f"{colour}.png")
    return {colour: folder / f"{colour}.png" for colour in COLOURS}


def _vector(image: Path | None, text: str) -> NDArray[np.float32]:
    """[4]: red, green and blue from -1 to 1, and 1; of length 1."""
    if image is not None:
        colours = [np.asarray(read_image(image), dtype=np.float64).mean(axis=(0, 1))]
    else:
        colours = [np.array(ImageColor.getrgb(word), dtype=np.float64) for word in text.split() if word in COLOURS]
    mean = np.mean(colours, axis=0) / 127.5 - 1 if colours else np.zeros(3)
    vector = np.append(mean, 1.0)
    return (vector / np.linalg.norm(vector)).astype(np.float32)
