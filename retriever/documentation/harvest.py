"""A program that prints the docstrings of installed packages as JSON; run in a process of its own, because it imports them all.

It reads `{"path": [...], "packages": [...]}` from its input and writes a list of `{"names", "qualified", "kind", "doc"}` to the
file named by its argument: one entry for each object with a docstring, whatever number of names lead to it. The package name
"stdlib" stands for every module of the standard library. It imports nothing of the project, so that nothing of the project
can be half-loaded when a foreign module misbehaves.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOT_IMPORTED = frozenset({
    "antigravity", "this", "idlelib", "tkinter", "turtle", "turtledemo", "readline", "rlcompleter",  # they open, print or set up a terminal
    "lib2to3", "pydoc_data", "ensurepip", "distutils", "__main__",  # not for users, or run on import
    "test", "tests", "testing", "conftest", "core", "f2py",  # tests, and inner packages whose public names lie elsewhere
})  # fmt: skip
ROUTINES = (types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType, types.ClassMethodDescriptorType, classmethod, staticmethod)


def modules(name: str) -> Iterator[types.ModuleType]:
    """The module and its public sub-modules in alphabetical order; those that cannot be imported here are left out."""
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit):  # noqa: BLE001 - a foreign module may raise anything: not for this platform, a dependency is missing
        return
    yield module
    for child in sorted(pkgutil.iter_modules(getattr(module, "__path__", ())), key=lambda child: child.name):
        if not child.name.startswith("_") and child.name not in NOT_IMPORTED:
            yield from modules(f"{name}.{child.name}")


def public_members(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    """Names and values that a module offers: those in `__all__`, or else those without an underscore that were made in its package."""
    listed = getattr(module, "__all__", None)
    root = module.__name__.partition(".")[0]
    for name in sorted(listed if listed is not None else (name for name in vars(module) if not name.startswith("_"))):
        value = getattr(module, name, None)
        owner = str(getattr(value, "__module__", None) or root).partition(".")[0]
        if callable(value) and (listed is not None or owner.lstrip("_") == root or owner == "builtins"):
            yield name, value


class Harvest:
    """Docstrings found so far, one for each object; the objects are kept alive, so that their identities stay distinct."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self._by_identity: dict[int, dict[str, Any]] = {}
        self._alive: list[object] = []

    def add(self, name: str, value: object, kind: str) -> None:
        """Takes an object in, or one more name of an object that was there."""
        known = self._by_identity.get(id(value))
        if known is not None:
            known["names"].append(name)
            return
        doc = getattr(value, "__doc__", None)
        qualified = str(getattr(value, "__qualname__", "") or name)
        entry = {"names": [name], "qualified": qualified, "kind": kind, "doc": inspect.cleandoc(doc) if isinstance(doc, str) else ""}
        self._by_identity[id(value)] = entry
        self._alive.append(value)
        self.entries.append(entry)

    def add_class(self, name: str, value: type, depth: int = 0) -> None:
        """Takes a class in, with the public methods and accessor classes that it has from its own package."""
        self.add(name, value, "class")
        own = [base for base in reversed(value.__mro__) if base.__module__.partition(".")[0] == value.__module__.partition(".")[0]]
        members = {member: stored for base in own for member, stored in vars(base).items() if not member.startswith("_")}
        for member, stored in sorted(members.items()):
            if isinstance(stored, ROUTINES):
                self.add(f"{name}.{member}", getattr(stored, "__func__", stored), "method")
            elif depth == 0 and isinstance(nested := getattr(value, member, None), type):
                self.add_class(f"{name}.{member}", nested, depth + 1)

    def add_module(self, module: types.ModuleType) -> None:
        """Takes a module in, with its classes and functions."""
        self.add(module.__name__, module, "module")
        for name, value in public_members(module):
            if isinstance(value, type):
                self.add_class(f"{module.__name__}.{name}", value)
            else:
                self.add(f"{module.__name__}.{name}", value, "function")


def main() -> None:
    """Reads the request, imports and writes; what the imported modules print goes nowhere."""
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]
    warnings.simplefilter("ignore")
    harvest = Harvest()
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives
    for package in request["packages"]:
        standard = sorted(name for name in sys.stdlib_module_names if not name.startswith("_") and name not in NOT_IMPORTED)
        for name in standard if package == "stdlib" else [package]:
            for module in modules(name):
                harvest.add_module(module)
    Path(sys.argv[1]).write_text(json.dumps([entry for entry in harvest.entries if entry["doc"]]), encoding="utf-8")


if __name__ == "__main__":
    main()
