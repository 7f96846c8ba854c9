"""Kills a scoring process at random instants, runs it to the end, and compares with a run that nobody stopped.

    python benchmarks/resume_scoring.py --kills 20

Prints how often it was killed, whether the shards are byte for byte those of the uninterrupted run, and whether any pair
that was on the disk was ever scored again. Exit status 1 when not.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from record import keep

from retriever.collection import Collection, write_collection
from retriever.files import text_hash
from retriever.runs import Run
from retriever.scores.store import ScoreStore
from retriever.types import Document, Query, ScoredPairs, TeacherIdentity

DEPTH = 20
SHARD_PAIRS = 50
KILLS = 20


class LoggingTeacher:
    """A stand-in that appends every pair it is asked for to a file before it answers; slow enough to be hit."""

    identity = TeacherIdentity("stand-in", "stand_in", "", "logit")
    shard_pairs = SHARD_PAIRS

    def __init__(self, log: Path) -> None:
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
        """Scores that follow from the texts."""
        os.write(self.log, "".join(f"{query.query_id} {document.doc_id}\n" for query, document in pairs).encode())
        time.sleep(0.01)
        scores = [text_hash(f"{query.text}\n{document.full_text}") / 2**63 for query, document in pairs]
        return ScoredPairs.without_tokens(np.array(scores, dtype=np.float32))


def worker(folder: Path, store: Path, log: Path) -> None:
    """What is killed: one scoring command."""
    collection = Collection(folder)
    queries = collection.queries("test")
    generator = np.random.default_rng(1)
    doc_ids = np.concatenate([generator.permutation(len(collection))[:DEPTH] for _ in queries])
    candidates = Run.from_arrays("random", list(queries), [DEPTH] * len(queries), [f"d{row}" for row in doc_ids], generator.random(len(doc_ids)))
    ScoreStore.open(store, collection).score(LoggingTeacher(log), candidates, queries)


def start(folder: Path, store: Path, log: Path) -> subprocess.Popen[bytes]:
    """Starts the worker."""
    root = Path(__file__).parent.parent
    return subprocess.Popen([sys.executable, __file__, "--worker", folder, store, log], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})


def wait_until_it_scores(process: subprocess.Popen[bytes], log: Path, size: int) -> None:
    """Returns when the log has grown beyond a size."""
    while process.poll() is None and (not log.exists() or log.stat().st_size == size):
        time.sleep(0.001)


def stored_pairs(store: Path) -> list[str]:
    """The pairs of the whole shards."""
    tables = [pq.read_table(path, columns=["query_id", "doc_id"]).to_pylist() for path in store.rglob("*.parquet")]
    return [f"{row['query_id']} {row['doc_id']}" for table in tables for row in table]


def shards(store: Path) -> dict[str, bytes]:
    """Name -> bytes."""
    return {path.name: path.read_bytes() for path in store.rglob("*.parquet")}


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worker", nargs=3, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker)
        return 0
    with tempfile.TemporaryDirectory() as name:
        return measure(Path(name), arguments.kills, arguments.queries, random.Random(arguments.seed))


def measure(work: Path, kills: int, n_queries: int, chance: random.Random) -> int:
    """Runs once without and once with kills; 0 when both ended the same way."""
    documents = (Document(f"d{number}", f"document number {number}") for number in range(500))
    queries = {f"q{number}": Query(f"q{number}", f"query number {number}") for number in range(n_queries)}
    write_collection(work / "collection", documents, queries, {"test": {query_id: {"d0": 1} for query_id in queries}})
    begin = time.perf_counter()
    process = start(work / "collection", work / "whole", work / "whole.log")
    wait_until_it_scores(process, work / "whole.log", 0)
    begin_scoring = time.perf_counter()
    process.wait()
    seconds = time.perf_counter() - begin_scoring

    log, store = work / "killed.log", work / "killed"
    stored_at: list[tuple[int, set[str]]] = []
    while len(stored_at) < kills:
        process = start(work / "collection", store, log)
        if chance.random() < 0.2:  # while it opens the store
            time.sleep(chance.uniform(0, begin_scoring - begin))
        else:
            wait_until_it_scores(process, log, stored_at[-1][0] if stored_at else 0)
            time.sleep(chance.uniform(0, seconds / kills))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        stored_at.append((log.stat().st_size if log.exists() else 0, set(stored_pairs(store))))
    start(work / "collection", store, log).wait()

    text = log.read_bytes()
    scored_again = sum(len(stored & set(text[size:].decode().split("\n"))) for size, stored in stored_at)
    pairs, calls, killed = stored_pairs(store), text.count(b"\n"), len(stored_at)
    identical = shards(store) == shards(work / "whole")
    leftovers = [path.name for path in store.rglob("*.tmp")]
    print(f"pairs                                   {n_queries * DEPTH:,} in shards of {SHARD_PAIRS}")
    print(f"killed                                  {killed} times, after {', '.join(f'{len(stored):,}' for _, stored in stored_at)} stored pairs")
    print(f"scored and lost in flight               {calls - len(pairs):,} pairs, {(calls - len(pairs)) / max(killed, 1) / SHARD_PAIRS:.2f} shards a kill")
    print(f"stored pairs that were scored again     {scored_again}")
    print(f"pairs stored twice                      {len(pairs) - len(set(pairs))}")
    print(f"bytes as in the uninterrupted run       {'identical' if identical else 'DIFFERENT'} ({len(shards(store))} shards)")
    print(f"temporary files left                    {len(leftovers)}")
    if kills >= KILLS:  # fewer are a test, and say too little to be kept
        keep(
            "resume_scoring",
            {
                "pairs": n_queries * DEPTH,
                "kills": killed,
                "shards_lost_per_kill": round((calls - len(pairs)) / max(killed, 1) / SHARD_PAIRS, 2),
                "stored_pairs_scored_again": scored_again,
                "pairs_stored_twice": len(pairs) - len(set(pairs)),
                "bytes_identical": identical,
                "temporary_files_left": len(leftovers),
            },
        )
    good = identical and not scored_again and not leftovers and len(pairs) == len(set(pairs)) == n_queries * DEPTH and killed == kills
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
