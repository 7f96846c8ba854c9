"""Coloured squares with captions, and tiny models that see: everything of it is made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from retriever.types import Document, Query

COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 180, 40),
    "blue": (30, 40, 220),
    "yellow": (240, 230, 30),
    "black": (5, 5, 5),
    "white": (250, 250, 250),
    "grey": (128, 128, 128),
    "pink": (250, 130, 200),
    "orange": (250, 130, 10),
    "purple": (130, 20, 160),
    "brown": (110, 60, 20),
    "cyan": (20, 220, 230),
}
WORDS = ("a", "square", "of", "painted", "in", "colour", "the", *COLOURS)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_squares(folder: Path, size: tuple[int, int] = (16, 16)) -> dict[str, Path]:
    """Colour -> the file of a square of it."""
    paths = {}
    for name, colour in COLOURS.items():
        paths[name] = folder / f"{name}.png"
        Image.new("RGB", size, colour).save(paths[name])
    return paths


def write_noise(folder: Path, sizes: Sequence[tuple[int, int]]) -> list[Path]:
    """Files of random pixels, of these widths and heights."""
    generator = np.random.default_rng(5)
    paths = []
    for number, (width, height) in enumerate(sizes):
        paths.append(folder / f"noise{number}.png")
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(paths[-1])
    return paths


def asks(text: str, number: int = 0) -> Query:
    """A text that asks for images."""
    return Query(f"q{number}", text)


def shows(path: Path) -> Document:
    """An image as a document."""
    return Document(path.name, "", image=path)


class Documents:
    """The part of a collection that looks documents up."""

    fingerprint = "documents"

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = list(documents)

    def rows_of(self, doc_ids: Sequence[str]) -> NDArray[np.int64]:
        """Their places."""
        places = {document.doc_id: place for place, document in enumerate(self.documents)}
        return np.array([places[doc_id] for doc_id in doc_ids], dtype=np.int64)

    def documents_by_row(self, rows: Sequence[int]) -> list[Document]:
        """Those at the places."""
        return [self.documents[row] for row in rows]


def save_tokenizer(folder: Path, length: int = 24) -> int:
    """A WordPiece tokenizer of the captions' words; how many pieces it has."""
    from transformers import BertTokenizer

    BertTokenizer(vocab={piece: number for number, piece in enumerate((*SPECIAL, *WORDS))}, model_max_length=length).save_pretrained(folder)
    return len(SPECIAL) + len(WORDS)


def save_blip(folder: Path, seed: int = 1) -> Path:
    """BLIP for retrieval, random, images of 32 pixels."""
    from transformers import BlipConfig, BlipForImageTextRetrieval, BlipImageProcessorPil

    pieces = save_tokenizer(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": pieces, "encoder_hidden_size": 32, "max_position_embeddings": 24, "pad_token_id": 0, "bos_token_id": 2, "sep_token_id": 3}
    config = BlipConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 16}, projection_dim=16, image_text_hidden_size=16)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return _save(BlipForImageTextRetrieval, config, folder, seed)


def save_vilt(folder: Path, seed: int = 1) -> Path:
    """ViLT for retrieval, random; images keep their proportions."""
    from transformers import ViltConfig, ViltForImageAndTextRetrieval, ViltImageProcessorPil

    pieces = save_tokenizer(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ViltConfig(vocab_size=pieces, max_position_embeddings=24, image_size=32, patch_size=16, **sizes)
    ViltImageProcessorPil(size={"shortest_edge": 32}, size_divisor=16).save_pretrained(folder)
    return _save(ViltForImageAndTextRetrieval, config, folder, seed)


def save_bridgetower(folder: Path, seed: int = 1) -> Path:
    """BridgeTower for retrieval, random, images of 32 pixels."""
    from transformers import BridgeTowerConfig, BridgeTowerForImageAndTextRetrieval, BridgeTowerImageProcessorPil

    pieces = save_tokenizer(folder)
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": pieces, "max_position_embeddings": 24}
    text |= {"pad_token_id": 0, "type_vocab_size": 1}
    vision = {"hidden_size": 64, "num_hidden_layers": 3, "image_size": 32, "patch_size": 16}
    config = BridgeTowerConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, text_config=text, vision_config=vision)
    processor = BridgeTowerImageProcessorPil(size={"shortest_edge": 32}, crop_size={"shortest_edge": 32}, size_divisor=16)
    processor.save_pretrained(folder)
    return _save(BridgeTowerForImageAndTextRetrieval, config, folder, seed)


def save_flava(folder: Path, seed: int = 1) -> Path:
    """FLAVA with all heads it was pretrained with, random, images of 32 pixels."""
    from transformers import FlavaConfig, FlavaForPreTraining, FlavaImageProcessorPil

    pieces = save_tokenizer(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": pieces, "max_position_embeddings": 24}
    image = {**sizes, "image_size": 32, "patch_size": 16, "vocab_size": 16}
    codebook = {"hidden_size": 4, "vocab_size": 16, "num_blocks_per_group": 1}
    config = FlavaConfig(text_config=text, image_config=image, multimodal_config=sizes, image_codebook_config=codebook, hidden_size=32, projection_dim=16)
    FlavaImageProcessorPil(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return _save(FlavaForPreTraining, config, folder, seed)


def save_vit(folder: Path, seed: int = 1) -> Path:
    """A vision tower of tokens: ViT, random, images of 16 pixels."""
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=16, patch_size=8)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return _save(ViTModel, config, folder, seed)


def save_efficientnet(folder: Path, seed: int = 1) -> Path:
    """A vision tower of a feature map: EfficientNet of two blocks, random."""
    from transformers import EfficientNetConfig, EfficientNetImageProcessorPil, EfficientNetModel

    blocks = {"in_channels": [32, 8], "out_channels": [8, 16], "kernel_sizes": [3, 3], "strides": [1, 2], "num_block_repeats": [1, 1], "expand_ratios": [1, 2]}
    config = EfficientNetConfig(width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, drop_connect_rate=0.0, image_size=16, **blocks)
    EfficientNetImageProcessorPil(size={"height": 16, "width": 16}, crop_size={"height": 16, "width": 16}, include_top=False).save_pretrained(folder)
    return _save(EfficientNetModel, config, folder, seed)


def save_text_tower(folder: Path, seed: int = 1) -> Path:
    """A text encoder of sentence-transformers: BERT of one layer, random."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    inner = folder / "bert"
    pieces = save_tokenizer(inner)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 24}
    _save(BertModel, BertConfig(vocab_size=pieces, **sizes), inner, seed)
    transformer = Transformer(str(inner), max_seq_length=24)
    SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu").save_pretrained(str(folder / "encoder"), create_model_card=False)
    return folder / "encoder"


def _save(kind: Any, config: Any, folder: Path, seed: int) -> Path:
    """Random weights, ten times as large as new ones: so that what is read shows in what is said."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1 or "position" in name or "token" in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                else:
                    parameter.mul_(5)
    model.save_pretrained(folder)
    return folder
