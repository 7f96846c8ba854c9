"""Finding the candidates of an experiment: the best documents of every source, fused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from retriever.candidates import bm25_run, file_run, index_run, reciprocal_rank_fusion, run_file
from retriever.conversations.reading import ConversationReader, Reading
from retriever.files import fingerprint, sha256_file
from retriever.models.names import find_model
from retriever.plugins import load_kind
from retriever.queries import asked_fingerprint, reading_input
from retriever.runs import Run
from retriever.settings.index import EXACT
from retriever.settings.teacher import EmbeddingSettings

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline

SPLITS = ("train", "test")


def find_candidates(pipeline: Pipeline) -> dict[str, Run]:
    """Split -> the retrieved candidates of its queries, without added positives; found now unless they lie there already."""
    settings, collection = pipeline.experiment.candidates, pipeline.collection
    inputs = {"collection": collection.fingerprint}
    inputs |= {split: _asked(pipeline, split) for split in SPLITS}
    inputs |= {source: _identity_of(pipeline, source) for source in settings.sources if source not in ("bm25", "lucene")}
    inputs |= _read_by_student(pipeline)

    def work(folder: Path) -> None:
        for split in SPLITS:
            runs = [_run_of(pipeline, source, split, reading) for source in settings.sources for reading in settings.reads or (None,)]
            pipeline.counted(reciprocal_rank_fusion("candidates", runs)).write_parquet(folder / f"{split}.parquet")

    decides = settings.model_dump(mode="json", exclude=None if settings.reads else {"reads"})
    decides |= {"remove_own_document": True} if pipeline.experiment.evaluation.remove_own_document else {}
    _, runs = pipeline.open_step(
        lambda: pipeline.step("candidates", inputs, decides, work),
        lambda folder: {split: Run.read_parquet(folder / f"{split}.parquet") for split in SPLITS},
    )
    return runs


def _identity_of(pipeline: Pipeline, source: str) -> str:
    """What decides the candidates of a file or a model."""
    if run := run_file(source):
        return sha256_file(run)
    return str(pipeline.start.identity) if source == "student" else find_model(source, where="candidates.sources").identity


def _asked(pipeline: Pipeline, split: str) -> str:
    """The fingerprint of a split's queries under all readings that are searched with."""
    name, readings = getattr(pipeline.experiment.collection, split), pipeline.experiment.candidates.reads
    found = [asked_fingerprint(pipeline.collection, name, pipeline.queries(split, reading)) for reading in readings or (None,)]
    return found[0] if len(found) == 1 else fingerprint(found)


def _read_by_student(pipeline: Pipeline) -> dict[str, str]:
    """What the student reads, where it is a source that searches with that; or with "last", whose candidates in older folders were found with that too."""
    settings = pipeline.experiment.candidates
    decides = "student" in settings.sources and (not settings.reads or "last" in settings.reads)
    return reading_input(pipeline, SPLITS) if decides else {}


def _run_of(pipeline: Pipeline, source: str, split: str, reading: Reading | None) -> Run:
    """One source's candidates for one reading; the student reads as it does everywhere, unless a reading is named."""
    queries, settings = pipeline.queries(split, reading), pipeline.experiment.candidates
    if source == "student":
        queries = ConversationReader().read_all(queries) if reading else pipeline.student_queries(split)
    if source == "bm25":
        return bm25_run(f"BM25, {split}", pipeline.bm25, pipeline.collection, queries, settings.depth, pipeline.reporter)
    if source == "lucene":
        from retriever.lucene import lucene_run

        return lucene_run(pipeline.collection, pipeline.folder / "lucene", queries, settings.depth, settings, pipeline.reporter)
    if run := run_file(source):
        return file_run(run, pipeline.collection, queries, settings.depth, pipeline.reporter)
    settings_of_source = EmbeddingSettings(model=source, family="image_text" if pipeline.experiment.student.kind == "image_text" else "dense")
    encoder, encodings = pipeline.encoder_of(settings_of_source)
    index = load_kind("indexing", EXACT[encoder.kind], "candidates").of_vectors(encodings)
    return index_run(f"{source}, {split}", encoder, index, pipeline.collection, queries, settings.depth, pipeline.reporter)
