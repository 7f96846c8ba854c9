"""What a benchmark measured, kept in benchmarks/results beside what its other calls measured."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
MACHINE = f"{os.cpu_count()} cores, {platform.machine()}"


def keep(name: str, results: Mapping[str, Any]) -> None:
    """Writes results/<name>.json; entries of earlier calls that these do not name stay."""
    path = RESULTS / f"{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**kept, **results}, indent=2) + "\n", encoding="utf-8")
