"""Which loss: each trains a dense and a late-interaction student on a part of scifact, three times.

    python benchmarks/losses.py                          # 60 trainings: about 3 hours on 2 quiet cores
    python benchmarks/losses.py --students dense --losses contrastive kl_divergence --seeds 1
    python benchmarks/losses.py --queries 200            # a smaller part

The examples' students, whose upper 3 of MiniLM's 6 layers learn, 128 tokens, lists of 5, two epochs over 500 train queries (drawn with seed 1),
and the examples' teachers: BM25 and MiniLM as it comes, which nobody has taught. A run's seed decides the order of the samples, their
negatives and dropout. All losses have the same learning rate and read the scores of the same target.

Measured on other train queries, none of whose relevant documents is one of a query that teaches or chooses: a student that has learned
what it is asked for later would rank a loss by how well it is learned by heart. As first stage over all documents, and re-ranking the
candidates. Test queries are not looked at. The seeds are the outer loop: stopped after a third, every loss has been seen once. Each run is kept
in benchmarks/results/losses.json and not made again with the same settings. Needs ../shared/data/scifact, or --set collection.path=FOLDER.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from record import MACHINE, keep, kept
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from students import experiment_of, folder_of, settings_of, share_steps
from tables import losses_table

from retriever.candidates import index_run
from retriever.config import Experiment
from retriever.conversation_facets import relevant_to
from retriever.encodings import encode_collection, score_rows
from retriever.eval.measures import evaluate
from retriever.files import fingerprint
from retriever.pipeline import Pipeline
from retriever.plugins import load_kind
from retriever.progress import Terminal
from retriever.ragged_encodings import encode_ragged
from retriever.train_step import Lesson, teach_student
from retriever.training.samples import hold_out
from retriever.training_settings import TrainingSettings
from retriever.types import Qrels

DATASET = "scifact"
LOSSES: dict[str, dict[str, float]] = {
    "contrastive": {"contrastive": 1.0},
    "kl_divergence": {"kl_divergence": 1.0},
    "kl_divergence + contrastive": {"kl_divergence": 1.0, "contrastive": 1.0},
    "standardised_kl": {"standardised_kl": 1.0},
    "margin_mse": {"margin_mse": 1.0},
    "ranknet": {"ranknet": 1.0},
    "lambda_loss": {"lambda_loss": 1.0},
    "list_mle": {"list_mle": 1.0},
    "partial_ranking": {"partial_ranking": 1.0},
    "adr_mse": {"adr_mse": 1.0},
}
SIZES = ("student.max_length=128", "training.max_length=128", "training.documents_per_query=5", "training.epochs=2")
OTHERS = ("training.batch_size=16", "training.learning_rate=5e-5")
DEPTH = 100


@dataclasses.dataclass(frozen=True)
class Plan:
    """Train query ids: those that teach, those that choose the checkpoint, and those that are measured."""

    teach: Sequence[str]
    choose: Sequence[str]
    measured: Sequence[str]


def main() -> None:
    """Makes the runs that are not there yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", choices=("dense", "late_interaction"), default=["dense", "late_interaction"])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--queries", type=int, default=500, help="that teach, at most")
    parser.add_argument("--choosing", type=int, default=50, help="queries that choose the checkpoint")
    parser.add_argument("--measured", type=int, default=250, help="queries that are measured")
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-students"), help="that of students.py, whose scores are taken if they are there")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--no-results", action="store_true", help="print only, keep nothing")
    arguments = parser.parse_args()
    results = {} if arguments.no_results else kept("losses")
    pipelines = {kind: pipeline_of(kind, arguments.work, arguments.overrides) for kind in arguments.students}
    wanted = [(kind, "start", None) for kind in arguments.students]
    wanted += [(kind, loss, seed) for seed in arguments.seeds for loss in arguments.losses for kind in arguments.students]
    for kind, loss, seed in wanted:
        plan = plan_of(pipelines[kind], arguments.queries, arguments.choosing, arguments.measured)
        settings = {
            **settings_of(asked_of(kind, arguments.overrides)),
            "losses": LOSSES.get(loss, {}),
            "queries": arguments.queries,
            "choosing": arguments.choosing,
            "measured": arguments.measured,
        }
        key, settings_key = f"{kind} {loss} {seed or ''}".strip(), fingerprint(settings)
        if results.get(key, {}).get("settings") == settings_key:
            continue
        results[key] = {**run(pipelines[kind], plan, loss, seed), "settings": settings_key}
        if not arguments.no_results:
            keep("losses", {f"settings {settings_key}": settings, key: results[key]})
    print(losses_table(results))


def asked_of(kind: str, overrides: Sequence[str]) -> Experiment:
    """The experiment of a kind at this benchmark's sizes."""
    example = folder_of(DATASET, kind)
    return experiment_of(example, [*SIZES, *OTHERS, *overrides]).model_copy(update={"name": f"{example}-losses"})


