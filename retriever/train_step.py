"""The train step: samples from the target's scores, the trainer's loop, a stock folder at the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers import SentenceTransformer

from retriever.config import TrainingSettings
from retriever.eval.measures import evaluate
from retriever.files import fingerprint, write_json
from retriever.runs import Run
from retriever.steps import Done
from retriever.training.samples import make_samples
from retriever.training.trainer import TrainingProgress, train_bi_encoder

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline


def train_student(pipeline: Pipeline, step_name: str = "train", training: TrainingSettings | None = None) -> Done:
    """The finished train step: `student` is a stock folder, `curve.json` and the manifest say how it came about.

    Args:
        pipeline: gives the starting student, the target's scores and the collection.
        step_name: the step's folder; another one for an ablation.
        training: settings that differ from the file's, for an ablation.
    """
    training = training or pipeline.experiment.training
    train, held = pipeline.held_out
    target_name, quality = pipeline.target
    target = pipeline.target_run("train")
    inputs = {"start": pipeline.start.identity, "target": target.fingerprint, "collection": pipeline.collection.fingerprint}
    inputs["queries"] = fingerprint([train, held])

    def work(folder: Path) -> dict[str, Any]:
        seed = pipeline.experiment.seed
        queries, qrels = pipeline.queries("train"), pipeline.qrels("train")
        samples = make_samples(target, {query_id: queries[query_id] for query_id in train}, qrels, pipeline.collection, training, np.random.default_rng(seed))
        pipeline.reporter.say(f"{step_name}: {len(train)} queries, {len(samples)} lists of {training.documents_per_query}, target {target_name}")
        validate = _validation(pipeline, training, held)
        student = pipeline.load_student(pipeline.experiment.student)  # a fresh one: training changes the weights
        steps = -(-len(samples) // training.batch_size)
        with pipeline.reporter.bar(f"training ({step_name})", steps) as advance:
            told = _Told(pipeline, advance)
            curve = train_bi_encoder(student.model, samples, pipeline.collection, training, folder, seed, validate, told.tell)
        student.save(folder / "student")
        write_json(folder / "curve.json", curve)
        for leftover in ("best", "checkpoints"):
            shutil.rmtree(folder / leftover, ignore_errors=True)
        return {"target": target_name, "held_out": quality, "samples": len(samples), "validation": best_validation(curve)}

    return pipeline.step(step_name, inputs, training.model_dump(mode="json"), work)


def best_validation(curve: list[dict[str, float]]) -> dict[str, float]:
    """The step that validated best, with its value and the untrained model's."""
    points = [point for point in curve if "validation" in point]
    best = max(points, key=lambda point: point["validation"])
    return {"step": best["step"], "value": best["validation"], "before": points[0]["validation"]}


def read_curve(folder: Path) -> list[dict[str, float]]:
    """The curve that a train step left."""
    curve: list[dict[str, float]] = json.loads((folder / "curve.json").read_text(encoding="utf-8"))
    return curve


class _Told:
    """Turns the trainer's steps into a bar that does not start over after a resume."""

    def __init__(self, pipeline: Pipeline, advance: Any) -> None:
        self.pipeline = pipeline
        self.advance = advance
        self.step = 0

    def tell(self, at: TrainingProgress) -> None:
        self.advance(at.step - self.step)
        self.step = at.step
        loss = "" if at.loss is None else f"loss {at.loss:.3f}  "
        self.pipeline.reporter.update(f"{loss}best held-out {at.validation:.4f}" if at.validation is not None else loss)


def _validation(pipeline: Pipeline, training: TrainingSettings, held: list[str]) -> Any:
    """A model's first measure on the held-out train queries, re-ranking their candidates and positives."""
    measure = pipeline.experiment.evaluation.measures[0]
    queries = {query_id: pipeline.queries("train")[query_id] for query_id in held}
    qrels = {query_id: pipeline.qrels("train")[query_id] for query_id in held}
    pool = _pool(pipeline.pairs("train").select(held), qrels, training.validation_depth)
    rows, places = np.unique(pipeline.collection.rows_of(pool.doc_ids), return_inverse=True)
    documents = [document.full_text for document in pipeline.collection.documents_by_row(rows.tolist())]
    batch_size = pipeline.experiment.index.batch_size

    def validate(model: SentenceTransformer) -> float:
        length = model.max_seq_length
        model.max_seq_length = training.max_length or length
        vectors = model.encode_document(documents, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True)
        asked = model.encode_query([query.text for query in queries.values()], batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True)
        model.max_seq_length = length
        scores = np.einsum("nd,nd->n", _unit(model, asked)[pool.query_numbers], _unit(model, vectors)[places])
        return evaluate(pool.with_scores("validation", scores), qrels, [measure]).means[measure]

    return validate


def _pool(pairs: Run, qrels: Mapping[str, Mapping[str, int]], depth: int) -> Run:
    """The best `depth` candidates of each query and all its positives."""
    ranks = np.arange(pairs.n_pairs) - np.repeat(pairs.offsets[:-1], pairs.counts)
    positive = np.array([qrels[query_id].get(doc_id, 0) > 0 for query_id in pairs for doc_id, _ in pairs[query_id]], dtype=np.bool_)
    return pairs.keep((ranks < depth) | positive)


def _unit(model: SentenceTransformer, vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if model.similarity_fn_name == "cosine" else vectors
