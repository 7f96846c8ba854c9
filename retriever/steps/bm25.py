"""The BM25 index of an experiment's documents, made once and mapped afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from retriever.bm25 import BM25, build_bm25, open_bm25
from retriever.steps.step import Done, Step, run_step

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline


def bm25_of(pipeline: Pipeline) -> BM25:
    """The index, read from the experiment's folder where it is there already and whole."""
    return pipeline.open_step(partial(_made, pipeline), open_bm25)[1]


def _made(pipeline: Pipeline) -> Done:
    settings = pipeline.experiment.candidates
    deciding = {"k1": settings.k1, "b": settings.b, "language": settings.language}

    def work(folder: Path) -> None:
        with pipeline.reporter.bar("BM25 index", len(pipeline.documents)) as advance:

            def texts() -> Iterator[str]:
                for document in pipeline.documents.documents():
                    yield document.full_text
                    advance(1)

            build_bm25(texts(), settings.k1, settings.b, settings.language).save(folder)

    return run_step(Step("bm25", {"documents": pipeline.documents.fingerprint}, deciding, seed=0), pipeline.folder, work)  # nothing is drawn
