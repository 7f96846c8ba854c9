"""The same pairs scored in this process and by Ray on this machine: are the stores the same, and what does Ray cost?

    python benchmarks/ray_overhead.py --pairs 20000
    python benchmarks/ray_overhead.py --teacher MODEL --collection ../shared/data/scifact

Without --teacher a stand-in takes --milliseconds for each pair, so that what is left is Ray's: starting, sending, answering.
With it, a cross-encoder scores pairs of the collection; one worker with the threads of this process is compared with no Ray.
Prints seconds of both, the overhead, and whether the shards are byte for byte the same. Exit status 1 when they are not.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from record import MACHINE, keep

from retriever.collection import Collection, open_collection, write_collection
from retriever.config import ScoringSettings
from retriever.files import text_hash
from retriever.runs import Run
from retriever.scores.scoring import ScoringEngine, local_engine, scored_shard
from retriever.scores.store import ScoreStore
from retriever.settings.collection import CandidateSettings, CollectionSettings
from retriever.types import Document, Query, ScoredPairs, Teacher, TeacherIdentity
from retriever.workers.ray_engine import connect, ray_engine

DEPTH = 20


class StandIn:
    """A teacher that waits, and gives scores that follow from the texts."""

    identity = TeacherIdentity("stand-in", "stand_in", "", "logit")

    def __init__(self, milliseconds: float, shard_pairs: int) -> None:
        self.milliseconds, self.shard_pairs = milliseconds, shard_pairs

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
        """One number a pair."""
        time.sleep(self.milliseconds / 1000 * len(pairs))
        scores = [text_hash(f"{query.text}\n{document.full_text}") / 2**63 for query, document in pairs]
        return ScoredPairs.without_tokens(np.array(scores, dtype=np.float32))


def cross_encoder(model: str, collection: Path) -> Teacher:
    """The cross-encoder of a folder or name, with the prepared collection at hand."""
    from retriever.plugins import load_kind
    from retriever.resources import Resources
    from retriever.settings.teacher import CrossEncoderSettings

    def never(*_: object) -> Any:
        raise NotImplementedError("a cross-encoder needs neither BM25 nor vectors")

    resources = Resources(Collection(collection), CandidateSettings(), never, never)
    teacher: Teacher = load_kind("teachers", "cross_encoder", "teacher").load(CrossEncoderSettings(model=model), resources)
    return teacher


def shards(store: Path) -> dict[str, bytes]:
    """Name -> bytes."""
    return {path.name: path.read_bytes() for path in store.rglob("*.parquet")}


def seconds_of(store: Path, collection: Collection, teacher: Teacher, candidates: Run, engine: ScoringEngine) -> float:
    """Scores everything into a new store."""
    queries = {query.query_id: query for query in collection.all_queries()}
    start = time.perf_counter()
    ScoreStore.open(store, collection).score(teacher, candidates, queries, engine=engine)
    return time.perf_counter() - start


def made_up(folder: Path, n_pairs: int) -> Collection:
    """Documents of 100 words, and a query for every `DEPTH` pairs."""
    documents = (Document(f"d{number}", f"number {number} " + "words " * 100) for number in range(2_000))
    return write_collection(folder, documents, [Query(f"q{number}", f"query number {number}") for number in range(-(-n_pairs // DEPTH))])


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--milliseconds", type=float, default=1.0, help="of the stand-in for a pair")
    parser.add_argument("--shard-pairs", type=int, default=500, help="of the stand-in")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--teacher", help="a cross-encoder instead of the stand-in")
    parser.add_argument("--collection", type=Path, help="for the cross-encoder")
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent)  # the workers import the stand-in from this file
    import ray_overhead  # under this name the workers can import what is sent to them

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if arguments.teacher:
            collection = open_collection(CollectionSettings(path=arguments.collection), work / "collection")
            load: Callable[[], Teacher] = functools.partial(ray_overhead.cross_encoder, arguments.teacher, collection.folder)
        else:
            load = functools.partial(ray_overhead.StandIn, arguments.milliseconds, arguments.shard_pairs)
            collection = made_up(work / "collection", arguments.pairs)
        return compare(work, collection, load, arguments)


def compare(work: Path, collection: Collection, load: Callable[[], Teacher], arguments: argparse.Namespace) -> int:
    """Both engines on the same pairs; 0 when their stores are the same."""
    query_ids = [query.query_id for query in collection.all_queries()][: max(arguments.pairs // DEPTH, 1)]
    generator, doc_ids = np.random.default_rng(1), collection.doc_ids
    drawn = np.concatenate([generator.permutation(len(collection))[:DEPTH] for _ in query_ids])
    candidates = Run.from_arrays("random", query_ids, [DEPTH] * len(query_ids), doc_ids[drawn].tolist(), generator.random(len(drawn)))
    few = candidates.select(query_ids[:1])
    teacher = load()
    seconds_of(work / "few", collection, teacher, few, local_engine)  # what the first call of a process costs is no part of the comparison
    local = seconds_of(work / "local", collection, teacher, candidates, local_engine)
    settings = ScoringSettings(engine="ray", workers=arguments.workers)
    begin = time.perf_counter()
    connect(settings)
    start = time.perf_counter() - begin
    with ray_engine(settings, load, scored_shard, f'teacher "{teacher.identity.name}"') as engine:
        first = seconds_of(work / "first", collection, teacher, few, engine)  # the worker starts and loads the model
        by_ray = seconds_of(work / "ray", collection, teacher, candidates, engine)
    same = shards(work / "local") == shards(work / "ray")
    overhead = by_ray * arguments.workers / local - 1
    print(f"pairs                              {candidates.n_pairs:,} in {len(shards(work / 'local'))} shards")
    print(f"in this process                    {local:.2f} s")
    print(f"Ray starts                         {start:.2f} s, once")
    print(f"its workers start, one list        {first:.2f} s, once")
    print(f"by Ray, {arguments.workers} workers                  {by_ray:.2f} s")
    print(f"overhead of each worker            {overhead:+.1%}")
    print(f"shards                             {'identical' if same else 'DIFFERENT'}")
    numbers = {"pairs": candidates.n_pairs, "workers": arguments.workers, "local_seconds": local, "ray_start_seconds": start, "workers_start_seconds": first}
    key = f"{'cross-encoder' if arguments.teacher else f'stand-in, {arguments.milliseconds:g} ms a pair'}, {arguments.workers} workers"
    keep("ray_overhead", {key: {**numbers, "ray_seconds": by_ray, "overhead": overhead, "identical": same, "machine": MACHINE}})
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
