"""How much faster a static student encodes documents than the transformer that it was made from.

    python benchmarks/static_speed.py                       # 1,000 documents of doc2dial, a minute or two
    python benchmarks/static_speed.py --documents 5000 --set collection.path=FOLDER

Both encode the same documents in the same run, in turns, each with several batch sizes of which its best counts, from text to
vectors, on --threads threads. The start of examples/doc2dial-static.toml is timed: training changes its numbers and not its size.
What both reach on the test queries is read from benchmarks/results/students.json, if it is there. The bar is 100 times.
Prints a table and writes benchmarks/results/static_speed.json.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from record import MACHINE, keep, kept
from students import experiment_of, folder_of
from tables import static_speed_table

from retriever.pipeline import Pipeline
from retriever.progress import Terminal
from retriever.settings.student import DenseSettings
from retriever.types import Document

DATASET = "doc2dial"
STATIC, TRANSFORMER = "static", "transformer"
BATCHES = {STATIC: (256, 1024, 4096), TRANSFORMER: (8, 16, 32, 64, 128)}
MEASURE = "nDCG@10"
LEAST_SECONDS = 1.0
"""A timing of the static student encodes the documents so often that it takes so long."""


def main() -> None:
    """Times, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2, help="how often each batch size is tried; the fastest counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-static-speed"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--no-results", action="store_true", help="print only, keep nothing")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    pipeline = Pipeline(experiment_of(folder_of(DATASET, "static"), arguments.overrides), arguments.work, Terminal())
    students = {STATIC: pipeline.start, TRANSFORMER: pipeline.load_student(DenseSettings(model=pipeline.experiment.student.model))}
    documents = list(islice(pipeline.documents.documents(), arguments.documents))
    speeds = fastest(students, documents, arguments.rounds)
    result = {
        "encoders": {name: {**speeds[name], **quality} for name, quality in qualities(kept("students")).items()},
        "ratio": speeds[STATIC]["documents_per_second"] / speeds[TRANSFORMER]["documents_per_second"],
        "model": Path(pipeline.experiment.student.model).name,
        "dataset": DATASET,
        "documents": len(documents),
        "threads": arguments.threads,
        "measure": MEASURE,
        "machine": MACHINE,
    }
    if not arguments.no_results:
        keep("static_speed", result)
    print(static_speed_table(result))


def use_threads(threads: int) -> None:
    """Gives matrix products and tokenizers so many threads; the tokenizers' are begun when the first texts come."""
    torch.set_num_threads(threads)
    os.environ |= {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}


def fastest(students: Mapping[str, Any], documents: Sequence[Document], rounds: int) -> dict[str, dict[str, float]]:
    """Each encoder's documents per second at its best batch size; they take turns, so that what else runs here meets both."""
    speeds: dict[str, dict[int, float]] = {name: {} for name in students}
    for _ in range(rounds):
        for name, student in students.items():
            for batch in BATCHES[name]:
                student.batch_size = batch
                speeds[name][batch] = max(speeds[name].get(batch, 0.0), documents_per_second(student, documents))
    best = {name: max(found, key=lambda batch, found=found: found[batch]) for name, found in speeds.items()}
    return {name: {"documents_per_second": speeds[name][batch], "batch_size": batch} for name, batch in best.items()}


def documents_per_second(student: Any, documents: Sequence[Document]) -> float:
    """From texts to vectors, after a few that warm up."""
    student.encode_documents(documents[:16])
    encoded, start = 0, time.perf_counter()
    while encoded == 0 or time.perf_counter() - start < LEAST_SECONDS:
        student.encode_documents(documents)
        encoded += len(documents)
    return encoded / (time.perf_counter() - start)


def qualities(students: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What both reach on the test queries as they come and distilled, where that was measured."""
    names = {STATIC: folder_of(DATASET, "static"), TRANSFORMER: folder_of(DATASET, "dense")}
    shown = {"start": "student_before", "distilled": "student"}
    return {
        name: {key: students[example]["runs"][run]["mean"][MEASURE] for key, run in shown.items()} if example in students else {}
        for name, example in names.items()
    }


if __name__ == "__main__":
    main()
