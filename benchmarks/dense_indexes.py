"""The indexes of vectors beside FAISS alone and usearch: what they find, how soon, and what they take.

    python benchmarks/dense_indexes.py                                   # 100,000 synthetic vectors of 384 dimensions
    python benchmarks/dense_indexes.py --documents 2000000 --kinds hnsw-int8 ivf-int8
    python benchmarks/dense_indexes.py --vectors FILE.npy --queries-from QUERIES.npy

The synthetic vectors lie around centres of a fixed seed, documents and queries drawn apart. Each index is built for a recall of .95 and of
.99, which it measures on documents of its own; here its recall is that of queries it never saw. usearch walks its graph with the least
expansion that reaches the same recall on half of the queries. Every timing is of one thread and of two, of a query alone and of a batch.
The overhead is that of our search over FAISS's own of the same index, with the same settings, in turns. The bar is 5 % for queries alone.
Prints a table and keeps it in benchmarks/results/dense_indexes.json under the data and its size, beside the other kinds of earlier calls.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from record import MACHINE, keep, kept

from retriever.encodings import BLOCK, Vectors
from retriever.plugins import load_kind
from retriever.settings.index import INDEX_KINDS

SEED = 7
K = 10
RECALLS = (0.95, 0.99)
KINDS = ("flat-none", "flat-int8", "ivf-none", "ivf-int8", "ivf-rabitq", "ivf-pq", "hnsw-none", "hnsw-fp16", "hnsw-int8")
CENTRES = 1000
ROUNDS = 5
"""Of the comparison with FAISS alone; the median of the rounds' ratios counts."""

EXPANSIONS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def main() -> None:
    """Builds, measures, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--vectors", type=Path, help="a .npy of documents, in the place of synthetic ones")
    parser.add_argument("--queries-from", type=Path, help="a .npy of queries; without it the last of the vectors")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-dense-indexes"))
    parser.add_argument("--no-results", action="store_true", help="print only, keep nothing")
    arguments = parser.parse_args()
    data = f"{arguments.vectors.stem if arguments.vectors else 'synthetic'} {arguments.documents} x {arguments.dimensions}"
    vectors, queries = stored(arguments)
    expected = exact(vectors, queries)
    found: list[dict[str, Any]] = []
    for name in arguments.kinds:
        for recall in RECALLS if name != "flat-none" else RECALLS[:1]:
            found.append(apart(measure_kind, vectors, queries, expected, name, recall, arguments.work / f"{name}-{recall}", arguments.threads))
            print(line(found[-1]), flush=True)
    found += apart(measure_usearch, vectors, queries, expected, arguments.threads)
    print("\n".join([data, HEAD, *map(line, found)]))
    if not arguments.no_results:
        names = {one["name"] for one in found}
        earlier = [one for one in kept("dense_indexes").get(data, {}).get("indexes", []) if one["name"] not in names]
        facts = {"queries": len(queries), "k": K, "seed": SEED, "machine": MACHINE, "faiss": faiss.__version__}
        keep("dense_indexes", {data: {"indexes": earlier + found, **facts}})
    shutil.rmtree(arguments.work, ignore_errors=True)


def stored(arguments: argparse.Namespace) -> tuple[Vectors, NDArray[np.float32]]:
    """The documents in blocks on disk, and the queries [Q, D]."""
    folder = arguments.work / "vectors"
    shutil.rmtree(arguments.work, ignore_errors=True)
    folder.mkdir(parents=True)
    if arguments.vectors:
        matrix = np.load(arguments.vectors, mmap_mode="r", allow_pickle=False)
        queries = np.load(arguments.queries_from, allow_pickle=False) if arguments.queries_from else matrix[-arguments.queries :]
        n_documents = len(matrix) if arguments.queries_from else len(matrix) - len(queries)
        blocks = (matrix[start : min(start + BLOCK, n_documents)] for start in range(0, n_documents, BLOCK))
        arguments.documents, arguments.dimensions = n_documents, matrix.shape[1]
    else:
        random = np.random.default_rng(SEED)
        centres = random.normal(size=(CENTRES, arguments.dimensions))
        queries = around(centres, arguments.queries, random)
        n_documents = arguments.documents
        blocks = (around(centres, min(BLOCK, n_documents - start), random) for start in range(0, n_documents, BLOCK))
    for number, block in enumerate(blocks):
        np.save(folder / f"{number:06d}.npy", np.asarray(block, dtype=np.float32))
    return Vectors(folder, n_documents, queries.shape[1], "benchmark"), np.ascontiguousarray(queries[: arguments.queries], dtype=np.float32)


def around(centres: NDArray[np.float64], count: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Unit vectors between two centres, with noise as large as the centres: near ones are neither copies nor strangers."""
    one, other = (centres[random.integers(len(centres), size=count)] for _ in range(2))
    matrix = one + 0.5 * other + random.normal(size=one.shape)
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), dtype=np.float32)


