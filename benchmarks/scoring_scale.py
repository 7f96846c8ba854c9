"""What the store costs from ten thousand to ten million pairs, with a teacher that costs nothing.

    python benchmarks/scoring_scale.py

Prints pairs, seconds, microseconds per pair (scoring, and reading the scores back), the peak memory above the idle interpreter
with torch loaded, and bytes per pair on the disk. Each size runs in a process of its own. The peak counts the memory-mapped
pages of the collection, which the operating system may take back at any time.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from retriever.runs import Run

DOCUMENTS = 2**18
DEPTH = 100
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)


def main() -> None:
    """Measures each size in a process of its own and prints a line for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--results", type=Path, help="also write the numbers to this JSON file")
    parser.add_argument("--collection", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pairs", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.collection and arguments.pairs:
        print(json.dumps(measure(arguments.collection, arguments.pairs)))
    elif arguments.collection:
        prepare(arguments.collection)
    else:
        compare_sizes(arguments.sizes, arguments.results)


def compare_sizes(sizes: Sequence[int], results: Path | None) -> None:
    """Prints the table."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "collection"
        run_self("--collection", str(folder))
        print("      pairs  seconds  us/pair  us/pair read  peak MB above idle  peak MB read  bytes/pair")
        for size in sizes:
            row = json.loads(run_self("--collection", str(folder), "--pairs", str(size)))
            rows.append(row)
            line = "{pairs:11,} {seconds:8.2f} {us_per_pair:8.2f} {us_per_pair_read:13.2f} {peak_mb:19.0f} {peak_mb_read:13.0f} {bytes_per_pair:11.1f}"
            print(line.format(**row), flush=True)
    if results is not None:
        results.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def run_self(*arguments: str) -> str:
    """This file's output in another process."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent.parent)!r}); import benchmarks.scoring_scale as b; b.main()"]
    return subprocess.run([*command, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def prepare(folder: Path) -> None:
    """Writes the collection: 262,144 documents of about 300 characters."""
    from retriever.collection import write_collection
    from retriever.types import Document

    words = np.array([f"word{number}" for number in range(5_000)])
    generator = np.random.default_rng(1)

    def documents() -> Iterator[Document]:
        for number in range(DOCUMENTS):
            yield Document(f"doc{number}", " ".join(generator.choice(words, 36).tolist()), title=f"title {number}")

    write_collection(folder, documents())


def measure(folder: Path, n_pairs: int) -> dict[str, float]:
    """Scores that many pairs into a new store and reads them back."""
    import torch  # noqa: F401  the idle interpreter has it

    from retriever.collection import Collection
    from retriever.scores.store import ScoreStore
    from retriever.types import Document, Query, ScoredPairs, TeacherIdentity

    class StandIn:
        identity = TeacherIdentity("stand-in", "stand_in", "", "logit")
        shard_pairs = 10_000

        def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
            lengths = np.fromiter((len(query.text) + len(document.text) for query, document in pairs), dtype=np.int32, count=len(pairs))
            return ScoredPairs(lengths.astype(np.float32), lengths, np.zeros(len(pairs), dtype=np.bool_))

    idle = peak_mb()
    collection = Collection(folder)
    queries = {f"q{number}": Query(f"q{number}", f"the text of query number {number}") for number in range(n_pairs // DEPTH)}
    candidates = make_candidates(list(queries))
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:  # what the first call of a process costs is no cost of a pair
        ScoreStore.open(Path(name), collection).score(StandIn(), make_candidates(["q0"]), queries)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        store = ScoreStore.open(Path(name), collection)
        begin = time.perf_counter()
        store.score(StandIn(), candidates, queries)
        seconds = time.perf_counter() - begin
        peak = peak_mb() - idle
        begin = time.perf_counter()
        run = store.read(StandIn.identity, candidates, queries).run
        read_seconds = time.perf_counter() - begin
        size = sum(path.stat().st_size for path in Path(name).rglob("*.parquet"))
        if run.n_pairs != n_pairs:
            raise SystemExit(f"{run.n_pairs} of {n_pairs} pairs came back")
    return {
        "pairs": n_pairs,
        "seconds": seconds,
        "us_per_pair": seconds / n_pairs * 1e6,
        "us_per_pair_read": read_seconds / n_pairs * 1e6,
        "peak_mb": peak,
        "peak_mb_read": peak_mb() - idle,
        "bytes_per_pair": size / n_pairs,
    }


def make_candidates(query_ids: Sequence[str]) -> Run:
    """100 documents for each query, spread over the collection; the run's vocabulary is what it uses."""
    from retriever.runs import Run, strings

    generator = np.random.default_rng(2)
    first = generator.integers(0, DOCUMENTS, len(query_ids), dtype=np.int32)[:, None]
    step = generator.integers(0, DOCUMENTS // 2, len(query_ids), dtype=np.int32)[:, None] * 2 + 1  # odd: no document twice
    rows: NDArray[np.int32] = ((first.astype(np.int64) + step * np.arange(DEPTH, dtype=np.int64)) % DOCUMENTS).astype(np.int32).ravel()
    used = np.zeros(DOCUMENTS, dtype=np.bool_)
    used[rows] = True
    codes = (np.cumsum(used, dtype=np.int32) - 1)[rows]
    vocabulary = strings(f"doc{row}" for row in np.flatnonzero(used))
    offsets = np.arange(len(query_ids) + 1, dtype=np.int64) * DEPTH
    scores = np.tile(-np.arange(DEPTH, dtype=np.float32), len(query_ids))
    return Run("candidates", tuple(query_ids), offsets, codes.astype(np.int32), vocabulary, scores)


def peak_mb() -> float:
    """The most memory that this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    main()
