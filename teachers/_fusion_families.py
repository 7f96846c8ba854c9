"""Models that read an image and a text together, family by family: what is made of each image and text once, and what of each pair."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BlipForImageTextRetrieval,
    BridgeTowerForImageAndTextRetrieval,
    FlavaConfig,
    FlavaModel,
    FlavaPreTrainedModel,
    PreTrainedModel,
    ViltForImageAndTextRetrieval,
)
from transformers.models.flava.modeling_flava import FlavaITMHead

from retriever.errors import ConfigError
from retriever.models.fusion import FAMILY, FusionModel, first_line, load_fusion_model, open_processor, padded
from retriever.models.names import check_length
from retriever.types import Unit

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FusionReader(Protocol):
    """A fusion model as a teacher asks it.

    Attributes:
        unit: "log_odds" of matching against not matching, or "logit" of a head with one output.
        max_length: tokens of a text at most.
    """

    unit: Unit
    max_length: int

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, uncut."""
        ...

    def images(self, images: Sequence[Image.Image]) -> Sequence[Tensor]:
        """What a pair needs of each image, the rows [T, ...] of a tensor: made once."""
        ...

    def texts(self, texts: Sequence[str]) -> Sequence[Tensor]:
        """What a pair needs of each text, the rows [L, ...] of a tensor: made once."""
        ...

    def scores(self, images: Sequence[Tensor], texts: Sequence[Tensor]) -> Tensor:
        """[n], float32, of the images and texts at the same places."""
        ...


class OwnReader:
    """A model that was taught by its `train` table: both towers work once for each image and text, the fusion layers for each pair."""

    unit: Unit = "log_odds"

    def __init__(self, model: FusionModel, max_length: int, dtype: torch.dtype) -> None:
        self.model = model.to(_device(), dtype)
        self.max_length = max_length
        self.dtype = dtype

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, uncut."""
        return self.model.text_tower.lengths(texts)

    def images(self, images: Sequence[Image.Image]) -> Sequence[Tensor]:
        """[T, W] of each image, projected."""
        pixels = self.model.image_tower.pixels(images).to(self.model.device, self.dtype)
        return list(self.model.of_images(self.model.image_tower(pixels)))

    def texts(self, texts: Sequence[str]) -> Sequence[Tensor]:
        """[L, W] of each text, projected."""
        states, mask = self.model.text_tower(texts, self.model.device)
        return [row[kept] for row, kept in zip(self.model.of_texts(states), mask, strict=True)]

    def scores(self, images: Sequence[Tensor], texts: Sequence[Tensor]) -> Tensor:
        """[n], log-odds."""
        return self.model.scores(torch.stack(list(images)), *padded(texts, self.model.device))


class _Stock:
    """What readers of models of transformers share: texts are token ids until they meet an image."""

    unit: Unit = "log_odds"

    def __init__(self, model: Any, processor: Any, tokenizer: Any, max_length: int) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer = tokenizer
        self.max_length = max_length

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, uncut."""
        return [len(ids) for ids in self.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]

    def texts(self, texts: Sequence[str]) -> Sequence[Tensor]:
        """[L] token ids of each text."""
        return [torch.tensor(ids) for ids in self.tokenizer(list(texts), truncation=True, max_length=self.max_length)["input_ids"]]

    def _pixels(self, images: Sequence[Image.Image]) -> Mapping[str, Tensor]:
        made = self.processor(images=list(images), return_tensors="pt")
        return {name: value.to(self.model.device, self.model.dtype if value.is_floating_point() else None) for name, value in made.items()}


class BlipReader(_Stock):
    """BLIP (Li et al. 2022, arXiv:2201.12086): the text's layers look at the image's tokens; a head with two outputs."""

    def images(self, images: Sequence[Image.Image]) -> Sequence[Tensor]:
        """[T, C] of each image."""
        return list(self.model.vision_model(pixel_values=self._pixels(images)["pixel_values"]).last_hidden_state)

    def scores(self, images: Sequence[Tensor], texts: Sequence[Tensor]) -> Tensor:
        """[n], log-odds."""
        ids, mask = padded(texts, self.model.device)
        seen = torch.stack(list(images))
        read = self.model.text_encoder(
            input_ids=ids, attention_mask=mask.long(), encoder_hidden_states=seen, encoder_attention_mask=mask.new_ones(seen.shape[:2]).long()
        )
        return _log_odds(self.model.itm_head(read.last_hidden_state[:, 0]))


class ViltReader(_Stock):
    """ViLT (Kim et al. 2021, arXiv:2102.03334): one transformer over words and patches; a head with one output.

    All patches of an image are read, where the model as it was pretrained drew some of many.
    """

    unit: Unit = "logit"

    def images(self, images: Sequence[Image.Image]) -> Sequence[Tensor]:
        """[T, C], the patches of each image, one image at a time: their sizes differ."""
        return [self._patches(image) for image in images]

    def _patches(self, image: Image.Image) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the model puts the patches in a random order
            made = self._pixels([image])
            patches: Tensor = self.model.vilt.embeddings.visual_embed(made["pixel_values"], made["pixel_mask"], max_image_length=-1)[0][0]
        return patches

    def scores(self, images: Sequence[Tensor], texts: Sequence[Tensor]) -> Tensor:
        """[n], logits."""
        ids, mask = padded(texts, self.model.device)
        seen, shown = padded(images, self.model.device)
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask.long(), image_embeds=seen, pixel_mask=shown.long()).logits
        return logits[:, 0].float()


