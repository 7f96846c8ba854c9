"""A small fusion model: the tokens of an image and of a text read together by a few layers, with a head that says whether they match.

After ALBEF (Li et al. 2021, arXiv:2107.07651), with these deviations: the layers attend to both modalities at once, where ALBEF's text
layers look at the image by cross-attention; the vectors that are compared (ITC) are means of tokens, because convolutional towers have
no [CLS]; the head that matches (ITM) sees their product beside the fusion's [CLS], so that a few layers taught on a few thousand pairs only
have to learn what comparing does not see; no momentum towers, no masked words. Any vision model of transformers and any text encoder of
sentence-transformers is a tower.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoImageProcessor, AutoModel

from retriever.errors import ConfigError
from retriever.files import write_json

FAMILY = "retriever_fusion"
"""What config.json calls the model."""

TEMPERATURE, COLDEST, HOTTEST = 0.07, 0.001, 0.5
"""Of the contrastive part: where it starts and between what it stays, as in ALBEF."""

IMAGE, TEXT = "image_tower", "text_tower"
"""The towers' parts of the model's names of weights."""


@dataclasses.dataclass(frozen=True)
class FusionShape:
    """Sizes of a fusion model.

    Attributes:
        width: of a token in the fusion layers, W.
        layers: that read both together.
        heads: of each layer.
        dimensions: of the vectors that are compared, D.
        dropout: in training.
        max_length: tokens of a text at most.
    """

    width: int
    layers: int
    heads: int
    dimensions: int
    dropout: float
    max_length: int


class ImageTower(nn.Module):
    """A vision model of transformers with the processor that makes its pixels.

    Attributes:
        tokens: T, that an image becomes.
        channels: C, of each.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        with torch.inference_mode():
            self.eval()
            probe = self(self.pixels([Image.new("RGB", (8, 8))]))
        self.tokens, self.channels = int(probe.shape[1]), int(probe.shape[2])

    @classmethod
    def open(cls, folder: Path, image_size: int | None, where: str) -> ImageTower:
        """The vision model in a folder.

        Args:
            folder: of transformers: config.json, weights, preprocessor_config.json.
            image_size: pixels of the square that images become; what the folder says when None.
            where: begins the error message.

        Raises:
            ConfigError: it holds no vision model, or one that does not read images of this size.
        """
        try:
            model: Any = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
            model = getattr(model, "vision_model", model)  # of a model of both modalities, the half that sees
            processor = open_processor(folder)
            if image_size:
                processor.size = processor.crop_size = {"height": image_size, "width": image_size}
                processor.do_center_crop = False
            return cls(model, processor)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            size = f" of {image_size} pixels" if image_size else ""
            raise ConfigError(f"{where}: image_model: {folder} gives no tokens of an image{size} ({first_line(error)})") from error

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """[n, 3, h, w], on the processor."""
        found: Tensor = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        return found

    def forward(self, pixels: Tensor) -> Tensor:
        """[n, 3, h, w] -> [n, T, C]; the last feature map of a convolutional model, row by row."""
        states: Tensor = self.model(pixel_values=pixels).last_hidden_state
        return states.flatten(2).transpose(1, 2) if states.ndim == 4 else states

    def save(self, folder: Path) -> None:
        """A stock folder of transformers."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


class TextTower(nn.Module):
    """The transformer of a text encoder of sentence-transformers, whose token vectors are taken before any pooling."""

    def __init__(self, model: SentenceTransformer, max_length: int) -> None:
        super().__init__()
        self.model = model
        self.shorten(max_length)

    @classmethod
    def open(cls, folder: Path, max_length: int, where: str) -> TextTower:
        """The encoder in a folder.

        Raises:
            ConfigError: its first part gives no token vectors, or it cannot read so long texts.
        """
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True, "dtype": torch.float32})
        first: Any = model[0]
        if getattr(first, "tokenizer", None) is None or getattr(first, "module_output_name", None) != "token_embeddings":
            raise ConfigError(f"{where}: text_model: {folder} has no transformer that gives a vector for each token. Name an encoder of texts")
        positions = getattr(first.model.config, "max_position_embeddings", None)
        if positions and max_length > positions:
            raise ConfigError(f"{where}: max_length: {max_length} tokens, but {folder} reads {positions} at most")
        return cls(model, max_length)

    def shorten(self, max_length: int) -> None:
        """Lets it read so many tokens of a text at most."""
        first: Any = self.model[0]
        self.max_length = first.max_seq_length = max_length

    @property
    def channels(self) -> int:
        """C, of a token."""
        first: Any = self.model[0]
        return int(first.get_embedding_dimension())

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, uncut."""
        first: Any = self.model[0]
        return [len(ids) for ids in first.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]

    def forward(self, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """[n, L, C] and a mask [n, L]."""
        first: Any = self.model[0]
        features = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in first.preprocess(list(texts)).items()}
        return first(features)["token_embeddings"], features["attention_mask"].bool()

    def save(self, folder: Path) -> None:
        """A stock folder of sentence-transformers."""
        self.model.save_pretrained(str(folder), create_model_card=False)