def exact(vectors: Vectors, queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """[Q, K], the best documents."""
    heap = faiss.ResultHeap(len(queries), K, keep_max=True)
    first = 0
    for block in vectors.blocks():
        scores, rows = faiss.knn(queries, np.ascontiguousarray(block), min(K, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        heap.add_result(scores, rows + first)
        first += len(block)
    heap.finalize()
    return np.asarray(heap.I)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns that runs in a process of its own, whose memory is its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def measure_kind(
    vectors: Vectors, queries: NDArray[np.float32], expected: NDArray[np.int64], name: str, recall: float, folder: Path, threads: Sequence[int]
) -> dict[str, Any]:
    """One of our indexes: built, opened, searched."""
    kind, quantisation = name.split("-")
    faiss.omp_set_num_threads(max(threads))
    module, before, start = load_kind("indexing", kind, "benchmark"), peak(), time.perf_counter()
    told = module.build(vectors, folder, INDEX_KINDS[kind].model_validate({"quantisation": quantisation, "recall": recall}))
    seconds, built = time.perf_counter() - start, peak() - before
    start = time.perf_counter()
    index = module.open_index(folder)
    opening = time.perf_counter() - start
    engine_search = faiss_alone(index)
    return {
        "name": name,
        "wanted": recall,
        "told": told,
        "recall": recall_of(index.search(queries, K)[0], expected),
        **timings(lambda some: index.search(some, K), queries, threads, faiss.omp_set_num_threads),
        "overhead": overhead(lambda some: index.search(some, K), engine_search, queries) if index.refine == 1 else None,
        "build_seconds": seconds,
        "build_megabytes": built,
        "open_seconds": opening,
        "bytes_per_document": sum(path.stat().st_size for path in folder.iterdir()) / len(vectors),
    }


def faiss_alone(index: Any) -> Callable[[NDArray[np.float32]], Any]:
    """FAISS's own search of an opened index, as a user of FAISS would call it."""
    return lambda some: index.index.search(some, K)


def measure_usearch(vectors: Vectors, queries: NDArray[np.float32], expected: NDArray[np.int64], threads: Sequence[int]) -> list[dict[str, Any]]:
    """The graphs of usearch, of float32 and of int8, at each recall that they reach."""
    from usearch.index import Index

    found = []
    for kind in ("f32", "i8"):
        before, start = peak(), time.perf_counter()
        index = Index(ndim=vectors.dimensions, metric="ip", dtype=kind, connectivity=32, expansion_add=100)
        for number, block in enumerate(vectors.blocks()):
            index.add(np.arange(len(block)) + number * BLOCK, np.asarray(block), threads=max(threads))
        built = {"build_seconds": time.perf_counter() - start, "build_megabytes": peak() - before}
        half = len(queries) // 2
        for recall in RECALLS:
            for expansion in EXPANSIONS:
                index.expansion_search = expansion
                if recall_of(index.search(queries[:half], K, threads=1).keys, expected[:half]) >= recall:
                    break
            else:
                continue
            reached = recall_of(index.search(queries, K, threads=1).keys, expected)
            threaded = {"threads": 1}
            speed = timings(
                lambda some, index=index, threaded=threaded: index.search(some, K, **threaded),
                queries,
                threads,
                lambda number, threaded=threaded: threaded.update(threads=number),
            )
            told = {"expansion": expansion}
            size = {"open_seconds": None, "bytes_per_document": index.serialized_length / len(vectors)}
            found.append({"name": f"usearch-{kind}", "wanted": recall, "told": told, "recall": reached, **speed, "overhead": None, **built, **size})
    return found


def timings(
    search: Callable[[NDArray[np.float32]], Any], queries: NDArray[np.float32], threads: Sequence[int], use: Callable[[int], None]
) -> dict[str, dict[str, float]]:
    """Queries a second of a batch and of queries alone, and the slowest hundredth of these, for each number of threads."""
    found = {}
    for number in threads:
        use(number)
        search(queries[:50])
        start = time.perf_counter()
        search(queries)
        batch = len(queries) / (time.perf_counter() - start)
        times = []
        for query in queries[:, None]:
            start = time.perf_counter()
            search(query)
            times.append(time.perf_counter() - start)
        found[str(number)] = {"batch_per_second": batch, "single_per_second": 1 / float(np.mean(times)), "p99_ms": 1000 * float(np.quantile(times, 0.99))}
    use(1)
    return {"speed": found}


def overhead(ours: Callable[[NDArray[np.float32]], Any], engine: Callable[[NDArray[np.float32]], Any], queries: NDArray[np.float32]) -> dict[str, float]:
    """How much longer ours takes, as a share, and the microseconds of a query alone.

    They take turns, query by query, so that what else runs here meets both; a first call, not counted, brings what a query reads into the cache.
    """
    shares, extra = [], []
    for _ in range(ROUNDS):
        times = np.array([[seconds(search, query) for search in (engine, engine, ours)] for query in queries[:300, None]])[:, 1:]
        theirs, mine = np.median(times, axis=0)
        shares.append(mine / theirs - 1)
        extra.append(1e6 * (mine - theirs))
    batches = [seconds(ours, queries) / seconds(engine, queries) - 1 for _ in range(ROUNDS)]
    return {"single": float(np.median(shares)), "single_microseconds": float(np.median(extra)), "batch": float(np.median(batches))}


def seconds(search: Callable[[NDArray[np.float32]], Any], queries: NDArray[np.float32]) -> float:
    """What a search takes."""
    start = time.perf_counter()
    search(queries)
    return time.perf_counter() - start


def recall_of(found: NDArray[Any], expected: NDArray[np.int64]) -> float:
    """The share of the exact best that was found."""
    return float(np.mean((found[:, :, None].astype(np.int64) == expected[:, None, :]).any(axis=1)))


def peak() -> float:
    """Megabytes that this process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


HEAD = f"{'index':<14}{'wanted':>7}{'recall':>8}{'batch/s':>9}{'single/s':>9}{'p99 ms':>8}{'overhead':>18}" + (
    f"{'build s':>9}{'MB':>7}{'open s':>8}{'B/doc':>7}  settings"
)


def line(found: dict[str, Any]) -> str:
    """A row of the table, with the timings of the fewest threads."""
    speed = next(iter(found["speed"].values()))
    over = f"{found['overhead']['single']:+.1%} {found['overhead']['single_microseconds']:+.0f} us" if found["overhead"] else ""
    told = {key: found["told"][key] for key in ("lists", "probes", "ef_search", "refine", "expansion") if key in found["told"]}
    opening = f"{found['open_seconds']:.3f}" if found["open_seconds"] is not None else ""
    return (
        f"{found['name']:<14}{found['wanted']:>7}{found['recall']:>8.3f}{speed['batch_per_second']:>9.0f}{speed['single_per_second']:>9.0f}{speed['p99_ms']:>8.2f}"
        f"{over:>18}{found['build_seconds']:>9.1f}{found['build_megabytes']:>7.0f}{opening:>8}{found['bytes_per_document']:>7.0f}  {told}"
    )


if __name__ == "__main__":
    main()
