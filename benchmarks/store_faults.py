"""What the store of scores does under faults: kill -9, a full disk, damaged shards, two writers, a clock that was set back.

    python benchmarks/store_faults.py --kills 20

Each fault meets a store of its own, and the same command is run again until it ends. Prints for each what was found, how many
pairs are lost, how many stand twice, how many were scored again though they were stored, and whether the shards are byte for
byte those of a run that nothing happened to. Exit status 1 when a pair is lost, stands twice or was scored again for nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from record import keep

from retriever.collection import Collection, write_collection
from retriever.errors import RetrieverError
from retriever.files import text_hash
from retriever.runs import Run
from retriever.scores.maintenance import compact_store, merge_stores, verify_store
from retriever.scores.scoring import part_of
from retriever.scores.store import ScoreStore
from retriever.types import Document, Query, ScoredPairs, TeacherIdentity

DEPTH = 20
SHARD_PAIRS = 50
MIB = 2**20


class StandIn:
    """A teacher that writes down every pair it is asked for before it answers."""

    identity = TeacherIdentity("stand-in", "stand_in", "", "logit")
    shard_pairs = SHARD_PAIRS

    def __init__(self, log: Path, seconds: float) -> None:
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.seconds = seconds

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
        """Scores that follow from the texts."""
        os.write(self.log, "".join(f"{query.query_id} {document.doc_id}\n" for query, document in pairs).encode())
        time.sleep(self.seconds)
        scores = [text_hash(f"{query.text}\n{document.full_text}") / 2**63 for query, document in pairs]
        return ScoredPairs.without_tokens(np.array(scores, dtype=np.float32))


class Bench:
    """The collection, the pairs, and a store that nothing happens to."""

    def __init__(self, work: Path, n_queries: int, chance: random.Random) -> None:
        self.work, self.chance, self.pairs = work, chance, n_queries * DEPTH
        documents = (Document(f"d{number}", f"document number {number}") for number in range(500))
        queries = {f"q{number}": Query(f"q{number}", f"query number {number}") for number in range(n_queries)}
        write_collection(work / "collection", documents, queries, {"test": {query_id: {"d0": 1} for query_id in queries}})
        started = time.perf_counter()
        self.score("whole")
        self.seconds = time.perf_counter() - started
        self.whole = shards(work / "whole")

    def start(self, name: str, *options: str) -> subprocess.Popen[str]:
        """A command that works on the store of that name."""
        command = [sys.executable, __file__, "--worker", str(self.work), name, *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def score(self, name: str, *options: str) -> str:
        """Scores until the end; gives what was said on standard error."""
        process = self.start(name, *options)
        _, said = process.communicate()
        if process.returncode not in (0, 2):
            raise SystemExit(said)
        return said.strip()

    def outcome(self, name: str, found: str, already: set[str], scored_before: int) -> dict[str, object]:
        """What the store of that name holds in the end, against the one that nothing happened to."""
        pairs = stored_pairs(self.work / name)
        again = already & set((self.work / f"{name}.log").read_text().split("\n")[scored_before:])
        return {
            "found": found,
            "lost": self.pairs - len(set(pairs)),
            "twice": len(pairs) - len(set(pairs)),
            "scored_again": len(again),
            "same_bytes": shards(self.work / name) == self.whole,
            "verified": not verify_store(self.work / name),
        }


def shards(store: Path) -> dict[str, bytes]:
    """Name -> bytes."""
    return {path.name: path.read_bytes() for path in store.rglob("*.parquet")}


def stored_pairs(store: Path) -> list[str]:
    """The pairs of the shards, as the log names them."""
    tables = [pq.read_table(path, columns=["query_id", "doc_id"]).to_pylist() for path in store.rglob("*.parquet")]
    return [f"{row['query_id']} {row['doc_id']}" for table in tables for row in table]


def copied(bench: Bench, name: str) -> Path:
    """A copy of the whole store under another name, its log too."""
    shutil.copy(bench.work / "whole.log", bench.work / f"{name}.log")
    return Path(shutil.copytree(bench.work / "whole", bench.work / name))


# The faults


def kill_while_scoring(bench: Bench, kills: int) -> dict[str, object]:
    """Kill -9 at random instants of the process, its start included."""
    name, done = "killed", 0
    again: set[str] = set()
    for _ in range(kills):
        stored = set(stored_pairs(bench.work / name))
        lines = _lines(bench, name)
        process = bench.start(name)
        time.sleep(bench.chance.uniform(0, bench.seconds))
        done += process.poll() is None
        process.kill()
        process.communicate()
        again |= stored & set(_log(bench, name)[lines:])
    stored, lines = set(stored_pairs(bench.work / name)), _lines(bench, name)
    bench.score(name)
    result = bench.outcome(name, f"killed {done} times before its end", stored, lines)
    return {**result, "scored_again": len(again) + int(str(result["scored_again"]))}


def kill_while_compacting(bench: Bench, kills: int) -> dict[str, object]:
    """Kill -9 while shards are joined, then once to the end."""
    name, store = "compacted", copied(bench, "compacted")
    before, done = sorted(stored_pairs(store)), 0
    for _ in range(kills):
        process = bench.start(name, "--compact")
        process.stdout and process.stdout.readline()  # it is about to begin
        time.sleep(bench.chance.uniform(0, 0.1))
        done += process.poll() is None
        process.kill()
        process.communicate()
        if set(stored_pairs(store)) != set(before):
            break
    bench.score(name, "--compact")
    pairs = stored_pairs(store)
    result = bench.outcome(name, f"killed {done} times before its end; {len(bench.whole)} shards are {len(shards(store))} now", set(before), bench.pairs)
    return {**result, "same_bytes": sorted(pairs) == before}


def fill_the_disk(bench: Bench, _: int) -> dict[str, object]:
    """A file system of a few shards, which is then made larger."""
    command = ["unshare", "-rm", sys.executable, __file__, "--worker", str(bench.work), "full", "--full-disk"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return {"found": f"not tried here: a small file system needs unshare ({getattr(error, 'stderr', error)!s:.100})"}
    result: dict[str, object] = json.loads(done.stdout)
    return result


def damage(bench: Bench, name: str, change: Callable[[bytes], bytes]) -> dict[str, object]:
    """Some shards changed on the disk."""
    store = copied(bench, name)
    chosen = bench.chance.sample(sorted(store.rglob("*.parquet")), 3)
    gone = {pair for path in chosen for pair in stored_pairs_of(path)}
    for path in chosen:
        path.write_bytes(change(path.read_bytes()))
    named = {problem.path for problem in verify_store(store)}
    lines = _lines(bench, name)
    bench.score(name)
    found = f"{len(named & set(chosen))} of {len(chosen)} named, {len(named - set(chosen))} good ones named"
    return bench.outcome(name, found, set(stored_pairs(bench.work / "whole")) - gone, lines)


def stored_pairs_of(path: Path) -> list[str]:
    """The pairs of one shard."""
    return [f"{row['query_id']} {row['doc_id']}" for row in pq.read_table(path, columns=["query_id", "doc_id"]).to_pylist()]


def truncate(bench: Bench, _: int) -> dict[str, object]:
    """Shards cut at a random byte."""
    return damage(bench, "truncated", lambda data: data[: bench.chance.randrange(len(data))])


def flip(bench: Bench, _: int) -> dict[str, object]:
    """One bit of a random byte flipped."""

    def change(data: bytes) -> bytes:
        place = bench.chance.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1 << bench.chance.randrange(8)]) + data[place + 1 :]

    return damage(bench, "flipped", change)


def two_writers(bench: Bench, _: int) -> dict[str, object]:
    """Two processes with the same teacher and store."""
    name = "two_writers"
    processes = [bench.start(name) for _ in range(2)]
    said = [process.communicate()[1] for process in processes]
    refused = [text for process, text in zip(processes, said, strict=True) if process.returncode == 2 and "already scoring" in text]
    ended = sum(process.returncode == 0 for process in processes)
    if ended + len(refused) != 2:
        raise SystemExit("\n".join(said))
    return bench.outcome(name, f"{len(refused)} was refused, by the number of the other's process", set(), 0)


def parts_at_once(bench: Bench, _: int) -> dict[str, object]:
    """Three parts at the same time, then merged and compacted."""
    parts = [f"part-{number}" for number in (1, 2, 3)]
    processes = [bench.start(part, "--part", str(number), "3") for number, part in enumerate(parts, 1)]
    for process in processes:
        process.communicate()
    if any(process.returncode for process in processes):
        raise SystemExit("a part was not scored")
    merge_stores([bench.work / part for part in parts], bench.work / "merged")
    merge_stores([bench.work / part for part in parts], bench.work / "merged")
    compact_store(bench.work / "merged")
    whole = copied(bench, "whole_compacted")
    compact_store(whole)
    (bench.work / "merged.log").write_text("")
    result = bench.outcome("merged", "merged twice, then compacted; bytes against the whole one compacted", set(), 0)
    return {**result, "same_bytes": sorted(shards(bench.work / "merged").values()) == sorted(shards(whole).values())}


def clock_set_back(bench: Bench, _: int) -> dict[str, object]:
    """A run that is stopped in the middle; then all its files are of 1980 or of 2100."""
    name = "clock"
    process = bench.start(name)
    while process.poll() is None and len(shards(bench.work / name)) < len(bench.whole) // 2:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    for number, path in enumerate(sorted((bench.work / name).rglob("*"))):
        moment = (315_532_800, 4_102_444_800)[number % 2]
        os.utime(path, (moment, moment))
    stored, lines = set(stored_pairs(bench.work / name)), _lines(bench, name)
    bench.score(name)
    return bench.outcome(name, f"continued after {len(stored):,} stored pairs", stored, lines)


FAULTS: dict[str, Callable[[Bench, int], dict[str, object]]] = {
    "kill -9 while scoring": kill_while_scoring,
    "kill -9 while compacting": kill_while_compacting,
    "full disk": fill_the_disk,
    "truncated shards": truncate,
    "a flipped bit": flip,
    "two writers at once": two_writers,
    "three parts at once": parts_at_once,
    "clock set back": clock_set_back,
}


def _log(bench: Bench, name: str) -> list[str]:
    path = bench.work / f"{name}.log"
    return path.read_text().splitlines() if path.exists() else []


def _lines(bench: Bench, name: str) -> int:
    return len(_log(bench, name))


# The processes that faults happen to


def worker(arguments: argparse.Namespace) -> int:
    """One command on a store; a user's mistake is one line and status 2."""
    work, name = Path(arguments.worker[0]), arguments.worker[1]
    try:
        if arguments.full_disk:
            return full_disk_worker(work, name)
        if arguments.compact:
            print("ready", flush=True)
            compact_store(work / name)
        else:
            score_store(work, work / name, work / f"{name}.log", arguments.part)
    except RetrieverError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def score_store(work: Path, store: Path, log: Path, part: Sequence[int] | None = None, seconds: float = 0.01) -> None:
    """Scores all pairs, or a part of them."""
    collection = Collection(work / "collection")
    queries = collection.queries("test")
    generator = np.random.default_rng(1)
    doc_ids = np.concatenate([generator.permutation(len(collection))[:DEPTH] for _ in queries])
    candidates = Run.from_arrays("random", list(queries), [DEPTH] * len(queries), [f"d{row}" for row in doc_ids], generator.random(len(doc_ids)))
    if part:
        candidates = part_of(candidates, queries, *part)
    ScoreStore.open(store, collection).score(StandIn(log, seconds), candidates, queries)


