"""Tiny models that write captions, and a server that sees: everything of it is made on the spot."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.fusion_material import COLOURS, SPECIAL, WORDS, _save, save_tokenizer
from tests.llm_server import FaultyServer, Handler, running

TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %} {{ part.text }}{% endif %}{% endfor %}{% endfor %} [SEP]"
)


def save_blip_captioner(folder: Path, seed: int = 1) -> Path:
    """BLIP that writes captions, random, images of 32 pixels."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil

    pieces = save_tokenizer(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": pieces, "encoder_hidden_size": 32, "max_position_embeddings": 24, "pad_token_id": 0, "bos_token_id": 2}
    text |= {"sep_token_id": 3, "eos_token_id": 3}
    config = BlipConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 16}, projection_dim=16, image_text_hidden_size=16)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return _save(BlipForConditionalGeneration, config, folder, seed)


def save_chat_captioner(folder: Path, seed: int = 1) -> Path:
    """LLaVA, random: a model that chats about an image of 32 pixels."""
    from transformers import (
        BertTokenizer,
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    pieces = (*SPECIAL, "<image>", *WORDS)
    vocab = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = BertTokenizer(vocab=vocab, model_max_length=96, additional_special_tokens=["<image>"])
    size = {"height": 32, "width": 32}
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = LlamaConfig(vocab_size=len(pieces), max_position_embeddings=96, bos_token_id=2, eos_token_id=3, pad_token_id=0, **sizes)
    vision = CLIPVisionConfig(image_size=32, patch_size=16, **sizes)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=vocab["<image>"], vision_feature_layer=-1)
    return _save(LlavaForConditionalGeneration, config, folder, seed)


class CaptionServer(FaultyServer):
    """Looks at the image that it is sent, and says its colour and the seed; or what `says` makes of both."""

    def __init__(self) -> None:
        super().__init__(CaptionHandler)
        self.says: Callable[[str, int], Any] = lambda colour, seed: f"a {colour} square number {seed}"


class CaptionHandler(Handler):
    """Chats about one image and one text."""

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """What is said of the image in the last message."""
        said = self.server.says(colour_of(shown(body)), body["seed"])
        return {"choices": [{"message": {"role": "assistant", "content": said}}], "usage": {"prompt_tokens": 50, "completion_tokens": 5}}


def shown(body: dict[str, Any]) -> Image.Image:
    """The image in a request."""
    (message,) = body["messages"]
    image, _ = message["content"]
    kind, _, data = image["image_url"]["url"].partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def colour_of(image: Image.Image) -> str:
    """The name of the nearest colour."""
    mean = np.asarray(image.convert("RGB"), dtype=np.float64).reshape(-1, 3).mean(axis=0)
    return min(COLOURS, key=lambda name: float(((mean - COLOURS[name]) ** 2).sum()))


@contextlib.contextmanager
def caption_server() -> Iterator[CaptionServer]:
    """The server, for as long as the block runs."""
    with CaptionServer() as server, running(server):
        yield server
