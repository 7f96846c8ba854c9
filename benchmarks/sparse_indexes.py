"""How fast and how well the indexes of sparse vectors find what an exact search does, beside Seismic alone and Lucene's impacts.

    python benchmarks/sparse_indexes.py                                        # 100,000 documents: about half an hour on 2 cores
    python benchmarks/sparse_indexes.py --documents 1000000 --engines inverted quantised
    python benchmarks/sparse_indexes.py --encodings work/NAME/encodings/FOLDER # those of an experiment's sparse student

Without --encodings the vectors are synthetic, from a seed, as SPLADE's are: about 150 of 30,522 words a document, from its topic and from
everyday words of Zipf's law, rare ones heavier; a query has about 32, of a document and of everyday ones. Of an experiment's encodings
documents stand for queries, each cut to its 32 heaviest words.

Every engine builds in one process and searches in another, a query at a time on one thread; of several rounds each query's fastest counts,
for a shared machine is slow at times. Seismic is asked through us and alone in turns, with the same settings: the overhead of our
layer, which gives exact scores, is told for queries one by one and for all at once. Recall@10 is beside the exact index.
Prints a table and writes benchmarks/results/sparse_indexes.json. The engine "lucene" needs the extra [lucene], "seismic" the extra [sparse].
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from record import MACHINE, keep
from tables import markdown

from retriever.encodings import BLOCK, write_array
from retriever.errors import MissingExtraError
from retriever.files import write_json
from retriever.indexing import inverted, seismic
from retriever.lucene import start_java
from retriever.ragged import Ragged
from retriever.ragged_encodings import RaggedVectors
from retriever.settings.index import InvertedSettings, SeismicSettings

K = 10
WORDS = 30_522
TOPICS, WORDS_OF_A_TOPIC = 200, 600
OF_TOPIC, EVERYDAY = 95, 72
"""Drawn for a document; some are drawn twice and count once: about 150 are left."""

QUERY_WORDS, QUERY_EVERYDAY = 22, 10
IMPACTS = 100
"""Of a weight of 1, as whole numbers that Lucene counts."""

Search = Callable[[Ragged], list[int]]


def main() -> None:
    """Makes the vectors, has every engine measured, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--encodings", type=Path, help="a folder of a sparse student's encodings")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recall", type=float, default=0.95, help="that seismic shall choose its settings for")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-sparse-indexes"))
    parser.add_argument("--no-results", action="store_true", help="print only, keep nothing")
    parser.add_argument("--step", choices=("build", "search"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        measure(arguments.engines[0], arguments)
        return
    arguments.encodings = arguments.encodings or write_synthetic(arguments)
    queries = write_queries(arguments)
    engines = [name for name in ("inverted", *arguments.engines) if is_installed(name)]  # the exact one always: others are compared with it
    measured = {name: one for engine in dict.fromkeys(engines) for name, one in measured_apart(engine, arguments).items()}
    exact = measured["inverted"]["found"]
    for one in measured.values():
        one["recall"] = sum(len(set(some) & set(other)) for some, other in zip(one.pop("found"), exact, strict=True)) / sum(map(len, exact))
    documents = len(vectors_in(arguments.encodings))
    result = {
        "engines": measured,
        "documents": documents,
        "entries": sum(int(block.offsets[-1]) for block in vectors_in(arguments.encodings).blocks()) / documents,
        "queries": len(queries),
        "query_entries": float(queries.counts.mean()),
        "seed": arguments.seed,
        "machine": MACHINE,
    }
    if not arguments.no_results:
        keep("sparse_indexes", {f"{documents} documents": result})
    print(table(result))


# Vectors


def write_synthetic(arguments: argparse.Namespace) -> Path:
    """The folder of vectors of the wanted size, in the blocks of an encoder; made once."""
    folder: Path = arguments.work / f"vectors-{arguments.documents}-{arguments.seed}"
    if (folder / "encodings.json").exists():
        return folder
    for number, start in enumerate(range(0, arguments.documents, BLOCK)):
        block = documents_of(np.random.default_rng([arguments.seed, number]), min(BLOCK, arguments.documents - start), arguments.seed)
        for name, array in (*block.columns.items(), ("offsets", block.offsets)):
            write_array(folder / f"{number:06d}.{name}.npy", array)
    write_json(folder / "encodings.json", {"documents": arguments.documents})
    return folder


@functools.cache
def words_of(seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """How often each word is met, its weight, and the words of each topic."""
    generator = np.random.default_rng(seed)
    often = generator.permutation((np.arange(WORDS) + 10.0) ** -0.9)
    often /= often.sum()
    rarer = np.sqrt(often) / np.sqrt(often).sum()
    topics = np.array([generator.choice(WORDS, WORDS_OF_A_TOPIC, replace=False, p=rarer) for _ in range(TOPICS)])
    return often, np.clip(0.25 - 0.09 * np.log(30 * often), 0.1, 1.2), topics


def documents_of(generator: np.random.Generator, size: int, seed: int) -> Ragged:
    """The entries of some documents."""
    often, weights, topics = words_of(seed)
    favourites = (generator.random((size, OF_TOPIC)) ** 1.7 * WORDS_OF_A_TOPIC).astype(np.int64)
    own = topics[generator.integers(0, TOPICS, size)[:, None], favourites]
    drawn = np.concatenate([own, generator.choice(WORDS, (size, EVERYDAY), p=often)], axis=1)
    rows, words = np.divmod(np.unique(np.arange(size)[:, None] * WORDS + drawn), WORDS)
    values = weights[words] * generator.lognormal(0, 0.6, len(words))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=size))]).astype(np.int64)
    return Ragged(offsets, {"dimensions": words.astype(np.int32), "values": values.astype(np.float32)})


