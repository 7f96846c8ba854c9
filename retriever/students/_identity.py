"""What decides a model's output, in sixteen hexadecimal digits."""

from __future__ import annotations

import hashlib
import math
from typing import Any, cast

import torch
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Router, Transformer
from torch import nn
from transformers import ImageProcessingMixin

from retriever.files import fingerprint
from retriever.models.routes import document_model, is_routed

OF_THE_MODEL = ("truncate_dim", "max_active_dims")
"""Attributes of sentence-transformers' models that change what they give; None in a plain dense one."""

OF_THE_FIRST_MODULE = ("query_length", "document_length", "query_expansion")
"""Settings of a transformer that change what it reads; None in a plain dense one."""


def model_fingerprint(model: BaseModel) -> str:
    """Changes with the weights, the vocabulary, the modules' settings, the lengths read, the prompts and the similarity.

    It is taken from what is loaded, not from files: a model that is saved and loaded again keeps it.

    Args:
        model: a SentenceTransformer, SparseEncoder, MultiVectorEncoder or CrossEncoder.
    """
    first, *others = model
    # The first module's settings are lengths and the transformer's own, of which weights and vocabulary tell already.
    modules = [[type(first).__name__, ""], *(_described(module) for module in others)]
    vocabulary = sorted(model.tokenizer.get_vocab().items())
    similarity = getattr(model, "similarity_fn_name", None)
    facts = [_weights(model), vocabulary, modules, _length(model), model.prompts, similarity]
    options = _options(model)
    return fingerprint([*facts, options] if options else facts)  # a model without options keeps the name under which its vectors lie on disks


def fingerprints(model: BaseModel) -> tuple[str, str]:
    """Of the model, and of what decides its documents' encodings alone; the same twice unless queries go another way through it.

    The second is that of the symmetric model which documents go through. A model whose documents were frozen when it was
    trained has there what its start, a symmetric model, had before.
    """
    whole = model_fingerprint(model)
    return whole, document_fingerprint(model) if is_routed(model) else whole


def document_fingerprint(model: BaseModel) -> str:
    """The second of `fingerprints`."""
    return model_fingerprint(document_model(model))


def _weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _described(module: nn.Module) -> list[str]:
    return [type(module).__name__, str(cast(Any, module).get_config_dict())]


def _length(model: BaseModel) -> int | None:
    """Tokens read of a text; None for all of them, and for a model whose routes have lengths of their own."""
    length = None if isinstance(model[0], Router) else model.max_seq_length
    return None if length is None or math.isinf(length) else int(length)


def _options(model: BaseModel) -> dict[str, Any]:
    """Whatever else changes the output, where it is set."""
    first = model[0]
    chosen = {name: getattr(model, name, None) for name in OF_THE_MODEL} | {name: getattr(first, name, None) for name in OF_THE_FIRST_MODULE}
    chosen["truncation"] = getattr(first.tokenizer, "truncation", None)  # a static embedding's length is its tokenizer's
    chosen["images"] = _image_settings(model) or None
    if isinstance(first, Router):
        routes = cast(dict[str, nn.Sequential], first.sub_modules)
        chosen["routes"] = {route: [_described_part(part) for part in parts] for route, parts in routes.items()}
    return {name: value for name, value in chosen.items() if value is not None}


def _image_settings(model: BaseModel) -> list[dict[str, Any]]:
    """How images are made into pixels, of each module that reads some; not by which library."""
    readers = (getattr(module, "processor", None) for module in model.modules())
    processors = [getattr(reader, "image_processor", reader) for reader in readers]
    told = [processor.to_dict() for processor in processors if isinstance(processor, ImageProcessingMixin)]
    return [{name: str(value) for name, value in sorted(one.items()) if not name.startswith("_") and name != "image_processor_type"} for one in told]


def _described_part(part: nn.Module) -> list[Any]:
    """A module on one of several routes: its settings unless it is a transformer, and the length it reads if it reads texts."""
    name, settings = _described(part)
    length = getattr(getattr(part, "tokenizer", None), "model_max_length", None)
    options = [f"{option} {value}" for option in OF_THE_FIRST_MODULE if (value := getattr(part, option, None)) is not None]
    return [name, "" if isinstance(part, Transformer) else settings, length, *options]