class BridgeTowerReader(_Stock):
    """BridgeTower (Xu et al. 2022, arXiv:2206.08657): both towers meet in several layers, so that all but the pixels is done for each pair."""

    def images(self, images: Sequence[Image.Image]) -> Sequence[Tensor]:
        """[3, h, w] of each image."""
        return list(self._pixels(images)["pixel_values"])

    def scores(self, images: Sequence[Tensor], texts: Sequence[Tensor]) -> Tensor:
        """[n], log-odds."""
        ids, mask = padded(texts, self.model.device)
        return _log_odds(self.model(input_ids=ids, attention_mask=mask.long(), pixel_values=torch.stack(list(images))).logits)


class FlavaMatcher(FlavaPreTrainedModel):
    """What matches in FlavaForPreTraining, under the names of its weights: its codebook and its other heads are not loaded."""

    def __init__(self, config: FlavaConfig) -> None:
        super().__init__(config)
        self.flava = FlavaModel(config)
        self.itm_head = FlavaITMHead(config)  # type: ignore[no-untyped-call]
        self.post_init()  # type: ignore[no-untyped-call]


class FlavaReader(_Stock):
    """FLAVA (Singh et al. 2022, arXiv:2112.04482): two towers as in ALBEF, then layers over the tokens of both; a head with two outputs."""

    def images(self, images: Sequence[Image.Image]) -> Sequence[Tensor]:
        """[T, W] of each image, projected; before the tower's last norm, as the layers over both read it."""
        states = self.model.flava.image_model(pixel_values=self._pixels(images)["pixel_values"], output_hidden_states=True).hidden_states[-1]
        return list(self.model.flava.image_to_mm_projection(states))

    def texts(self, texts: Sequence[str]) -> Sequence[Tensor]:
        """[L, W] of each text, projected."""
        ids, mask = padded(super().texts(texts), self.model.device)
        states = self.model.flava.text_model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states[-1]
        return [row[kept] for row, kept in zip(self.model.flava.text_to_mm_projection(states), mask, strict=True)]

    def scores(self, images: Sequence[Tensor], texts: Sequence[Tensor]) -> Tensor:
        """[n], log-odds."""
        read, mask = padded(texts, self.model.device)
        seen = torch.stack(list(images))
        before = mask.new_ones((len(seen), seen.shape[1] + self.model.flava.multimodal_model.use_cls_token))
        both = self.model.flava.multimodal_model(torch.cat([seen, read], dim=1), attention_mask=torch.cat([before, mask], dim=1).long())
        return _log_odds(self.model.itm_head(both.last_hidden_state))


_STOCK: Mapping[str, tuple[type[PreTrainedModel], str, Callable[..., FusionReader]]] = {
    "blip": (BlipForImageTextRetrieval, "itm_head", BlipReader),
    "bridgetower": (BridgeTowerForImageAndTextRetrieval, "itm_score", BridgeTowerReader),
    "flava": (FlavaMatcher, "itm_head", FlavaReader),
    "vilt": (ViltForImageAndTextRetrieval, "rank_output", ViltReader),
}
"""Family -> the class of transformers, the name of its head, and how a teacher reads with it."""

FAMILIES = (*_STOCK, FAMILY)


def open_reader(folder: Path, max_length: int | None, precision: str, where: str) -> FusionReader:
    """The model in a folder.

    Args:
        folder: with a config.json.
        max_length: tokens of a text at most; the model's own when None.
        precision: of weights and activations; log-odds are taken in float32.
        where: begins the error message.

    Raises:
        ConfigError: the family is unknown, the head is missing, files are, or the model does not read so long texts.
    """
    family = _family(folder, where)
    if family == FAMILY:
        model = load_fusion_model(folder, where)
        if max_length and max_length > model.shape.max_length:
            raise ConfigError(f"{where}: max_length: {max_length} tokens, but the model was taught on {model.shape.max_length}")
        model.text_tower.shorten(max_length or model.shape.max_length)
        return OwnReader(model, model.text_tower.max_length, DTYPES[precision])
    kind, head, reader = _STOCK[family]
    stock, processor, tokenizer = _open_stock(kind, folder, head, DTYPES[precision], where)
    text: Any = getattr(stock.config, "text_config", stock.config)
    check_length(max_length, text, f"{where}: max_length")
    longest = min(tokenizer.model_max_length, getattr(text, "max_position_embeddings", tokenizer.model_max_length))
    return reader(stock, processor, tokenizer, max_length or longest)


def _family(folder: Path, where: str) -> str:
    known = ", ".join(FAMILIES[:-1])
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        family = str(config.get("model_type"))
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}: {folder} has no readable config.json, so it is no fusion model; known families are {known}") from error
    if family not in FAMILIES:
        raise ConfigError(
            f'{where}: {folder} is of the family "{family}", which no adapter reads; known are {known} and what a table "train" makes. '
            "Name such a model, or give image_model, text_model and train = {}"
        )
    return family


def _open_stock(kind: Any, folder: Path, head: str, dtype: torch.dtype, where: str) -> tuple[Any, Any, Any]:
    try:
        model, info = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True)
        processor = open_processor(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{where}: {folder} is no whole {kind.__name__} ({first_line(error)})") from error
    if missing := [name for name in info["missing_keys"] if name.startswith(f"{head}.")]:
        raise ConfigError(
            f"{where}: {folder} was never taught to match ({missing[0]} is not among its weights), so its scores would be random. "
            "Name a checkpoint for retrieval, such as Salesforce/blip-itm-base-coco"
        )
    return model.eval().to(_device()), processor, tokenizer


def _log_odds(logits: Tensor) -> Tensor:
    """[n] of [n, 2]: the logarithm of how much more probable "match" is than "do not match" is the difference of the two."""
    return logits[:, 1].float() - logits[:, 0].float()


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
