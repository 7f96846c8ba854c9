"""Kinds by name: a folder's files are its registry."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from types import ModuleType

from retriever.errors import ConfigError

_ENTRY = {"teachers": "load", "students": "load", "indexing": "build"}
"""The function that a kind of each package must have; what has none is a part of the others."""


def load_kind(package: str, kind: str, where: str) -> ModuleType:
    """The module `retriever.<package>.<kind>`, or the one that a dotted name such as "my_package.teacher" names.

    Raises:
        ConfigError: there is none, or it lacks the function that makes it one; the message begins with `where`.
    """
    name = kind if "." in kind else f"retriever.{package}.{kind}"
    if "." not in kind and kind not in kinds(package):
        near = difflib.get_close_matches(kind, kinds(package), n=1)
        advice = f'did you mean "{near[0]}"?' if near else f'known are {", ".join(kinds(package))}, or your own as "package.module"'
        raise ConfigError(f'{where}: unknown kind "{kind}"; {advice}')
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # the module is there and something that it imports is not
        raise ConfigError(f'{where}: no module named "{name}" can be imported. Install it, or start Python where it lies') from error
    if not hasattr(module, _ENTRY[package]):
        raise ConfigError(f'{where}: "{kind}" is no kind that can be chosen: {name} has no function "{_ENTRY[package]}"')
    return module


def kinds(package: str) -> list[str]:
    """The names of the kinds that `retriever.<package>` has."""
    spec = importlib.util.find_spec(f"retriever.{package}")
    locations = spec.submodule_search_locations if spec else None
    return sorted(module.name for module in pkgutil.iter_modules(locations) if not module.name.startswith("_"))
