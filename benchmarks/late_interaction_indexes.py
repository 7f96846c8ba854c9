"""How fast and how well the approximate late-interaction index finds what exact MaxSim does, beside fast-plaid.

    python benchmarks/late_interaction_indexes.py                                      # 20,000 documents of 32 tokens, a few minutes
    python benchmarks/late_interaction_indexes.py --fast-plaid OTHER/bin/python        # an environment with fast-plaid==1.7.0.2110
    python benchmarks/late_interaction_indexes.py --documents 500000 --tokens 64
    python benchmarks/late_interaction_indexes.py --encodings work/NAME/encodings      # those of an experiment

Without --encodings the token vectors are synthetic, from a seed: each is a word's vector with something of its topic, of its document and
of its own. Queries are pieces of documents with noise. Every engine builds in one process and searches in another, on --threads threads,
a query at a time; what it found is compared with exact MaxSim of the float16 vectors. The milliseconds of processor time are those that
another load on the machine changes least. fast-plaid is asked with several settings, so that equal recalls can be compared.
Prints a table and writes benchmarks/results/late_interaction_indexes.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What only this project's environment has is imported where it is used: fast-plaid's reads this file too.

K = 10
BLOCK = 1024
WORDS, WORDS_OF_A_TOPIC = 4000, 200
TOPIC, DOCUMENT, OWN, NOISE = 0.5, 0.4, 0.5, 0.8
"""Lengths of what is added to a word's unit vector, and to the tokens of a query."""

EXACT_QUERIES = 20
"""Timed with the exact index, which takes as long for each."""

PLAID_SETTINGS = ((2, 512), (4, 512), (4, 1024), (8, 1024), (8, 4096), (16, 4096))
"""Centroids probed for each token and documents scored: fast-plaid's own choice is the last but one."""

Found = list[list[int]]
Search = Callable[[NDArray[np.float32]], list[int]]


def main() -> None:
    """Makes the vectors, has every engine measured, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--tokens", type=int, default=32, help="of a synthetic document")
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument("--encodings", type=Path, help="a folder of late-interaction encodings")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--query-tokens", type=int, default=16)
    parser.add_argument("--bits", type=int, default=2, choices=(1, 2, 4), help="of a dimension, for both engines")
    parser.add_argument("--recall", type=float, default=0.95, help="that token_clusters shall choose its settings for")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fast-plaid", type=Path, metavar="PYTHON", help="of an environment that has fast-plaid")
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-late-interaction-indexes"))
    parser.add_argument("--no-results", action="store_true", help="print only, keep nothing")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=("build", "search"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        measure(arguments)
        return
    from record import MACHINE, keep

    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.encodings = arguments.encodings or write_synthetic(arguments)
    rows = write_queries(arguments)
    engines = ["multivector", "token_clusters", *(["fast_plaid"] if arguments.fast_plaid else [])]
    measured = {engine: measured_apart(engine, arguments) for engine in engines}
    exact = measured["multivector"][0]["found"]
    for settings in measured.values():
        for one in settings:
            one["recall"] = sum(len(set(some) & set(other)) for some, other in zip(one.pop("found"), exact, strict=False)) / sum(map(len, exact))
    result = {
        "engines": measured,
        "documents": documents_in(arguments.encodings),
        "tokens": rows,
        "queries": arguments.queries,
        "query_tokens": arguments.query_tokens,
        "bits": arguments.bits,
        "threads": arguments.threads,
        "seed": arguments.seed,
        "machine": MACHINE,
    }
    if not arguments.no_results:
        keep("late_interaction_indexes", {f"{result['documents']} documents": result})
    print(table(result))


def write_synthetic(arguments: argparse.Namespace) -> Path:
    """The folder of token vectors of the wanted size, in the blocks of an encoder; made once."""
    folder: Path = arguments.work / f"vectors-{arguments.documents}-{arguments.tokens}-{arguments.dimensions}-{arguments.seed}"
    if (folder / "encodings.json").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = np.random.default_rng(arguments.seed)
    words = units(generator, WORDS, arguments.dimensions)
    topics = units(generator, max(50, arguments.documents // 50), arguments.dimensions)
    favourites = np.minimum((20 * generator.pareto(1.0, size=(len(topics), WORDS_OF_A_TOPIC))).astype(np.int64), WORDS - 1)
    for number, start in enumerate(range(0, arguments.documents, BLOCK)):
        size = min(BLOCK, arguments.documents - start)
        topic = np.repeat(generator.integers(0, len(topics), size), arguments.tokens)
        tokens = words[favourites[topic, generator.integers(0, WORDS_OF_A_TOPIC, len(topic))]] + TOPIC * topics[topic]
        tokens += DOCUMENT * np.repeat(units(generator, size, arguments.dimensions), arguments.tokens, axis=0)
        tokens += OWN * units(generator, len(topic), arguments.dimensions)
        np.save(folder / f"{number:06d}.vectors.npy", normalised(tokens).astype(np.float16))
        np.save(folder / f"{number:06d}.offsets.npy", np.arange(size + 1, dtype=np.int64) * arguments.tokens)
    (folder / "encodings.json").write_text(json.dumps({"documents": arguments.documents}), encoding="utf-8")
    return folder


def write_queries(arguments: argparse.Namespace) -> int:
    """Writes pieces of documents with noise as queries; returns how many tokens the documents have together."""
    generator = np.random.default_rng(arguments.seed)
    blocks = list(blocks_of(arguments.encodings))
    pieces: list[NDArray[np.float32]] = []
    for chosen in generator.integers(0, len(blocks), arguments.queries):
        vectors, offsets = blocks[chosen]
        filled = np.flatnonzero(np.diff(offsets))
        row = generator.choice(filled)
        length = min(arguments.query_tokens, int(offsets[row + 1] - offsets[row]))
        start = generator.integers(offsets[row], offsets[row + 1] - length + 1)
        piece = vectors[start : start + length].astype(np.float32)
        pieces.append(normalised(piece + NOISE * units(generator, length, piece.shape[1])))
    np.save(arguments.work / "queries.npy", np.concatenate(pieces))
    np.save(arguments.work / "query_offsets.npy", np.cumsum([0, *(len(piece) for piece in pieces)]))
    return sum(len(vectors) for vectors, _ in blocks)


def measured_apart(engine: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What an engine's two processes say: a list of settings with their figures, and what the build took in each of them."""
    python = str(arguments.fast_plaid) if engine == "fast_plaid" else sys.executable
    shutil.rmtree(arguments.work / engine, ignore_errors=True)
    (arguments.work / engine).mkdir()
    options = ["--work", str(arguments.work), "--encodings", str(arguments.encodings), "--bits", str(arguments.bits), "--recall", str(arguments.recall)]
    options += ["--threads", str(arguments.threads), "--seed", str(arguments.seed)]
    for step in ("build", "search"):
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "MKL_NUM_THREADS": str(arguments.threads)}
        subprocess.run([python, __file__, "--engine", engine, "--step", step, *options], env=environment, check=True)
    build, search = (json.loads((arguments.work / f"{engine}-{step}.json").read_text(encoding="utf-8")) for step in ("build", "search"))
    return [{**build, **settings} for settings in search]