class FusionModel(nn.Module):
    """Two towers, projections to one width, fusion layers, a head that matches and one that compares.

    Attributes:
        shape: its sizes.
        similarity: the share of the scaled cosine in a score; the rest is what matching says.
        log_scale: the logarithm of what a cosine is multiplied by.
    """

    def __init__(self, image_tower: ImageTower, text_tower: TextTower, shape: FusionShape, similarity: float = 0.0) -> None:
        super().__init__()
        width = shape.width
        self.shape = shape
        self.similarity = similarity
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.project_image = nn.Sequential(nn.Linear(image_tower.channels, width), nn.LayerNorm(width))
        self.project_text = nn.Sequential(nn.Linear(text_tower.channels, width), nn.LayerNorm(width))
        self.begin = nn.Parameter(torch.randn(width) * 0.02)
        self.place = nn.Parameter(torch.randn(image_tower.tokens, width) * 0.02)
        self.modality = nn.Parameter(torch.randn(2, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, shape.heads, 4 * width, shape.dropout, "gelu", batch_first=True, norm_first=True)
        self.fusion = nn.TransformerEncoder(layer, shape.layers, nn.LayerNorm(width), enable_nested_tensor=False)
        for inner in self.fusion.layers:  # the encoder copies one layer, whose weights would be the same in all
            for parameter in inner.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)
        self.image_vector = nn.Linear(width, shape.dimensions)
        self.text_vector = nn.Linear(width, shape.dimensions)
        self.head = nn.Linear(width + shape.dimensions, 2)
        with torch.no_grad():  # the log-odds begin as the scaled cosine: what comparing knows, matching need not learn anew
            self.head.weight[:, width:] = torch.tensor([[-0.5], [0.5]])
        self.log_scale = nn.Parameter(-torch.tensor(TEMPERATURE).log())

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.head.weight.device

    @property
    def scale(self) -> Tensor:
        """[], what a cosine is multiplied by."""
        return self.log_scale.exp().clamp(1 / HOTTEST, 1 / COLDEST)

    def of_images(self, states: Tensor) -> Tensor:
        """The tower's tokens [n, T, C] in the width of the fusion layers, [n, T, W]."""
        projected: Tensor = self.project_image(states)
        return projected

    def of_texts(self, states: Tensor) -> Tensor:
        """The tower's tokens [n, L, C] in the width of the fusion layers, [n, L, W]."""
        projected: Tensor = self.project_text(states)
        return projected

    def match(self, images: Tensor, texts: Tensor, mask: Tensor) -> Tensor:
        """[n, 2], logits of "do not match" and "match".

        Args:
            images: [n, T, W], of `of_images`.
            texts: [n, L, W], of `of_texts`.
            mask: [n, L], False behind the end of a text.
        """
        return self._matched(images, texts, mask)[0]

    def log_odds(self, images: Tensor, texts: Tensor, mask: Tensor) -> Tensor:
        """[n], float32, of matching alone; the arguments are those of `match`."""
        return _log_odds(self.match(images, texts, mask))

    def scores(self, images: Tensor, texts: Tensor, mask: Tensor) -> Tensor:
        """[n], float32, log-odds with the share of the scaled cosine; the arguments are those of `match`."""
        logits, product = self._matched(images, texts, mask)
        if not self.similarity:
            return _log_odds(logits)
        return (1 - self.similarity) * _log_odds(logits) + self.similarity * product.float().sum(dim=1)

    def _matched(self, images: Tensor, texts: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [n, 2], and the products [n, D] that add up to the scaled cosine."""
        begin = self.begin.expand(len(images), 1, -1)
        tokens = torch.cat([begin, images + self.place + self.modality[0], texts + self.modality[1]], dim=1)
        kept = torch.cat([mask.new_ones(len(images), 1 + images.shape[1]), mask], dim=1)
        read = self.fusion(tokens, src_key_padding_mask=~kept)[:, 0]
        product = self.image_vectors(images) * self.text_vectors(texts, mask) * self.scale.detach()
        return self.head(torch.cat([read, product], dim=1)), product

    def image_vectors(self, images: Tensor) -> Tensor:
        """[n, D], unit vectors of [n, T, W]."""
        return functional.normalize(self.image_vector(images.mean(dim=1)), dim=-1)

    def text_vectors(self, texts: Tensor, mask: Tensor) -> Tensor:
        """[n, D], unit vectors of [n, L, W] with a mask [n, L]."""
        share = (mask / mask.sum(dim=1, keepdim=True)).to(texts.dtype)
        return functional.normalize(self.text_vector((texts * share[..., None]).sum(dim=1)), dim=-1)

    def save(self, folder: Path) -> None:
        """Writes config.json, model.safetensors with what is not in the towers, and the towers as stock folders `image` and `text`."""
        folder.mkdir(parents=True, exist_ok=True)
        own = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items() if name.split(".")[0] not in (IMAGE, TEXT)}
        save_file(own, folder / "model.safetensors")
        self.image_tower.save(folder / "image")
        self.text_tower.save(folder / "text")
        write_json(folder / "config.json", {"model_type": FAMILY, "similarity": self.similarity, **dataclasses.asdict(self.shape)})


def load_fusion_model(folder: Path, where: str) -> FusionModel:
    """The model that `FusionModel.save` wrote.

    Raises:
        ConfigError: files are missing or do not fit together.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shape = FusionShape(**{field.name: config[field.name] for field in dataclasses.fields(FusionShape)})
        similarity = float(config["similarity"])
        own = load_file(folder / "model.safetensors")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where}: {folder} is no whole fusion model ({error!r}). Teach it again") from error
    image_tower = ImageTower.open(folder / "image", None, where)
    model = FusionModel(image_tower, TextTower.open(folder / "text", shape.max_length, where), shape, similarity)
    try:
        found = model.load_state_dict(own, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"{where}: {folder}: the weights do not fit the towers beside them. Teach it again") from error
    if found.unexpected_keys or any(name.split(".")[0] not in (IMAGE, TEXT) for name in found.missing_keys):
        raise ConfigError(f"{where}: {folder}: model.safetensors does not hold this model's weights. Teach it again")
    return model.eval()


def _log_odds(logits: Tensor) -> Tensor:
    return logits[:, 1].float() - logits[:, 0].float()


def open_processor(folder: Path) -> Any:
    """What makes pixels of images for the model in a folder: the same on every machine."""
    opener: Any = AutoImageProcessor
    return opener.from_pretrained(folder, local_files_only=True, backend="pil")


def first_line(error: Exception) -> str:
    """What an error says in its first line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def padded(rows: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tensors [L_n, ...] as one [n, L, ...] with zeros behind their ends, and its mask [n, L]."""
    lengths = torch.tensor([len(row) for row in rows], device=device)
    joined = pad_sequence(list(rows), batch_first=True).to(device)
    return joined, torch.arange(joined.shape[1], device=device) < lengths[:, None]