def full_disk_worker(work: Path, name: str) -> int:
    """In a mount namespace of its own: scores into a small file system until it is full, makes it larger and goes on."""
    disk = work / f"{name}-disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(disk)], check=True)
    full, log = [], work / f"{name}.log"
    stored: set[str] = set()
    for size in ("160k", f"{64 * MIB}"):
        try:
            score_store(work, disk / "store", log, seconds=0)
        except RetrieverError as error:
            if "the disk is full" not in str(error) or list(disk.rglob("*.tmp")) or verify_store(disk / "store"):
                raise
            full.append(len(stored_pairs(disk / "store")))
        stored, lines = set(stored_pairs(disk / "store")), len(log.read_text().splitlines())
        subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
    score_store(work, disk / "store", log, seconds=0)
    pairs, whole = stored_pairs(disk / "store"), shards(work / "whole")
    result = {
        "found": f"{len(full)} times one line that names the disk, after {', '.join(f'{count:,}' for count in full)} stored pairs",
        "lost": len(set(stored_pairs(work / "whole"))) - len(set(pairs)),
        "twice": len(pairs) - len(set(pairs)),
        "scored_again": len(stored & set(log.read_text().splitlines()[lines:])),
        "same_bytes": shards(disk / "store") == whole,
        "verified": not verify_store(disk / "store"),
    }
    print(json.dumps(result))
    return 0


