"""An experiment's encoders, and what they make of all documents: here, or by workers that load the same encoder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from retriever.encodings import DocumentEncodings, EncodingEngine, document_identity, encode_block, encode_collection, encode_here
from retriever.plugins import load_kind
from retriever.ragged_encodings import encode_ragged
from retriever.settings.student import STUDENT_KINDS
from retriever.settings.teacher import EmbeddingSettings
from retriever.students._precision import in_precision
from retriever.workers.loader import Loader, engine_of

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline


def load_encoder(settings: EmbeddingSettings) -> Any:
    """The encoder of an embedding teacher that names a model."""
    shared = {"model": str(settings.model), "revision": settings.revision, "max_length": settings.max_length}
    student = STUDENT_KINDS[settings.family].model_validate(shared)
    encoder = load_kind("students", settings.family, f"teacher {settings.label}").load(student, settings.batch_size)
    return in_precision(encoder, settings.precision)


def encode_documents(pipeline: Pipeline, encoder: Any, what: str, load: Loader | None) -> DocumentEncodings:
    """An encoder's vectors, token vectors or sparse entries of all documents; those on the disk, of any encoder that encodes documents alike, are only opened.

    Args:
        pipeline: the experiment.
        encoder: what makes them.
        what: what a bar calls it.
        load: loads it in a worker; without one, all is done here.
    """
    folder = pipeline.encodings_folder / f"{document_identity(encoder)}-{pipeline.documents.fingerprint}"
    encode: Callable[..., DocumentEncodings] = encode_ragged if hasattr(encoder, "columns") else encode_collection
    here: contextlib.AbstractContextManager[EncodingEngine] = contextlib.nullcontext(encode_here)
    by = engine_of(pipeline.experiment.scoring, load, encode_block, f'encoder "{what}"') if load else here
    with pipeline.reporter.bar(f"encoding documents ({what})", len(pipeline.documents)) as advance, by as engine:
        return encode(encoder, pipeline.documents, folder, advance, engine)
