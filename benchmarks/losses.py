"""Which loss: each trains a dense and a late-interaction student on doc2dial with few judgements, three times.

    python benchmarks/losses.py                          # 66 trainings: about 3 hours on 2 quiet cores; each is kept
    OMP_NUM_THREADS=1 python benchmarks/losses.py --students dense     # and late_interaction beside it: the cores do more so
    python benchmarks/losses.py --students dense --losses contrastive kl_divergence --seeds 1
    python benchmarks/losses.py --judged 250             # fewer of the train queries have judgements
    python benchmarks/losses.py --scores benchmarks/scores     # what the taught teacher said lies there, or is kept there

The examples' students with 3 of MiniLM's 6 layers, the upper 2 of which learn: their start is far from the teacher, and most is to be learnt. 128
tokens, lists of 4, and the target of the examples' teachers: BM25, all-mpnet-base-v2 and all-MiniLM-L6-v2, taught on the judged queries in as many
epochs as make the steps of all. 650 train queries, whole dialogues of them, keep their judgements, 150 of these to choose the target and the checkpoint
by; of 700 others only the teacher says anything, as of a log of queries. So most of what it says is of queries that it was not taught on, and it is
taught on all judged ones at once, not in folds. `contrastive` cannot read the others; it and the row "judged alone" have the judged ones as often as
makes as many steps.
A run's seed decides the order of the samples, their negatives and dropout. The judgements and the target are the same for all.

Measured on 600 other train queries: none is about a document, or of a dialogue, that teaches anybody, the teacher neither. As first stage over all
sections, and re-ranking the candidates. Test queries are not looked at. Losses are compared by a paired test of each query's mean over the seeds,
whole dialogues at a time. The seeds are the outer loop: stopped after a third, every loss has been seen once. Each run is kept in
benchmarks/results/losses.json and not made again with the same settings. Needs ../shared/data/doc2dial, or --set collection.path=FOLDER.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from record import MACHINE, keep, kept
from students import SCORES_HELP, experiment_of, folder_of, keep_scores, settings_of, share_steps, with_scores
from tables import losses_table
from unjudged import taught_longer, taught_otherwise, write_beir

from retriever.candidates import index_run
from retriever.collection import open_collection
from retriever.config import Experiment
from retriever.conversations.facets import relevant_to
from retriever.encodings import encode_collection, score_rows
from retriever.eval.measures import Evaluation, evaluate
from retriever.files import fingerprint
from retriever.pipeline import Pipeline
from retriever.plugins import load_kind
from retriever.progress import Terminal
from retriever.queries import connected
from retriever.ragged_encodings import encode_ragged
from retriever.runs import Run
from retriever.steps.systems import epochs_alone
from retriever.steps.train import Lesson, teach_student
from retriever.training.samples import hold_out

DATASET = "doc2dial"
LOSSES: dict[str, dict[str, float]] = {
    "contrastive": {"contrastive": 1.0},
    "kl_divergence": {"kl_divergence": 1.0},
    "kl_divergence + contrastive": {"kl_divergence": 1.0, "contrastive": 1.0},
    "kl_divergence + contrastive, judged alone": {"kl_divergence": 1.0, "contrastive": 1.0},
    "standardised_kl": {"standardised_kl": 1.0},
    "margin_mse": {"margin_mse": 1.0},
    "ranknet": {"ranknet": 1.0},
    "lambda_loss": {"lambda_loss": 1.0},
    "list_mle": {"list_mle": 1.0},
    "partial_ranking + contrastive": {"partial_ranking": 1.0, "contrastive": 1.0},  # it says nothing of the positive itself
    "adr_mse": {"adr_mse": 1.0},
}
JUDGED_ALONE = ("contrastive", "kl_divergence + contrastive, judged alone")
SIZES = (
    *("student.max_length=128", "training.max_length=128", "training.documents_per_query=4", "training.epochs=1", "training.batch_size=16"),
    *("student.layers=3", "training.frozen_layers=1", "training.learning_rate=1e-4", 'training.teacher_temperature="auto"'),
    *("training.losses={kl_divergence=1.0}", "training.validation_queries=150", "training.validation_fraction=0.25"),
)
"""The losses are each run's own; they are stated here so that an example may take another without making this table anew."""

DEPTH = 100


