"""Samples and models for the tests of training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from retriever.bm25 import build_bm25
from retriever.collection import Collection, open_collection
from retriever.runs import Run
from retriever.scores.store import TeacherScores
from retriever.settings.collection import CollectionSettings
from retriever.settings.training import TrainingSettings
from retriever.training.samples import TrainingSamples, make_samples
from retriever.types import Query, Unit

ANIMALS_AND_TOOLS = Path(__file__).parent / "data" / "animals_and_tools"


class Stopped(BaseException):
    """As Ctrl-C is: nothing on the way catches it."""


def weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of all weights of a model."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def untrained(similarity: str) -> SentenceTransformer:
    """A model whose vectors nobody asks for, with this similarity."""
    return SentenceTransformer(modules=[torch.nn.Identity()], device="cpu", similarity_fn_name=similarity)


def samples_of(
    documents: Sequence[Sequence[int]],
    teacher: Sequence[Sequence[float]] | None = None,
    mask: Sequence[Sequence[bool]] | None = None,
    not_negative: Sequence[Sequence[int]] | None = None,
    unit: Unit = "logit",
) -> TrainingSamples:
    """Samples of these rows; without more, every document but the positive is a negative and the teacher likes the first ones."""
    rows = np.array(documents, dtype=np.int64)
    scores = -np.arange(rows.size, dtype=np.float32).reshape(rows.shape) if teacher is None else np.array(teacher, dtype=np.float32)
    known = [[row[0]] for row in documents] if not_negative is None else not_negative
    return TrainingSamples(
        queries=[Query(f"q{number}", f"query {number}") for number in range(len(rows))],
        documents=rows,
        teacher=scores,
        mask=np.ones(rows.shape, dtype=np.bool_) if mask is None else np.array(mask, dtype=np.bool_),
        not_negative=[np.unique(np.array(rows_of_query, dtype=np.int64)) for rows_of_query in known],
        unit=unit,
    )


def in_logits(run: Run) -> TeacherScores:
    """A run as a teacher's scores."""
    return TeacherScores(run, "logit", "0" * 16, run.name)


def animal_lessons(folder: Path, training: TrainingSettings) -> tuple[Collection, TrainingSamples]:
    """The animals and tools in `folder`, and samples whose teacher is BM25 with 5 points more for a positive."""
    collection = open_collection(CollectionSettings(path=ANIMALS_AND_TOOLS), folder)
    queries, qrels = collection.queries("train"), collection.qrels("train")
    index = build_bm25(document.full_text for document in collection.documents())
    doc_ids = collection.doc_ids.tolist()
    scores = {
        query_id: {doc_id: float(score) + 5 * (qrels[query_id].get(doc_id, 0) > 0) for doc_id, score in zip(doc_ids, index.scores(query.text), strict=True)}
        for query_id, query in queries.items()
    }
    return collection, make_samples(in_logits(Run.from_dict("bm25 that knows", scores)), queries, qrels, collection, training, np.random.default_rng(1))
