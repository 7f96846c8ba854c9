"""Experiment files written: a new one with every key explained, and a checked one with its defaults filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from retriever.config import Experiment


def as_toml(experiment: Experiment, explain: bool = False) -> str:
    """The experiment as TOML with every default filled in; keys without a value are comments.

    Args:
        experiment: a checked one.
        explain: whether each key carries its description.
    """
    sections = [*_keys(experiment, explain)]
    for name in type(experiment).model_fields:
        value = getattr(experiment, name)
        if isinstance(value, BaseModel):
            sections += ["", f"[{name}]", *_keys(value, explain)]
        elif isinstance(value, tuple):
            for item in value:
                sections += ["", f"[[{name}]]", *_keys(item, explain)]
    return "\n".join(sections) + "\n"


def _keys(section: BaseModel, explain: bool) -> Iterator[str]:
    """One line for each plain key of a section."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(section, Experiment) and (value is None or isinstance(value, BaseModel | tuple)):
            continue  # a table or tables; an empty list of tables would forbid one that somebody adds
        line = f"# {name} =" if value is None else f"{name} = {_toml(value)}"
        yield f"{line}  # {field.description}" if explain and field.description else line


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def _toml(value: Any) -> str:
    """A value in TOML's words."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(inner) for inner in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")  # the one character that TOML escapes and JSON does not