def pipeline_of(kind: str, work: Path, overrides: Sequence[str]) -> Pipeline:
    """It in a folder of its own, with the candidates and scores of others of the dataset where there are any."""
    found = asked_of(kind, overrides)
    share_steps(work, found.name)
    pipeline = Pipeline(found, work, Terminal())
    pipeline.target.scores("train")
    return pipeline


def plan_of(pipeline: Pipeline, queries: int, choosing: int, measured: int) -> Plan:
    """Draws by the experiment's seed, of the judged train queries; one whose text is a test query's is none of them."""
    draw, qrels = np.random.default_rng(pipeline.experiment.seed), pipeline.qrels("train")
    judged = {query_id: qrels[query_id] for query_id in pipeline.queries("train") if query_id in qrels}
    others, apart = hold_out(by_documents(judged), 1.0, measured, draw)
    draw.shuffle(others)
    return Plan(others[choosing : choosing + queries], others[:choosing], apart)


def by_documents(qrels: Qrels) -> dict[str, str]:
    """Query id -> its group: queries share one where they have a relevant document in common, or each has one with a third."""
    query_ids = list(qrels)
    pairs = [(number, doc_id) for number, query_id in enumerate(query_ids) for doc_id in relevant_to(qrels, query_id)]
    _, documents = np.unique([doc_id for _, doc_id in pairs], return_inverse=True)
    size = len(query_ids) + len(pairs)
    edges = ([number for number, _ in pairs], documents + len(query_ids))
    _, groups = connected_components(coo_array((np.ones(len(pairs)), edges), shape=(size, size)), directed=False)
    return {query_id: str(group) for query_id, group in zip(query_ids, groups, strict=False)}


def run(pipeline: Pipeline, plan: Plan, loss: str, seed: int | None) -> dict[str, Any]:
    """Trains one student, or takes the start, and measures it."""
    start = time.perf_counter()
    if seed is None:
        found = measure(pipeline, pipeline.start, plan.measured)
    else:
        folder = pipeline.folder / "runs" / fingerprint([loss, seed, plan.teach, plan.choose])
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{pipeline.experiment.student.kind}, {loss}, seed {seed}"
        teach_student(pipeline.load_student(pipeline.experiment.student), lesson_of(pipeline, plan, LOSSES[loss], seed), folder, pipeline.reporter, name)
        found = measure(pipeline, pipeline.open_student(folder / "student"), plan.measured)
        shutil.rmtree(folder)
    facts = {"student": pipeline.experiment.student.kind, "loss": loss, "seed": seed}
    sizes = {"queries": len(plan.measured), "train_queries": len(plan.teach), "documents": len(pipeline.collection)}
    measured = {"measure": pipeline.experiment.evaluation.measures[0], **found}
    return {**facts, **measured, **sizes, "minutes": round((time.perf_counter() - start) / 60, 2), "machine": MACHINE}


def lesson_of(pipeline: Pipeline, plan: Plan, losses: Mapping[str, float], seed: int) -> Lesson:
    """What the train step would give its student, of fewer queries."""
    training: TrainingSettings = pipeline.experiment.training.model_copy(update={"losses": dict(losses)})
    return Lesson(
        settings=training,
        target=pipeline.target.scores("train"),
        queries=pipeline.queries("train"),
        qrels=pipeline.qrels("train"),
        train=plan.teach,
        held=plan.choose,
        pairs=pipeline.pairs("train"),
        collection=pipeline.collection,
        measure=pipeline.experiment.evaluation.measures[0],
        batch_size=pipeline.experiment.index.batch_size,
        seed=seed,
    )


def measure(pipeline: Pipeline, student: Any, query_ids: Sequence[str]) -> dict[str, float]:
    """The student over all documents, and as a re-ranker of the retrieved candidates."""
    queries = {query_id: pipeline.queries("train")[query_id] for query_id in query_ids}
    qrels = {query_id: pipeline.qrels("train")[query_id] for query_id in query_ids}
    pool = pipeline.candidates["train"].select(query_ids)
    wanted = pipeline.experiment.evaluation.measures[0]
    encode: Any = encode_ragged if hasattr(student, "columns") else encode_collection
    with tempfile.TemporaryDirectory(dir=pipeline.folder) as folder:
        encodings = encode(student, pipeline.collection, Path(folder) / "encodings")
        index = load_kind("indexing", pipeline.experiment.exact_index, "exact_index").of_vectors(encodings)
        first = index_run("first stage", student, index, pipeline.collection, queries, DEPTH)
        asked = student.encode_queries([queries[query_id] for query_id in pool.query_ids])
        scores = score_rows(student, asked, pool.query_numbers, encodings, pipeline.collection.rows_of(pool.doc_ids))
    runs = {"first_stage": first, "re_ranking": pool.with_scores("re-ranking", scores)}
    return {name: evaluate(found, qrels, [wanted]).means[wanted] for name, found in runs.items()}


if __name__ == "__main__":
    main()