@dataclasses.dataclass(frozen=True)
class Parts:
    """How many train queries keep their judgements, lose them, and are measured; the rest of a dialogue or document comes with each."""

    judged: int
    unjudged: int
    measured: int

    def __str__(self) -> str:
        return f"{self.judged}-judged-{self.unjudged}-unjudged-{self.measured}-measured"


def main() -> None:
    """Makes the runs that are not there yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", choices=("dense", "late_interaction"), default=["dense", "late_interaction"])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--judged", type=int, default=650, help="train queries that keep their judgements")
    parser.add_argument("--unjudged", type=int, default=700, help="train queries of which only the teacher says anything")
    parser.add_argument("--measured", type=int, default=600, help="queries that are measured")
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-losses"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--scores", type=Path, help=SCORES_HELP, metavar="FOLDER")
    parser.add_argument("--no-results", action="store_true", help="print only, keep nothing")
    arguments = parser.parse_args()
    parts = Parts(arguments.judged, arguments.unjudged, arguments.measured)
    results = {} if arguments.no_results else kept("losses")
    wanted: list[tuple[str, str, int | None]] = [(kind, "start", None) for kind in arguments.students]
    wanted += [(kind, loss, seed) for seed in arguments.seeds for loss in arguments.losses for kind in arguments.students]
    pipelines: dict[str, Pipeline] = {}
    for kind, loss, seed in wanted:
        asked = asked_of(kind, arguments.overrides)
        settings = {**settings_of(asked), "losses": LOSSES.get(loss, {}), **dataclasses.asdict(parts)}
        key, settings_key = f"{kind} {loss} {seed or ''}".strip(), fingerprint(settings)
        if results.get(key, {}).get("settings") == settings_key:
            continue
        if kind not in pipelines:
            pipelines[kind] = pipeline_of(asked, parts, arguments.work, arguments.scores)
        results[key] = {**run(pipelines[kind], loss, seed), "settings": settings_key}
        results["measured"] = measured(pipelines[kind])
        if not arguments.no_results:
            keep("losses", {"measured": results["measured"], f"settings {settings_key}": settings, key: results[key]})
    print(losses_table(results))


def asked_of(kind: str, overrides: Sequence[str]) -> Experiment:
    """The experiment of a kind at this benchmark's sizes, its teachers taught on all judged queries at once."""
    return taught_otherwise(experiment_of(folder_of(DATASET, kind), [*SIZES, *overrides]), lambda _: {"folds": None})


def pipeline_of(experiment: Experiment, parts: Parts, work: Path, scores: Path | None = None) -> Pipeline:
    """It on its part of the collection, with the candidates, teachers and scores of the other kind where there are any."""
    folder = work / str(parts)
    collection = experiment.collection.model_copy(update={"path": apart(experiment, parts, folder), "unjudged": True})
    share_steps(folder, experiment.name)
    part = Pipeline(experiment.model_copy(update={"collection": collection}), folder)
    times = len(part.conversations("train")) / len(part.qrels("train"))
    pipeline = Pipeline(with_scores(taught_longer(part.experiment, times), scores), folder, Terminal())
    pipeline.target.scores("train")
    keep_scores(pipeline, scores)
    return pipeline


def apart(experiment: Experiment, parts: Parts, work: Path) -> Path:
    """A copy of the collection whose test queries are the measured ones, and whose train queries are others, few of them judged."""
    folder, settings = work / f"collection-{parts}", experiment.collection
    if not folder.exists():
        whole = open_collection(settings, work / "whole")
        queries, qrels = whole.queries(settings.train), whole.qrels(settings.train)
        about = {
            query_id: [query.conversation, *(whole.document(doc_id).title or doc_id for doc_id in relevant_to(qrels, query_id))]
            for query_id, query in queries.items()
        }
        draw = np.random.default_rng(experiment.seed)
        others, measured = hold_out(connected(about), 1.0, parts.measured, draw)
        rest, judged = hold_out({query_id: queries[query_id].conversation for query_id in others}, 1.0, parts.judged, draw)
        _, unjudged = hold_out({query_id: queries[query_id].conversation for query_id in rest}, 1.0, parts.unjudged, draw)
        split = {settings.train: judged, settings.test: measured}
        write_beir(
            whole,
            [queries[query_id] for query_id in (*judged, *unjudged, *measured)],
            {name: {query_id: qrels[query_id] for query_id in ids} for name, ids in split.items()},
            folder,
        )
    return folder.resolve()