def main() -> int:
    """Prints the table; 1 when something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-results", action="store_true", help="do not write results/store_faults.json")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--part", nargs=2, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--compact", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--full-disk", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(arguments)
    with tempfile.TemporaryDirectory() as name:
        results = measure(Bench(Path(name), arguments.queries, random.Random(arguments.seed)), arguments.kills)
    if not arguments.no_results:
        keep("store_faults", {"pairs": arguments.queries * DEPTH, "shard_pairs": SHARD_PAIRS, "faults": results})
    tried = [result for result in results.values() if "lost" in result]
    return 0 if all(not (result["lost"] or result["twice"] or result["scored_again"]) and result["verified"] for result in tried) else 1


def measure(bench: Bench, kills: int) -> dict[str, dict[str, object]]:
    """A line for each fault."""
    print(f"{bench.pairs:,} pairs in shards of {SHARD_PAIRS}")
    print(f"{'fault':<26}{'lost':>6}{'twice':>7}{'scored again':>14}{'same bytes':>12}  what was found")
    results = {}
    for name, fault in FAULTS.items():
        result = results[name] = fault(bench, kills)
        columns = [result.get(key, "-") for key in ("lost", "twice", "scored_again", "same_bytes")]
        print(f"{name:<26}{columns[0]!s:>6}{columns[1]!s:>7}{columns[2]!s:>14}{columns[3]!s:>12}  {result['found']}", flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
