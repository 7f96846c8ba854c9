"""Where an engine keeps a collection: "qdrant://host:6333/name", "milvus+https://host:19530/name", "qdrant+local:///folder/name"."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from retriever.errors import ConfigError

KEYS = {"qdrant": "QDRANT_API_KEY", "milvus": "MILVUS_TOKEN"}
"""The environment variable that holds the key of each engine, where it wants one: an address is printed and stored, a key never is."""

_SCHEMES = {
    "qdrant": ("qdrant", "http"),
    "qdrant+https": ("qdrant", "https"),
    "qdrant+local": ("qdrant", "folder"),
    "milvus": ("milvus", "http"),
    "milvus+https": ("milvus", "https"),
}
_PORTS = {"qdrant": 6333, "milvus": 19530}
_NAMES = {"qdrant": re.compile(r"[A-Za-z0-9_-]{1,255}"), "milvus": re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")}
_FORMS = "qdrant://HOST:6333/NAME, qdrant+https://HOST:6333/NAME, qdrant+local:///FOLDER/NAME, milvus://HOST:19530/NAME or milvus+https://HOST:19530/NAME"


@dataclasses.dataclass(frozen=True)
class Address:
    """An engine and a collection in it.

    Attributes:
        text: as it is printed.
        engine: which one.
        place: the engine's own address, such as "http://host:6333", or the folder of Qdrant's local mode.
        collection: its name.
    """

    text: str
    engine: Literal["qdrant", "milvus"]
    place: str | Path
    collection: str

    def __str__(self) -> str:
        return self.text

    @property
    def key(self) -> str | None:
        """What the environment variable holds, None for an engine without keys."""
        return os.environ.get(KEYS[self.engine], "").strip() or None


def is_address(text: str) -> bool:
    """Whether a text names a collection in an engine, and no folder; it may still be a wrong one."""
    return text.partition("://")[0] in _SCHEMES and "://" in text


def parse_address(text: str) -> Address:
    """The parts of an address.

    Raises:
        ConfigError: it is none, or holds a key.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ConfigError(f"an engine's address has a host or port that is none ({error}); write {_FORMS}") from error
    if parts.scheme not in _SCHEMES:
        raise ConfigError(f'the address begins with "{parts.scheme or text[:20]}"; write {_FORMS}')
    engine, how = _SCHEMES[parts.scheme]
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ConfigError(f"{parts.scheme}://{host}: an address holds no user, key or options. Put the key into the environment variable {KEYS[engine]}")
    folder, _, name = parts.path.rpartition("/")
    if not _NAMES[engine].fullmatch(name):
        raise ConfigError(f'{text}: "{name}" is no name of a collection in {engine.capitalize()}; write {_FORMS}')
    if how == "folder":
        if parts.netloc or not folder:
            raise ConfigError(f"{text}: names no folder from the root on; write qdrant+local:///FOLDER/NAME")
        return Address(text, "qdrant", Path(folder), name)
    if not host or folder:
        raise ConfigError(f"{text}: is no host and one name; write {_FORMS}")
    return Address(text, "qdrant" if engine == "qdrant" else "milvus", f"{how}://{_host(parts)}:{port or _PORTS[engine]}", name)


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    return f"[{host}]" if ":" in host else host
