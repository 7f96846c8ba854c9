"""Tiny towers of images, and a dozen coloured squares with captions, for the tests of image-text students."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import EfficientNetConfig, EfficientNetImageProcessorPil, EfficientNetModel, ViTConfig, ViTImageProcessorPil, ViTModel

from retriever.collection import Collection, open_collection
from retriever.encodings import encode_collection
from retriever.index.changes import publish
from retriever.settings.collection import CollectionSettings
from retriever.settings.index import AutoSettings
from retriever.settings.student import ImageTextSettings
from retriever.students.image_text import ImageTextStudent, load, load_folder

COLOURS = ("red", "lime", "blue", "yellow", "magenta", "cyan", "black", "white", "grey", "orange", "purple", "brown")
SIDE = 16


def save_efficientnet(folder: Path) -> Path:
    """Two stages, 8 dimensions a place: a convolutional tower with norms that keep statistics."""
    stages = {"in_channels": [32, 16], "out_channels": [16, 24], "kernel_sizes": [3, 3], "strides": [1, 2], "num_block_repeats": [1, 1]}
    config = EfficientNetConfig(width_coefficient=0.25, depth_coefficient=1.0, hidden_dim=320, expand_ratios=[1, 2], drop_connect_rate=0.0, **stages)
    return _saved(EfficientNetModel, config, EfficientNetImageProcessorPil(size=_square(), crop_size=_square(), include_top=False), folder)


def save_vit(folder: Path) -> Path:
    """One layer of 16 dimensions, a class token, patches of 8 by 8 pixels, and dropout."""
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=SIDE, patch_size=8, hidden_dropout_prob=0.5)
    return _saved(ViTModel, config, ViTImageProcessorPil(size=_square()), folder)


def _saved(kind: Any, config: Any, processor: Any, folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = kind(config)
        for name, weight in model.named_parameters():
            if weight.ndim > 1:  # transformers' own first weights let next to nothing through so few layers
                torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
            elif ("norm" in name and name.endswith("weight")) or "bn.weight" in name:
                torch.nn.init.ones_(weight)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _square() -> dict[str, int]:
    return {"height": SIDE, "width": SIDE}


def save_squares(folder: Path) -> Path:
    """A collection of a dozen coloured squares of different sizes, two captions each, all of the split "train"."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (SIDE + number, SIDE), colour).save(folder / "images" / f"{colour}.png")
        lines.append(json.dumps({"image": f"{colour}.png", "captions": [colour, f"a square in {colour}"]}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def open_squares(folder: Path) -> Collection:
    """The collection of `save_squares`, prepared beside it."""
    return open_collection(CollectionSettings(path=save_squares(folder / "squares")), folder / "collection")


def student_of(vision: Path, encoder: Path, **settings: object) -> ImageTextStudent:
    """A student of two towers."""
    return load(ImageTextSettings.model_validate({"image_model": str(vision), "text_model": str(encoder), "dimensions": 12, **settings}), 4)


def index_squares(folder: Path, encoder: Path) -> Path:
    """The folder, with the collection of `open_squares` and `index`, its index by a student of a tiny transformer of images."""
    collection = open_squares(folder)
    student_of(save_vit(folder / "vit"), encoder).save(folder / "student")
    student = load_folder(folder / "student")
    vectors = encode_collection(student, collection, folder / "encodings")
    publish(folder / "index", AutoSettings(), "image_text", folder / "student", student, vectors, collection)
    return folder