def measure(arguments: argparse.Namespace) -> None:
    """Builds or searches with one engine in this process, and writes what it took."""
    import torch

    torch.set_num_threads(arguments.threads)
    build, searches = ENGINES[arguments.engine]
    folder = arguments.work / arguments.engine
    if arguments.step == "build":
        start, processor = time.perf_counter(), time.process_time()
        told = build(folder, arguments)
        result: Any = {"build_seconds": time.perf_counter() - start, "build_processor_seconds": time.process_time() - processor, **told}
        result |= {"bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), "build_rss": peak_rss()}
    else:
        result = [{**settings, **timed(search, arguments.work, limit), "search_rss": peak_rss()} for settings, search, limit in searches(folder, arguments)]
    (arguments.work / f"{arguments.engine}-{arguments.step}.json").write_text(json.dumps(result), encoding="utf-8")


def timed(search: Search, work: Path, limit: int | None) -> dict[str, Any]:
    """What a search finds for each query, and how long it takes for one; those behind `limit` are not timed."""
    tokens, offsets = np.load(work / "queries.npy"), np.load(work / "query_offsets.npy")
    queries = [tokens[start:end] for start, end in pairwise(offsets)]
    for query in queries[:5]:
        search(query)
    seconds, found = [], []
    processor = time.process_time()
    for query in queries[:limit]:
        start = time.perf_counter()
        found.append(search(query))
        seconds.append(time.perf_counter() - start)
    processor = (time.process_time() - processor) / len(seconds)
    p50, p99 = (float(np.percentile(seconds, percent)) * 1000 for percent in (50, 99))
    found += [search(query) for query in queries[len(found) :]]
    return {"queries_per_second": len(seconds) / sum(seconds), "p50_ms": p50, "p99_ms": p99, "processor_ms": 1000 * processor, "found": found}


def build_multivector(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The exact index."""
    from retriever.indexing import multivector
    from retriever.settings.index import MultiVectorSettings

    return multivector.build(encodings_in(arguments.encodings), folder, MultiVectorSettings())


def search_multivector(folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Search, int | None]]:
    """With its only setting."""
    from retriever.indexing import multivector

    yield {}, search_of(multivector.open_index(folder)), EXACT_QUERIES


def build_token_clusters(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The approximate one."""
    from retriever.indexing import token_clusters
    from retriever.settings.index import TokenClustersSettings

    settings = TokenClustersSettings.model_validate({"kind": "token_clusters", "bits": arguments.bits, "recall": arguments.recall})
    told = token_clusters.build(encodings_in(arguments.encodings), folder, settings)
    return {"centroids": told["centroids"], "sample_recall": told["recall"]}


def search_token_clusters(folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Search, int | None]]:
    """With what it chose, and with half and twice of it."""
    from retriever.indexing import token_clusters

    start = time.perf_counter()
    index = token_clusters.open_index(folder)
    opening = time.perf_counter() - start
    for probes, candidates in ((index.probes, index.candidates), (index.probes, index.candidates * 2), (max(1, index.probes // 2), index.candidates // 2)):
        settings = {"probes": probes, "candidates": candidates, "opening_seconds": opening}
        yield settings, search_of(token_clusters.TokenClustersIndex(index.files, probes, candidates)), None


def build_fast_plaid(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """fast-plaid's, of all vectors at once."""
    import torch
    from fast_plaid.search import FastPlaid  # type: ignore[import-not-found,unused-ignore]

    blocks = blocks_of(arguments.encodings)
    documents = [torch.from_numpy(np.array(vectors[start:end])) for vectors, offsets in blocks for start, end in pairwise(offsets)]
    FastPlaid(str(folder), device="cpu").create(documents, nbits=arguments.bits, seed=arguments.seed)
    return {}


def search_fast_plaid(folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Search, int | None]]:
    """With several settings."""
    import torch
    from fast_plaid.search import FastPlaid

    index = FastPlaid(str(folder), device="cpu")
    for probes, scored in PLAID_SETTINGS:

        def search(query: NDArray[np.float32], probes: int = probes, scored: int = scored) -> list[int]:
            (found,) = index.search(torch.from_numpy(query)[None], top_k=K, n_ivf_probe=probes, n_full_scores=scored, show_progress=False)
            return [int(row) for row, _ in found]

        yield {"probes": probes, "candidates": scored}, search, None


ENGINES: dict[str, tuple[Callable[..., dict[str, Any]], Callable[..., Iterator[tuple[dict[str, Any], Search, int | None]]]]] = {
    "multivector": (build_multivector, search_multivector),
    "token_clusters": (build_token_clusters, search_token_clusters),
    "fast_plaid": (build_fast_plaid, search_fast_plaid),
}
"""How each builds in a folder, and searches it with the settings that are tried."""


def search_of(index: Any) -> Search:
    """One query at a time with an index of this project."""
    from retriever.ragged import Ragged

    def search(query: NDArray[np.float32]) -> list[int]:
        rows, _ = index.search(Ragged(np.array([0, len(query)]), {"vectors": query}), K)
        return [int(row) for row in rows[0]]

    return search


def encodings_in(folder: Path) -> Any:
    """The folder as this project reads it."""
    from retriever.ragged_encodings import RaggedVectors

    vectors, _ = next(blocks_of(folder))
    return RaggedVectors(folder, documents_in(folder), ("vectors",), "benchmark", vectors.shape[1])


def documents_in(folder: Path) -> int:
    """N."""
    return int(json.loads((folder / "encodings.json").read_text(encoding="utf-8"))["documents"])


def blocks_of(folder: Path) -> Iterator[tuple[NDArray[np.float16], NDArray[np.int64]]]:
    """Vectors and offsets of some documents at a time, memory-mapped."""
    for path in sorted(folder.glob("*.vectors.npy")):
        yield np.load(path, mmap_mode="r"), np.load(path.with_name(path.name.replace("vectors", "offsets")))


def units(generator: np.random.Generator, count: int, dimensions: int) -> NDArray[np.float32]:
    """[count, dimensions], random directions."""
    return normalised(generator.standard_normal((count, dimensions), dtype=np.float32))


def normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def peak_rss() -> int:
    """Bytes of memory that this process had at most; pages of mapped files count."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def table(result: dict[str, Any]) -> str:
    """One line for each engine and setting, in Markdown."""
    lines = ["| engine | probes | candidates | recall@10 | queries/s | p50 ms | p99 ms | processor ms | build s | bytes/token | search MB | build MB |"]
    lines.append("|" + "---|" * 12)
    for engine, settings in result["engines"].items():
        for one in settings:
            speed = f"{one['queries_per_second']:.1f} | {one['p50_ms']:.1f} | {one['p99_ms']:.1f} | {one['processor_ms']:.1f} | {one['build_seconds']:.0f}"
            sizes = f"{one['bytes'] / result['tokens']:.1f} | {one['search_rss'] / 1e6:.0f} | {one['build_rss'] / 1e6:.0f}"
            lines.append(f"| {engine} | {one.get('probes', '')} | {one.get('candidates', '')} | {one['recall']:.3f} | {speed} | {sizes} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
