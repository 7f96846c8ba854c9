"""Students whose documents are frozen, beside their starts, and lessons for them on the animals and tools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.bm25 import build_bm25
from retriever.collection import Collection, open_collection
from retriever.encodings import DocumentEncodings, encode_collection
from retriever.plugins import load_kind
from retriever.ragged import Ragged
from retriever.ragged_encodings import encode_ragged
from retriever.runs import Run
from retriever.settings.collection import CollectionSettings
from retriever.settings.student import STUDENT_KINDS
from retriever.settings.training import TrainingSettings
from retriever.steps.train import Lesson
from retriever.training.samples import hold_out
from retriever.types import Document, Query
from tests.training_material import ANIMALS_AND_TOOLS, in_logits

QUERIES = [Query("q1", "a bird of prey at night"), Query("q2", "cuts wood, with teeth")]
DOCUMENTS = [
    Document("d1", "hunts mice, at night, with soft feathers.", title="Owl"),
    Document("d2", "A blade with teeth: it cuts wood", title="Saw"),
    Document("d3", "", title="Hammer"),
    Document("d4", "flies in the dark " * 9),
]
KINDS = {
    "dense": {"kind": "dense"},
    "sparse": {"kind": "sparse", "query_dimensions": 8, "document_dimensions": 20},
    "looked_up": {"kind": "sparse", "inference_free_queries": True},
    "late_interaction": {"kind": "late_interaction", "dimensions": 8},
}
"""One student of each family: name -> its settings."""

TRAINING = TrainingSettings(
    documents_per_query=4, epochs=2, batch_size=4, learning_rate=3e-3, precision="fp32", checkpoint_steps=20, losses={"kl_divergence": 1, "contrastive": 0.2}
)


def student_of(folder: Path, **settings: Any) -> Any:
    """A student of these settings that starts from the model in a folder."""
    checked = STUDENT_KINDS[settings.setdefault("kind", "dense")].model_validate({"model": str(folder), **settings})
    return load_kind("students", settings["kind"], "student").load(checked)


def opened(student: Any, folder: Path) -> Any:
    """The student that another one becomes when it is saved and loaded again."""
    student.save(folder)
    return load_kind("students", student.kind, "student").load_folder(folder)


def encodings_of(student: Any, collection: Collection, folder: Path) -> DocumentEncodings:
    encode: Callable[..., DocumentEncodings] = encode_ragged if hasattr(student, "columns") else encode_collection
    return encode(student, collection, folder)


def animals(folder: Path) -> Collection:
    return open_collection(CollectionSettings(path=ANIMALS_AND_TOOLS), folder)


def lesson_of(collection: Collection, encodings: DocumentEncodings | None, training: TrainingSettings = TRAINING, **more: Any) -> Lesson:
    """What BM25, which is told the positives, teaches; a third of the queries validates."""
    queries, qrels = collection.queries("train"), collection.qrels("train")
    index = build_bm25(document.full_text for document in collection.documents())
    doc_ids = collection.doc_ids.tolist()
    scores = {
        query_id: {doc_id: float(score) + 5 * (qrels[query_id].get(doc_id, 0) > 0) for doc_id, score in zip(doc_ids, index.scores(query.text), strict=True)}
        for query_id, query in queries.items()
    }
    pairs = Run.from_dict("bm25 that knows", scores)
    train, held = hold_out(dict.fromkeys(queries, ""), 0.3, 100, np.random.default_rng(1))
    shared: dict[str, Any] = {"settings": training, "target": in_logits(pairs), "queries": queries, "qrels": qrels, "train": train, "held": held}
    return Lesson(**shared, pairs=pairs, collection=collection, measure="nDCG@10", batch_size=16, seed=3, document_encodings=encodings, **more)


def scores(student: Any, queries: Sequence[Query] = QUERIES, documents: Sequence[Document] = DOCUMENTS) -> NDArray[np.float32]:
    """[B, N], of every query with every document."""
    asked, read = student.encode_queries(queries), student.encode_documents(documents)
    pairs = np.repeat(np.arange(len(queries)), len(documents)), np.tile(np.arange(len(documents)), len(queries))
    found: NDArray[np.float32] = student.score(asked[pairs[0]], read[pairs[1]]).reshape(len(queries), len(documents))
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two encodings are the same bits."""
    if not isinstance(one, Ragged):
        return bool(np.array_equal(one, other))
    return np.array_equal(one.offsets, other.offsets) and all(np.array_equal(column, other.columns[name]) for name, column in one.columns.items())
