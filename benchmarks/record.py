"""What a benchmark measured: compared in one way, and kept in benchmarks/results beside what its other calls measured."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retriever.eval.measures import Evaluation
from retriever.eval.significance import Clusters, compare, generator_for, mean_interval
from retriever.files import write_text

RESULTS = Path(__file__).resolve().parent / "results"
MACHINE = f"{os.cpu_count()} cores, {platform.machine()}"


def kept(name: str) -> dict[str, Any]:
    """What results/<name>.json holds; nothing where there is no such file."""
    path = RESULTS / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def keep(name: str, results: Mapping[str, Any]) -> None:
    """Writes results/<name>.json; entries of earlier calls that these do not name stay."""
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / f"{name}.json", json.dumps({**kept(name), **results}, indent=2) + "\n")


def against(found: Mapping[str, Evaluation], baseline: str, measure: str, seed: int, clusters: Clusters | None = None) -> dict[str, dict[str, Any]]:
    """Name -> mean, interval, difference to the baseline and p-value of the paired test; `clusters` names the conversations that stay together."""
    tests = {one.run: one for one in compare(found, [(name, baseline) for name in found if name != baseline], [measure], seed, clusters)}
    return {
        name: {
            "mean": evaluation.means[measure],
            "interval": mean_interval(evaluation.query_ids, evaluation.values[measure], clusters, generator_for(seed, "interval", name, measure)),
            "difference": tests[name].difference if name in tests else 0.0,
            "p_value": tests[name].p_value if name in tests else 1.0,
            "queries": len(evaluation),
        }
        for name, evaluation in found.items()
    }
