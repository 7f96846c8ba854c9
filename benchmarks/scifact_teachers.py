"""Which teacher is worth copying on scifact: each re-ranks the candidates of the held-out train queries.

    python benchmarks/scifact_teachers.py --teachers fusion
    python benchmarks/scifact_teachers.py --teachers fusion cross_encoder
    python benchmarks/scifact_teachers.py --teachers fusion larger --larger FOLDER    # for example all-mpnet-base-v2

BM25, the starting checkpoint and their fusion are always there. A cross-encoder is taught on the other train queries
first (about 15 minutes on 2 cores), a larger encoder encodes the whole collection. Test queries are not looked at.
Prints nDCG@10 with a 95 % interval and the difference to the fusion, and adds to benchmarks/results/scifact_teachers.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from record import against, keep

from retriever.config import read_experiment
from retriever.eval.measures import Evaluation, evaluate
from retriever.pipeline import Pipeline
from retriever.progress import Terminal
from retriever.runs import Run
from retriever.steps.ensemble import keep_pairs
from retriever.teachers.ensemble import mean_of_z_scores

HERE = Path(__file__).resolve().parent
DEPTH = 25
MEASURE = "nDCG@10"
TEACHER = {
    "cross_encoder": '{kind="cross_encoder", model="sentence-transformers/all-MiniLM-L6-v2", train={epochs=EPOCHS, learning_rate=5e-5}}',
    "larger": '{kind="embedding", name="larger", model="LARGER", batch_size=16}',
}


def main() -> None:
    """Scores, evaluates and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", nargs="+", default=["fusion"], choices=["fusion", *TEACHER])
    parser.add_argument("--larger", default="sentence-transformers/all-mpnet-base-v2", help="a larger encoder: folder, package or hub id")
    parser.add_argument("--epochs", type=int, default=2, help="of teaching the cross-encoder")
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-scifact"))
    arguments = parser.parse_args()
    added = [TEACHER[name].replace("EPOCHS", str(arguments.epochs)).replace("LARGER", arguments.larger) for name in arguments.teachers if name in TEACHER]
    teachers = ", ".join(['{kind="lexical"}', '{kind="embedding", model="student"}', *added])
    pipeline = Pipeline(read_experiment(HERE.parent / "examples" / "scifact.toml", [f"teacher=[{teachers}]"]), arguments.work, Terminal())
    results = against(evaluations(pipeline), "fusion", MEASURE, pipeline.experiment.seed)
    keep("scifact_teachers", results)
    for name, row in results.items():
        low, high = row["interval"]
        print(f"{name:<44} {row['mean']:.3f}  [{low:.3f}, {high:.3f}]  against the fusion {row['difference']:+.3f} (p = {row['p_value']:.3f})")


def evaluations(pipeline: Pipeline) -> dict[str, Evaluation]:
    """Each teacher, the fusion, and the fusion with each further teacher, re-ranking the best 25 candidates of the held-out queries."""
    _, held = pipeline.held_out
    candidates = pipeline.candidates["train"].select(held).top(DEPTH)
    queries = {query_id: pipeline.queries("train")[query_id] for query_id in held}
    qrels = {query_id: pipeline.qrels("train")[query_id] for query_id in held}
    runs: dict[str, Run] = {}
    for name, teacher in pipeline.teachers.items():
        # Normalised over the full depth where that is cheap, as the experiment does it; a cross-encoder sees the 25 only.
        pairs = candidates if teacher.identity.kind == "cross_encoder" else pipeline.candidates["train"].select(held)
        pipeline.store.score(teacher, pairs, queries)
        runs[name] = keep_pairs(pipeline.store.read(teacher.identity, pairs, queries).run, candidates)
    base, further = list(runs.values())[:2], dict(list(runs.items())[2:])
    runs["fusion"] = mean_of_z_scores("fusion", base, [1.0, 1.0])
    for name, run in further.items():
        runs[f"fusion + {name}"] = mean_of_z_scores(f"fusion + {name}", [*base, run], [1.0, 1.0, 1.0])
    return {name: evaluate(run.rename(name), qrels, [MEASURE]) for name, run in runs.items()}


if __name__ == "__main__":
    main()
