"""Kinds by name: a folder's files are its registry."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from types import ModuleType

from retriever.errors import ConfigError


def load_kind(package: str, kind: str, where: str) -> ModuleType:
    """The module `retriever.<package>.<kind>`, or the one that a dotted name such as "my_package.teacher" names.

    Raises:
        ConfigError: there is none; the message begins with `where` and names the kinds there are.
    """
    name = kind if "." in kind else f"retriever.{package}.{kind}"
    if "." not in kind and kind not in kinds(package):
        near = difflib.get_close_matches(kind, kinds(package), n=1)
        advice = f'did you mean "{near[0]}"?' if near else f'known are {", ".join(kinds(package))}, or your own as "package.module"'
        raise ConfigError(f'{where}: unknown kind "{kind}"; {advice}')
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # the module is there and something that it imports is not
        raise ConfigError(f'{where}: no module named "{name}" can be imported. Install it, or start Python where it lies') from error


def kinds(package: str) -> list[str]:
    """The names of the kinds that `retriever.<package>` has."""
    spec = importlib.util.find_spec(f"retriever.{package}")
    locations = spec.submodule_search_locations if spec else None
    return sorted(module.name for module in pkgutil.iter_modules(locations) if not module.name.startswith("_"))