def run(pipeline: Pipeline, loss: str, seed: int | None) -> dict[str, Any]:
    """Trains one student, or takes the start, and measures it."""
    start = time.perf_counter()
    if seed is None:
        found = measure(pipeline, pipeline.start)
    else:
        lesson = lesson_of(pipeline, loss, seed)
        folder = pipeline.folder / "runs" / fingerprint([loss, seed, lesson.train, lesson.held])
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{pipeline.experiment.student.kind}, {loss}, seed {seed}"
        teach_student(pipeline.load_student(pipeline.experiment.student), lesson, folder, pipeline.reporter, name)
        found = measure(pipeline, pipeline.open_student(folder / "student"))
        shutil.rmtree(folder)
    facts = {"student": pipeline.experiment.student.kind, "loss": loss, "seed": seed}
    target = {"target": pipeline.target.name, "teacher": mean(evaluated(pipeline, pipeline.target.run("test")))}
    sizes = {"queries": len(pipeline.qrels("test")), "judged": len(pipeline.qrels("train")), "unjudged": len(pipeline.unjudged)}
    return {**facts, **target, **found, **sizes, "minutes": round((time.perf_counter() - start) / 60, 2), "machine": MACHINE}


def lesson_of(pipeline: Pipeline, loss: str, seed: int) -> Lesson:
    """What the train step would give its student, with another seed; of judged queries alone so often that there are as many steps."""
    (train, held), alone = pipeline.held_out, loss in JUDGED_ALONE
    epochs = epochs_alone(pipeline) if alone else pipeline.experiment.training.epochs
    return Lesson(
        settings=pipeline.experiment.training.model_copy(update={"losses": LOSSES[loss], "epochs": epochs}),
        target=pipeline.target.scores("train"),
        queries=pipeline.student_queries("train"),
        qrels=pipeline.qrels("train"),
        train=train,
        held=held,
        pairs=pipeline.pairs("train"),
        collection=pipeline.collection,
        measure=pipeline.experiment.evaluation.measures[0],
        batch_size=pipeline.experiment.index.batch_size,
        seed=seed,
        unjudged=() if alone else pipeline.unjudged,
    )


def measure(pipeline: Pipeline, student: Any) -> dict[str, Any]:
    """The student over all documents, of each query too, and as a re-ranker of the retrieved candidates."""
    queries, pool = pipeline.student_queries("test"), pipeline.candidates["test"]
    encode: Any = encode_ragged if hasattr(student, "columns") else encode_collection
    with tempfile.TemporaryDirectory(dir=pipeline.folder) as folder:
        encodings = encode(student, pipeline.collection, Path(folder) / "encodings")
        index = load_kind("indexing", pipeline.experiment.exact_index, "exact_index").of_vectors(encodings)
        first = index_run("first stage", student, index, pipeline.collection, queries, DEPTH)
        asked = student.encode_queries([queries[query_id] for query_id in pool.query_ids])
        scores = score_rows(student, asked, pool.query_numbers, encodings, pipeline.collection.rows_of(pool.doc_ids))
    found = evaluated(pipeline, first)
    (wanted, values), *_ = found.values.items()
    return {
        "measure": wanted,
        "first_stage": mean(found),
        "re_ranking": mean(evaluated(pipeline, pool.with_scores("re-ranking", scores))),
        "of_each_query": " ".join(f"{value:.4f}" for value in values),  # in the order of `measured`
    }


def evaluated(pipeline: Pipeline, found: Run) -> Evaluation:
    """By the experiment's first measure, over the measured queries."""
    return evaluate(found, pipeline.qrels("test"), [pipeline.experiment.evaluation.measures[0]])


def mean(found: Evaluation) -> float:
    """Over all queries, of the only measure."""
    (value,) = found.means.values()
    return value


def measured(pipeline: Pipeline) -> dict[str, list[str]]:
    """The measured queries, in the order of an evaluation, and the dialogue of each."""
    query_ids = sorted(pipeline.qrels("test"))
    conversations = {query_id: query.conversation for query_id, query in pipeline.queries("test").items()}
    return {"query_ids": query_ids, "conversations": [conversations[query_id] for query_id in query_ids]}


if __name__ == "__main__":
    main()