def write_queries(arguments: argparse.Namespace) -> Ragged:
    """Some words of documents, with everyday ones where the documents are synthetic; kept for the processes that search."""
    vectors, generator = vectors_in(arguments.encodings), np.random.default_rng(arguments.seed)
    synthetic = words_of(arguments.seed) if arguments.encodings.parent == arguments.work else None
    found: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
    for row in np.sort(generator.choice(len(vectors), min(arguments.queries, len(vectors)), replace=False)):
        entries = vectors.rows(np.array([row]))
        words, values = entries.columns["dimensions"], entries.columns["values"]
        if synthetic:
            often, weights, _ = synthetic
            kept = generator.choice(len(words), min(QUERY_WORDS, len(words)), replace=False, p=values / values.sum())
            everyday = np.setdiff1d(generator.choice(WORDS, QUERY_EVERYDAY, p=often), words[kept])
            own = values[kept] * generator.lognormal(0.2, 0.4, len(kept))
            words, values = np.concatenate([words[kept], everyday]), np.concatenate([own, 0.3 * weights[everyday]])
        else:
            kept = np.argsort(-values, kind="stable")[: QUERY_WORDS + QUERY_EVERYDAY]
            words, values = words[kept], values[kept]
        order = np.argsort(words)
        found.append((words[order], values[order]))
    offsets = np.concatenate([[0], np.cumsum([len(words) for words, _ in found])]).astype(np.int64)
    dimensions, values = (np.concatenate(column) for column in zip(*found, strict=True))
    arguments.work.mkdir(parents=True, exist_ok=True)
    queries = Ragged(offsets, {"dimensions": dimensions.astype(np.int32), "values": values.astype(np.float32)})
    np.savez(arguments.work / "queries.npz", offsets=offsets, **queries.columns)
    return queries


def vectors_in(folder: Path) -> RaggedVectors:
    """The folder as this project reads it."""
    facts = json.loads((folder / "encodings.json").read_text(encoding="utf-8"))
    largest = max((int(block.max(initial=0)) for block in (np.load(path) for path in folder.glob("*.dimensions.npy"))), default=0)
    return RaggedVectors(folder, facts["documents"], ("dimensions", "values"), facts.get("encoder", "benchmark"), max(WORDS, largest + 1))


# Measuring


def is_installed(engine: str) -> bool:
    """Whether an engine can be measured here; says so where not."""
    try:
        if engine == "lucene":
            start_java()
        if engine == "seismic":
            import seismic as _  # noqa: F401 - the package, not our module of that name
    except (MissingExtraError, ImportError) as error:
        print(f"{engine} is left out: {error}", file=sys.stderr)
        return False
    return True


