"""An index of millions of documents in 4 GB: built, opened and searched, with what each took.

    python benchmarks/index_scale.py                          # 1 million x 384: 3 GB of disk, about 15 minutes on 2 quiet cores
    python benchmarks/index_scale.py --documents 2000000 --limit 4GB
    python benchmarks/index_scale.py --kind ivf --set quantisation=int8

Vectors are drawn around centres with a fixed seed and lie on the disk as an encoder leaves them; texts are a few words. The kind is what
`auto` chooses for the memory allowed. Building, and then opening and searching, each run in a process of their own whose anonymous memory is
limited (RLIMIT_DATA; files that are mapped do not count, the system takes their pages back when it needs them). Opening is timed from the call
to the first answer, without what Python takes to import libraries. Recall@10 is against comparing all vectors, for queries drawn around the same centres.
Prints a table and writes benchmarks/results/index_scale.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import MACHINE, keep
from tables import markdown

from retriever.collection import Collection, write_collection
from retriever.encodings import BLOCK, Vectors, write_array
from retriever.eval.wording import size
from retriever.index.changes import publish
from retriever.plugins import load_kind
from retriever.progress import Terminal, silence_libraries
from retriever.search import open_index
from retriever.settings.index import INDEX_KINDS, bytes_of
from retriever.settings.student import StaticSettings
from retriever.types import Document

SEED = 1
K = 10
CENTRES = 10_000


def main() -> None:
    """Prepares, builds, opens, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--kind", default="auto")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="of the table [index]")
    parser.add_argument("--limit", default="4GB")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-index-scale"))
    parser.add_argument("--part", choices=["build", "search"], help=argparse.SUPPRESS)
    parser.add_argument("--no-results", action="store_true", help="print only, keep nothing")
    arguments = parser.parse_args()
    silence_libraries()
    if arguments.part:
        limit = bytes_of(arguments.limit)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        print(json.dumps({"build": build, "search": search}[arguments.part](arguments)))
        return
    prepare(arguments)
    built, searched = (part(name) for name in ("build", "search"))
    settings = {key: getattr(arguments, key) for key in ("documents", "dimensions", "kind", "overrides", "limit", "queries")}
    found = {**settings, "seed": SEED, "machine": MACHINE, "build": built, "search": searched}
    if not arguments.no_results:
        keep("index_scale", {f"{arguments.kind}, {arguments.documents} x {arguments.dimensions}": found})
    show(found)


