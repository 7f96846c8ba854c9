"""Students whose transformers compute in ONNX Runtime or OpenVINO; what they encode is what torch makes of it, to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.base.modules import Transformer

from retriever.errors import ConfigError
from retriever.models.exported import Compute, Inputs, ModelOutput, Runtime, open_exported
from retriever.models.modalities import routes, text_reader
from retriever.models.names import cache_folder
from retriever.models.routes import readers_of

PROBE = (("owl", "how do owls hunt at night, and what do they hear under the snow?"), ("an owl hears a mouse " * 8,))
"""Texts that are read together, with padding among them."""

TAKEN = ("input_ids", "attention_mask", "token_type_ids")
INSTEAD = "Leave --backend out: torch computes it"


def compute_in(runtime: Runtime, student: Any, where: str, cache: Path | None = None) -> int:
    """How many transformers of a student compute in another runtime from now on: those that read its texts, of which a static student has none.

    An export takes seconds and is kept. The student keeps torch's weights: explanations read them.

    Args:
        runtime: which.
        student: changed in place.
        where: begins error messages.
        cache: where exports are kept; `cache_folder()` when left out.

    Raises:
        MissingExtraError: the runtime's packages are not installed.
        ConfigError: a transformer cannot be exported, or the exported one says something else than torch.
    """
    model = getattr(student, "model", None)
    readers = [reader for reader in _readers(model) if isinstance(reader, Transformer)] if isinstance(model, torch.nn.Sequential) else []
    for number, reader in enumerate(readers):
        folder = (cache or cache_folder()) / "exports" / f"{student.identity}-{number}"
        output = _output_of(reader, where)
        compute = open_exported(runtime, ModelOutput(reader.auto_model.eval(), output), folder, [_inputs(reader, texts) for texts in PROBE], where, INSTEAD)
        reader.auto_model.forward = _forward(compute, output)
    return len(readers)


def _readers(model: Any) -> list[torch.nn.Module]:
    return [text_reader(model)] if routes(model) else readers_of(model)


def _output_of(reader: Any, where: str) -> str:
    """The one output of the transformer that the student takes, such as last_hidden_state."""
    way = reader.modality_config["text"]
    names = way["method_output_name"]
    output = names if isinstance(names, str) else names[0] if names and len(names) == 1 else None
    if way["method"] != "forward" or output is None:
        raise ConfigError(f"{where}: what its transformer gives ({way['method']}: {names}) is more than one output of one call. {INSTEAD}")
    return output


def _inputs(reader: Any, texts: tuple[str, ...]) -> dict[str, NDArray[np.int64]]:
    features = reader.preprocess(list(texts))
    return {name: features[name].cpu().numpy().astype(np.int64) for name in TAKEN if name in features}


def _forward(compute: Compute, output: str) -> Any:
    """In place of a transformer's own forward."""

    def forward(**features: Any) -> dict[str, torch.Tensor]:
        inputs: Inputs = {name: features[name].cpu().numpy() for name in TAKEN if name in features}
        return {output: torch.from_numpy(compute(inputs))}

    return forward
