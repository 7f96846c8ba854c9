"""Captioners of transformers on this machine: BLIP, and models that chat about an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, LogitsProcessorList, TopPLogitsWarper

from retriever.captioning.answers import BLIP_PROMPT, CHAT_PROMPT
from retriever.captioning.identity import seed_of
from retriever.engines.local import best_device
from retriever.errors import ConfigError
from retriever.images.reading import read_image
from retriever.models.names import find_model
from retriever.settings.captioner import CaptionerSettings
from retriever.types import Usage
from retriever.writing.writers import WriterIdentity


class RowDraws:
    """Draws the next token of each row with a generator of its own, so that nobody's caption depends on who else is in the batch.

    The token with the highest logit plus Gumbel noise is a draw from the softmax (Gumbel 1954), so the likeliest token is taken afterwards.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature
        self.likely: Any = TopPLogitsWarper(top_p) if top_p < 1 else None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[b, V], logits / temperature of the tokens that may be drawn, with noise."""
        logits = scores.float() / self.temperature
        if self.likely is not None:
            logits = self.likely(input_ids, logits)
        noise = [-torch.empty(logits.shape[1]).exponential_(generator=generator).log() for generator in self.generators]
        return logits + torch.stack(noise).to(logits.device)


class LocalCaptioner:
    """An image-text-to-text model with its processor.

    Attributes:
        prompt: what comes before a caption, the same for all images.
        identity: what decides the captions.
        usage: images asked about and tokens so far.
    """

    def __init__(self, settings: CaptionerSettings, model: Any, processor: Any, identity: WriterIdentity) -> None:
        self.settings = settings
        self.model = model
        self.processor = processor
        self.identity = identity
        self.usage = Usage()
        self.prompt = prompt_for(model, processor, settings.prompt)

    def write(self, things: Sequence[Path], sample: int) -> list[str]:
        """One raw answer for each image.

        Raises:
            DataError: an image cannot be read; the message begins with its path.
        """
        return [
            text for start in range(0, len(things), self.settings.batch_size) for text in self._batch(things[start : start + self.settings.batch_size], sample)
        ]

    def _batch(self, paths: Sequence[Path], sample: int) -> Iterator[str]:
        inputs = self._inputs(paths)
        self._check_room(inputs)
        draws = LogitsProcessorList()
        if self.settings.temperature:
            draws.append(RowDraws([seed_of(self.identity, sample, path) for path in paths], self.settings.temperature, self.settings.top_p))
        with torch.inference_mode():
            made = self.model.generate(**inputs, max_new_tokens=self.settings.answer_tokens, do_sample=False, num_beams=1, logits_processor=draws)
        written = made[:, self._begins(inputs) :]
        told = int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else 0
        padding = self.processor.tokenizer.pad_token_id
        self.usage += Usage(requests=len(paths), prompt_tokens=told, completion_tokens=int((written != padding).sum()))
        yield from self.processor.batch_decode(written, skip_special_tokens=True)

    def _inputs(self, paths: Sequence[Path]) -> dict[str, Any]:
        images = [read_image(path) for path in paths]
        told = {"text": [self.prompt] * len(images), "padding": True} if self.prompt else {}
        nested = [[image] for image in images] if self.processor_chats else images  # one list of images for each chat
        made = self.processor(images=nested, return_tensors="pt", **told)
        floats = self.model.dtype
        return {name: value.to(self.model.device, floats if value.is_floating_point() else None) for name, value in made.items()}

    def _check_room(self, inputs: dict[str, Any]) -> None:
        taken = int(inputs["input_ids"].shape[1]) if "input_ids" in inputs else 1
        places = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if places and taken + self.settings.answer_tokens > places:
            raise ConfigError(
                f"captioner {self.settings.label}: the prompt's {taken} tokens and {self.settings.answer_tokens} of a caption are more than the {places} "
                "that the model has places for. Lower answer_tokens, or shorten the prompt"
            )

    @property
    def processor_chats(self) -> bool:
        """Whether the model has a chat template."""
        return bool(getattr(self.processor, "chat_template", None))

    def _begins(self, inputs: dict[str, Any]) -> int:
        """The place at which an answer begins in what the model gives back, which is the prompt too."""
        if "input_ids" not in inputs or self.model.config.is_encoder_decoder:
            return 0
        return int(inputs["input_ids"].shape[1]) - int(self.model.config.model_type == "blip")  # which leaves out the token that ends the prompt


def prompt_for(model: Any, processor: Any, prompt: str | None) -> str:
    """What the processor is given before the caption: the prompt in the chat template where there is one, with a place for the image."""
    if not getattr(processor, "chat_template", None):
        return prompt if prompt is not None else BLIP_PROMPT if model.config.model_type == "blip" else ""
    content = [{"type": "image"}, {"type": "text", "text": CHAT_PROMPT if prompt is None else prompt}]
    return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False))


def load_captioner(settings: CaptionerSettings, identity: WriterIdentity, where: str) -> LocalCaptioner:
    """The model of a folder or hub id, on the best device there is.

    Raises:
        ConfigError: there is none, it writes no captions, or its folder lacks weights or what makes pixels of images.
    """
    folder = find_model(settings.model, settings.revision, where).folder
    device = best_device()
    dtype = "float32" if settings.dtype == "auto" and device == "cpu" else settings.dtype
    model_of: Any = AutoModelForImageTextToText
    processor_of: Any = AutoProcessor
    try:
        model, info = model_of.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True)
        processor = processor_of.from_pretrained(folder, local_files_only=True, backend="pil")
        processor.tokenizer.padding_side = "left"  # answers begin at the same place
    except (ValueError, OSError, KeyError, AttributeError, ImportError) as error:
        raise ConfigError(f"{where}: {settings.model} cannot be loaded as a model that writes captions ({str(error).splitlines()[0][:200]})") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ConfigError(f"{where}: {settings.model} lacks the weights of {missing[0]} ({len(missing)} missing), so it was never taught to write captions")
    return LocalCaptioner(settings, model.eval().to(device), processor, identity)