def part(name: str) -> dict[str, Any]:
    """What a process of its own says of its part."""
    done = subprocess.run([sys.executable, *sys.argv, "--part", name], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def drawn(seed: int, rows: int, dimensions: int) -> NDArray[np.float32]:
    """[rows, dimensions], unit vectors around the centres."""
    centres = np.random.default_rng(SEED).standard_normal((CENTRES, dimensions), dtype=np.float32)
    rng = np.random.default_rng([SEED, seed])
    vectors = centres[rng.integers(0, CENTRES, rows)] + rng.standard_normal((rows, dimensions), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def prepare(arguments: argparse.Namespace) -> None:
    """A student, a collection and its vectors, unless they lie there."""
    work, student = (
        arguments.work / f"{arguments.documents}x{arguments.dimensions}",
        StaticSettings(model="sentence-transformers/all-MiniLM-L6-v2", dimensions=arguments.dimensions),
    )
    if (work / "collection" / "collection.json").is_file():
        return
    load_kind("students", "static", "student").load(student).save(work / "student")
    for number, start in enumerate(range(0, arguments.documents, BLOCK)):
        write_array(work / "encodings" / f"{number:06d}.npy", drawn(number + 1, min(BLOCK, arguments.documents - start), arguments.dimensions))
    write_collection(work / "collection", (Document(f"d{number}", f"document number {number}") for number in range(arguments.documents)))


def build(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and memory of building."""
    work = arguments.work / f"{arguments.documents}x{arguments.dimensions}"
    student = load_kind("students", "static", "student").load_folder(work / "student")
    vectors = Vectors(work / "encodings", arguments.documents, arguments.dimensions, student.identity)
    values: dict[str, Any] = {"kind": arguments.kind, **({"memory": arguments.limit} if arguments.kind == "auto" else {})}
    for override in arguments.overrides:
        key, _, value = override.partition("=")
        values[key] = int(value) if value.isdigit() else value
    start = time.perf_counter()
    publish(
        work / "index",
        INDEX_KINDS[arguments.kind].model_validate(values),
        "static",
        work / "student",
        student,
        vectors,
        Collection(work / "collection"),
        Terminal(),
    )
    return {"seconds": time.perf_counter() - start, "peak_bytes": peak()}


def search(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds from opening to the first answer, milliseconds a query after, recall, and what it takes."""
    work = arguments.work / f"{arguments.documents}x{arguments.dimensions}"
    queries = drawn(0, arguments.queries, arguments.dimensions)
    load_kind("students", "static", "student").load_folder(work / "student")  # Python's imports, some of them late, are not the index's
    start = time.perf_counter()
    index = open_index(work / "index")
    opened = time.perf_counter() - start
    index.hits("the first query", K)
    first = time.perf_counter() - start
    snapshot = index.snapshot
    seconds, rows = [], []
    for query in queries:
        begun = time.perf_counter()
        found, _ = snapshot.search(query[None], K)
        seconds.append(time.perf_counter() - begun)
        rows.append(set(found[0].tolist()))
    facts = snapshot.segments[0].facts
    truth = exact(work, arguments, queries)
    return {
        "kind": facts.kind,
        "settings": facts.settings,
        "told": facts.told,
        "opened_seconds": opened,
        "first_answer_seconds": first,
        "p50_ms": float(np.percentile(seconds, 50) * 1000),
        "p99_ms": float(np.percentile(seconds, 99) * 1000),
        "recall": float(np.mean([len(one & other) / K for one, other in zip(rows, truth, strict=True)])),
        "bytes_per_document": facts.bytes / arguments.documents,
        "peak_bytes": peak(),
    }


def exact(work: Path, arguments: argparse.Namespace, queries: NDArray[np.float32]) -> list[set[int]]:
    """The rows of the best 10 of each query, by comparing all vectors block by block."""
    rows, scores = np.zeros((len(queries), 0), dtype=np.int64), np.zeros((len(queries), 0), dtype=np.float32)
    for number, block in enumerate(Vectors(work / "encodings", arguments.documents, arguments.dimensions, "").blocks()):
        scores = np.concatenate([scores, queries @ block.T], axis=1)
        rows = np.concatenate([rows, np.broadcast_to(np.arange(number * BLOCK, number * BLOCK + len(block)), (len(queries), len(block)))], axis=1)
        best = np.argpartition(-scores, K - 1, axis=1)[:, :K] if scores.shape[1] > K else np.argsort(-scores, axis=1)
        rows, scores = np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1)
    return [set(row.tolist()) for row in rows]


def peak() -> int:
    """Bytes of resident memory at most, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def show(found: dict[str, Any]) -> None:
    """A table and the bars."""
    built, searched = found["build"], found["search"]
    rows = [
        ["kind", f"{searched['kind']} {searched['told']}"],
        ["built in", f"{built['seconds']:,.0f} s, at most {size(built['peak_bytes'])} resident"],
        ["on disk", f"{searched['bytes_per_document']:,.0f} bytes a document"],
        ["opened and first answer", f"{searched['first_answer_seconds']:.2f} s, of which opening {searched['opened_seconds']:.2f} s"],
        ["a query", f"p50 {searched['p50_ms']:.2f} ms, p99 {searched['p99_ms']:.2f} ms, recall@{K} {searched['recall']:.3f}"],
        ["searching", f"at most {size(searched['peak_bytes'])} resident, mapped files included"],
    ]
    print(markdown([f"{found['documents']:,} x {found['dimensions']}, {found['limit']} allowed", "found"], rows))
    print(f"{'met   ' if searched['first_answer_seconds'] < 2 else 'MISSED'}  opening, first query included, under 2 s")
    print("met     the limit was enough")


if __name__ == "__main__":
    main()
