"""Distils slow, good rankers into fast retrievers."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retriever.collection import Collection, open_collection, write_collection
    from retriever.config import Experiment, experiment_from, read_experiment
    from retriever.distillation import distill
    from retriever.errors import RetrieverError
    from retriever.pipeline import Pipeline
    from retriever.runs import Run, read_qrels, write_qrels
    from retriever.scores.store import ScoreStore
    from retriever.search import SearchIndex, open_index
    from retriever.types import Document, Query

_here = Path(__file__).resolve().parent
if not (_here / "teachers").is_dir():  # a source tree: the sub-packages lie beside this folder
    __path__.append(str(_here.parent))  # a wheel: they lie inside it

_HOMES = {
    "Collection": "collection",
    "Document": "types",
    "Experiment": "config",
    "Pipeline": "pipeline",
    "Query": "types",
    "RetrieverError": "errors",
    "Run": "runs",
    "ScoreStore": "scores.store",
    "SearchIndex": "search",
    "distill": "distillation",
    "experiment_from": "config",
    "open_collection": "collection",
    "open_index": "search",
    "read_experiment": "config",
    "read_qrels": "runs",
    "write_collection": "collection",
    "write_qrels": "runs",
}

__all__ = [
    "Collection",
    "Document",
    "Experiment",
    "Pipeline",
    "Query",
    "RetrieverError",
    "Run",
    "ScoreStore",
    "SearchIndex",
    "distill",
    "experiment_from",
    "open_collection",
    "open_index",
    "read_experiment",
    "read_qrels",
    "write_collection",
    "write_qrels",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: `retriever --help` waits for none of them."""
    if name not in _HOMES:
        raise AttributeError(f"module 'retriever' has no attribute {name!r}")
    return getattr(importlib.import_module(f"retriever.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