def measured_apart(engine: str, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What an engine's two processes say of each way to search with it."""
    shutil.rmtree(arguments.work / engine, ignore_errors=True)
    (arguments.work / engine).mkdir()
    options = ["--work", arguments.work, "--encodings", arguments.encodings, "--recall", arguments.recall, "--rounds", arguments.rounds]
    for step in ("build", "search"):
        command = [sys.executable, __file__, "--engines", engine, "--step", step, *map(str, options)]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    build, searches = (json.loads((arguments.work / f"{engine}-{step}.json").read_text(encoding="utf-8")) for step in ("build", "search"))
    return {name: {**build, **one} for name, one in searches.items()}


def measure(engine: str, arguments: argparse.Namespace) -> None:
    """Builds or searches with one engine in this process, and writes what it took."""
    build, open_searches = ENGINES[engine]
    folder = arguments.work / engine
    result: dict[str, Any]
    if arguments.step == "build":
        start, processor = time.perf_counter(), time.process_time()
        told = build(folder, arguments)
        result = {"build_seconds": time.perf_counter() - start, "build_processor_seconds": time.process_time() - processor, "told": told}
        result |= {"bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), "build_rss": peak_rss()}
    else:
        kept = np.load(arguments.work / "queries.npz")
        queries = Ragged(kept["offsets"], {name: kept[name] for name in ("dimensions", "values")})
        before = psutil.Process().memory_info().rss
        start = time.perf_counter()
        searches = open_searches(folder)
        opened = time.perf_counter() - start
        result = timed(searches, queries, arguments.rounds)
        for one in result.values():
            one |= {"opening_seconds": opened, "search_rss": psutil.Process().memory_info().rss - before}
        if "seismic alone" in result:
            result["seismic"] |= overhead(folder, queries, arguments.rounds)
    write_json(arguments.work / f"{engine}-{arguments.step}.json", result)


def timed(searches: Mapping[str, Search], queries: Ragged, rounds: int) -> dict[str, dict[str, Any]]:
    """What each search finds for each query, and how long one takes: the fastest of the rounds, in which they take turns."""
    each = [queries[np.array([number])] for number in range(len(queries))]
    seconds = {name: np.full((rounds, len(each)), np.inf) for name in searches}
    found: dict[str, list[list[int]]] = {name: [search(query) for query in each] for name, search in searches.items()}
    for turn in range(rounds):
        for number, query in enumerate(each):
            for name, search in searches.items():
                start = time.perf_counter()
                search(query)
                seconds[name][turn, number] = time.perf_counter() - start
    fastest = {name: times.min(axis=0) for name, times in seconds.items()}
    return {
        name: {
            "queries_per_second": 1 / times.mean(),
            "p50_ms": 1000 * float(np.percentile(times, 50)),
            "p99_ms": 1000 * float(np.percentile(times, 99)),
            "found": found[name],
        }
        for name, times in fastest.items()
    }


def overhead(folder: Path, queries: Ragged, rounds: int) -> dict[str, float]:
    """How much longer than the engine alone we take for all queries in one call, by processor time; fastest rounds of both."""
    index = seismic.open_index(folder)
    alone = [(queries.columns["dimensions"][start:end], queries.columns["values"][start:end]) for start, end in pairwise(queries.offsets)]
    ours, theirs = [], []
    for _ in range(2 * rounds):
        start = time.process_time()
        index.search(queries, K)
        middle = time.process_time()
        for dimensions, values in alone:
            index.engine.search(dimensions, values, K, index.query_cut, index.heap_factor, 0, True)
        ours.append(middle - start)
        theirs.append(time.process_time() - middle)
    return {"overhead_of_a_batch": min(ours) / min(theirs) - 1}


def peak_rss() -> int:
    """Bytes of memory that this process had at most; pages of mapped files count."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# Engines


def search_of(index: Any) -> Search:
    """One query with an index of this project."""
    return lambda query: [int(row) for row in index.search(query, K)[0][0]]


def open_seismic(folder: Path) -> dict[str, Search]:
    """Through us, and the engine alone with the same settings."""
    index = seismic.open_index(folder)

    def alone(query: Ragged) -> list[int]:
        found = index.engine.search(query.columns["dimensions"], query.columns["values"], K, index.query_cut, index.heap_factor, 0, True)
        return [row for _, row in found]

    return {"seismic": search_of(index), "seismic alone": alone}


def build_lucene(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Anserini's index of impacts: a document is its words, each as often as its impact says."""
    collection = folder / "collection"
    collection.mkdir()
    row = 0
    with (collection / "documents.jsonl").open("w", encoding="utf-8") as stream:
        for block in vectors_in(arguments.encodings).blocks():
            for words, impacts in impacts_of(block):
                stream.write(json.dumps({"id": str(row), "contents": "", "vector": dict(zip(words, impacts, strict=True))}) + "\n")
                row += 1
    options = ["-collection", "JsonVectorCollection", "-input", str(collection), "-index", str(folder / "index"), "-threads", "1"]
    start_java()("io.anserini.index.IndexCollection").main([*options, "-generator", "DefaultLuceneDocumentGenerator", "-impact", "-pretokenized"])
    shutil.rmtree(collection)
    return {"impacts": IMPACTS}


def open_lucene(folder: Path) -> dict[str, Search]:
    """Anserini's searcher of impacts; rows of equal scores come in Lucene's order."""
    java = start_java()
    searcher = java("io.anserini.search.SimpleImpactSearcher")(str(folder / "index"))

    def search(query: Ragged) -> list[int]:
        asked = java("java.util.HashMap")()
        for word, impact in zip(*next(impacts_of(query)), strict=True):
            asked.put(word, java("java.lang.Integer")(impact))
        return [int(hit.docid) for hit in searcher.search(asked, K)]

    return {"lucene": search}


def impacts_of(texts: Ragged) -> Iterator[tuple[list[str], list[int]]]:
    """The words of each text as Lucene's terms, and their impacts."""
    impacts = np.maximum(1, np.rint(IMPACTS * texts.columns["values"])).astype(np.int64)
    for start, end in pairwise(texts.offsets):
        yield [f"w{word}" for word in texts.columns["dimensions"][start:end]], impacts[start:end].tolist()


ENGINES: dict[str, tuple[Callable[[Path, argparse.Namespace], dict[str, Any]], Callable[[Path], dict[str, Search]]]] = {
    "inverted": (
        lambda folder, arguments: inverted.build(vectors_in(arguments.encodings), folder, InvertedSettings()),
        lambda folder: {"inverted": search_of(inverted.open_index(folder))},
    ),
    "quantised": (
        lambda folder, arguments: inverted.build(vectors_in(arguments.encodings), folder, InvertedSettings(quantised=True)),
        lambda folder: {"inverted, quantised": search_of(inverted.open_index(folder))},
    ),
    "seismic": (lambda folder, arguments: seismic.build(vectors_in(arguments.encodings), folder, SeismicSettings(recall=arguments.recall)), open_seismic),
    "lucene": (build_lucene, open_lucene),
}
"""How each builds in a folder, and what searches there."""


def table(result: Mapping[str, Any]) -> str:
    """One line for each way to search, and what our layer costs."""
    heads = ["", "recall@10", "queries/s", "p50 ms", "p99 ms", "build s", "build processor s", "bytes/document", "search MB", "build MB"]
    rows = [
        [
            name,
            f"{one['recall']:.3f}",
            f"{one['queries_per_second']:,.0f}",
            f"{one['p50_ms']:.2f}",
            f"{one['p99_ms']:.2f}",
            f"{one['build_seconds']:,.0f}",
            f"{one['build_processor_seconds']:,.0f}",
            f"{one['bytes'] / result['documents']:,.0f}",
            f"{one['search_rss'] / 1e6:,.0f}",
            f"{one['build_rss'] / 1e6:,.0f}",
        ]
        for name, one in result["engines"].items()
    ]
    said = f"{result['documents']:,} documents of {result['entries']:.0f} entries, {result['queries']} queries of {result['query_entries']:.0f}."
    if "seismic" in result["engines"]:
        ours, alone = result["engines"]["seismic"], result["engines"]["seismic alone"]
        single = alone["queries_per_second"] / ours["queries_per_second"] - 1
        said += f" Our layer takes {single:.0%} more than Seismic alone for single queries, {ours['overhead_of_a_batch']:.0%} for all in one call (bar: 5 %)."
    return f"{markdown(heads, rows)}\n\n{said}"


if __name__ == "__main__":
    main()
