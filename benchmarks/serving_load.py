"""A served index under load, beside the same encoder in process and beside sentence-transformers behind plain FastAPI.

    python benchmarks/serving_load.py                               # 100,000 documents, 64 connections: about 35 minutes on 2 quiet cores
    python benchmarks/serving_load.py --backend openvino --no-memory
    python benchmarks/serving_load.py --no-memory --infinity ENVIRONMENT/bin/infinity_emb
    python benchmarks/serving_load.py --documents 2000 --seconds 5 --no-memory --no-results

The documents are sentences of scifact and of MTRAG's passages, the queries are scifact's and what MTRAG's users said, the student is
all-MiniLM-L6-v2 as it comes. The server remembers no query, so that each is encoded. Measured in this order: queries a second in this
process, on full batches of 32, encoding and search and the documents; the server, as many connections as asked asking without a pause,
and then at half of what it answered; its memory; the plain server, which encodes each request by itself. infinity-emb searches nothing and
needs an environment of its own (pip install "infinity-emb[server,torch]"); where it is named, both are asked for embeddings of the queries, one a
request. The load comes from this process, over loopback, and takes its part of the same cores.

Prints a table and the bars, and adds to benchmarks/results/serving_load.json, where a part that is left out stays as an earlier call measured it.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import itertools
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from load_driver import bodies, closed_loop, open_loop
from record import MACHINE, keep, kept
from server_process import infinity, serving
from tables import markdown

from retriever.collection import write_collection
from retriever.encodings import encode_collection
from retriever.index.changes import publish
from retriever.models.names import find_model
from retriever.plugins import load_kind
from retriever.progress import Terminal, silence_libraries
from retriever.search import SearchIndex, open_index
from retriever.settings.index import INDEX_KINDS
from retriever.settings.student import DenseSettings
from retriever.types import Document, Query

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
BATCH = 32
K = 10


def main() -> None:
    """Measures, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    parser.add_argument("--minutes", type=float, default=10.0, help="for which memory is watched under load")
    parser.add_argument("--backend", choices=["torch", "onnx", "openvino"], default="torch")
    parser.add_argument("--infinity", type=Path, help="the program infinity_emb, to ask it for embeddings beside us", metavar="PROGRAM")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-serving"))
    parser.add_argument("--prepare", action="store_true", help="make the index and stop; a stop loses little")
    parser.add_argument("--no-memory", action="store_true", help="leave out the minutes under load")
    parser.add_argument("--no-results", action="store_true", help="print only, keep nothing")
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)  # the process of the plain server
    arguments = parser.parse_args()
    silence_libraries()
    folder = arguments.work / f"sentences-{arguments.documents}"
    if arguments.plain:
        serve_plainly(folder)
        return
    prepare(folder, arguments)
    if arguments.prepare:
        return
    found = measured(folder, arguments)
    if not arguments.no_results:
        name = f"{arguments.documents:,} documents, {arguments.backend}"
        keep("serving_load", {name: {**kept("serving_load").get(name, {}), **found}})
    show(found)


def sentences(data: Path) -> Iterator[str]:
    """Of scifact's and MTRAG's documents, each once."""
    seen: set[str] = set()
    for name in ("scifact", "mtrag-cloud", "mtrag-fiqa"):
        plain = data / name / "corpus.jsonl"
        with plain.open(encoding="utf-8") if plain.exists() else gzip.open(f"{plain}.gz", "rt", encoding="utf-8") as stream:
            for line in stream:
                for one in re.split(r"(?<=[.!?])\s+", json.loads(line)["text"]):
                    words = one.split()[:40]
                    if len(words) > 3 and (text := " ".join(words)) not in seen:
                        seen.add(text)
                        yield text


def asked(data: Path) -> list[str]:
    """Queries of scifact, and the last turns of MTRAG's users."""
    lines = [json.loads(line)["text"] for line in (data / "scifact" / "queries.jsonl").open(encoding="utf-8")]
    for name in ("mtrag-cloud", "mtrag-fiqa"):
        lines += [json.loads(line)["utterance"] for line in (data / name / "conversations.jsonl").open(encoding="utf-8")]
    return list(dict.fromkeys(lines))


def prepare(folder: Path, arguments: argparse.Namespace) -> None:
    """The index, where it is not there yet; documents' vectors that are there are kept."""
    if (folder / "index" / "index.json").exists():
        return
    student = load_kind("students", "dense", "student").load(DenseSettings(model=MODEL))
    student.save(folder / "student")
    student = load_kind("students", "dense", "student").load_folder(folder / "student")
    texts = (text for _, text in zip(range(arguments.documents), sentences(arguments.data), strict=False))
    collection = write_collection(folder / "collection", (Document(f"s{number}", text) for number, text in enumerate(texts)))
    if len(collection) < arguments.documents:
        sys.exit(f"{arguments.data}: {len(collection):,} sentences, and {arguments.documents:,} documents are asked for")
    with Terminal().bar("encoding the documents", len(collection)) as advance:
        encoded = encode_collection(student, collection, folder / "encodings", advance)
    np.save(folder / "vectors.npy", encoded.rows(np.arange(len(collection))))
    publish(folder / "index", INDEX_KINDS["auto"](kind="auto"), "dense", folder / "student", student, encoded, collection)


def measured(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All parts, the server's beside the others'."""
    queries = asked(arguments.data)
    index = open_index(folder / "index")
    here = in_process(index, queries, min(arguments.seconds, 20.0))
    work = bodies(queries, k=K)
    found: dict[str, Any] = {"documents": len(index), "queries": len(queries), "backend": arguments.backend, "in_process_per_second": here}
    found |= {"connections": arguments.connections, "seconds": arguments.seconds, "machine": MACHINE}
    del index
    with serving(f"sentences={folder / 'index'}", "--port", "0", "--limit", "cache_bytes=0", "--backend", arguments.backend) as (url, process):
        asyncio.run(closed_loop(url, "/v1/search", work, arguments.connections, 3.0))  # the first batches grow buffers
        full = asyncio.run(closed_loop(url, "/v1/search", work, arguments.connections, arguments.seconds))
        found["served"] = full.told()
        found["half"] = asyncio.run(open_loop(url, "/v1/search", work, full.per_second / 2, arguments.seconds)).told()
        if not arguments.no_memory:
            found["memory"] = asyncio.run(memory(url, process.pid, work, arguments))
        if arguments.infinity:
            found["embeddings"] = embeddings(url, "/v1/embeddings", "sentences", queries, arguments)
    if arguments.infinity:
        with infinity(arguments.infinity, find_model(MODEL).folder) as url:  # as it comes: older libraries do not read what this one saves
            found["infinity"] = embeddings(url, "/embeddings", "model", queries, arguments)
    with serving("--documents", str(arguments.documents), "--work", str(arguments.work), program=(__file__, "--plain")) as (url, _):
        found["plain"] = asyncio.run(closed_loop(url, "/search", work, arguments.connections, arguments.seconds)).told()
    found["in_process_per_second_after"] = in_process(open_index(folder / "index"), queries, min(arguments.seconds, 20.0))
    return found


def embeddings(url: str, path: str, model: str, queries: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """A server that is asked for the embedding of one query in each request, by OpenAI's interface."""
    work = itertools.cycle([json.dumps({"model": model, "input": query}).encode() for query in queries])
    asyncio.run(closed_loop(url, path, work, arguments.connections, 3.0))
    return asyncio.run(closed_loop(url, path, work, arguments.connections, arguments.seconds)).told()


def in_process(index: SearchIndex, queries: list[str], seconds: float) -> float:
    """Queries a second on full batches: encoding, search, and the documents of the best 10."""
    snapshot, place, done = index.snapshot, 0, 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        batch = [Query("q", queries[(place + number) % len(queries)]) for number in range(BATCH)]
        rows, _ = snapshot.search(snapshot.encoder.encode_queries(batch), K)
        for own in rows:
            snapshot.documents_by_row(own)
        place, done = place + BATCH, done + BATCH
    return done / (time.perf_counter() - start)


def serve_plainly(folder: Path) -> None:
    """sentence-transformers behind plain FastAPI, as one writes it in ten lines: each request is encoded by itself, in FastAPI's threads."""
    import faiss
    import uvicorn
    from fastapi import Body, FastAPI
    from sentence_transformers import SentenceTransformer

    from retriever.serving.server import listening

    model = SentenceTransformer(str(folder / "student"), local_files_only=True)
    snapshot = open_index(folder / "index").snapshot
    vectors = np.load(folder / "vectors.npy")
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    texts = [document.text for document in snapshot.documents_by_row(np.arange(len(snapshot)))]
    app = FastAPI()

    def search(query: str = Body(), k: int = Body()) -> dict[str, Any]:
        vector = model.encode([query], normalize_embeddings=True, show_progress_bar=False)
        scores, rows = flat.search(vector, k)
        return {"results": [{"id": f"s{row}", "score": float(score), "text": texts[row]} for row, score in zip(rows[0], scores[0], strict=True)]}

    app.post("/search")(search)
    with listening("127.0.0.1", 0) as own:
        print(f"listening on http://127.0.0.1:{own.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run([own])


async def memory(url: str, process: int, work: Iterator[bytes], arguments: argparse.Namespace) -> dict[str, Any]:
    """Bytes in memory of the server under load: over its second minute, and over its last; a tenth of the time each for short watches."""
    seconds, samples = arguments.minutes * 60, list[tuple[float, int]]()
    start = time.perf_counter()

    async def watch() -> None:
        while time.perf_counter() - start < seconds:
            samples.append((time.perf_counter() - start, resident(process)))
            await asyncio.sleep(1.0)

    answers, _ = await asyncio.gather(closed_loop(url, "/v1/search", work, arguments.connections, seconds), watch())
    part = min(60.0, seconds / 10)
    first, last = (np.mean([size for at, size in samples if low <= at < low + part]) for low in (part, seconds - part))
    return {"minutes": arguments.minutes, "first_bytes": float(first), "last_bytes": float(last), "failed": len(answers.failed)}


def resident(process: int) -> int:
    """Bytes of a process that no other one has: mapped files are not its own."""
    found = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines())
    return int(found["RssAnon"].split()[0]) * 1024


def show(found: dict[str, Any]) -> None:
    """A table and the bars."""
    here = (found["in_process_per_second"] + found["in_process_per_second_after"]) / 2
    served, half, plain = found["served"], found["half"], found["plain"]
    rows = [["the encoder and the index in process, batches of 32", f"{here:.0f}", "", "", ""]]
    told = [("retriever serve", served), ("  at half of that", half), ("sentence-transformers behind plain FastAPI", plain)]
    told += [(name, found[key]) for name, key in (("embeddings of retriever serve", "embeddings"), ("embeddings of infinity-emb", "infinity")) if key in found]
    for name, one in told:
        rows.append([name, f"{one['requests_per_second']:.0f}", f"{one['p50_ms']:.0f}", f"{one['p99_ms']:.0f}", str(one["failed"])])
    print(markdown([f"{found['documents']:,} documents, {found['connections']} connections", "queries/s", "p50 ms", "p99 ms", "failed"], rows))
    bars = {
        "at least 75 % of the encoder in process": (share := served["requests_per_second"] / here) >= 0.75,
        "p99 under 6 times p50": (spread := served["p99_ms"] / served["p50_ms"]) < 6,
        "no failure at half the load": half["failed"] == 0,
        "at least twice the plain server": (times := served["requests_per_second"] / plain["requests_per_second"]) >= 2,
    }
    print(f"\n{share:.0%} of the encoder in process, p99 {spread:.1f} times p50, {times:.1f} times the plain server")
    if "infinity" in found:
        print(f"{found['embeddings']['requests_per_second'] / found['infinity']['requests_per_second']:.2f} times the embeddings of infinity-emb")
    if memory_found := found.get("memory"):
        growth = memory_found["last_bytes"] / memory_found["first_bytes"] - 1
        bars["memory flat"] = growth < 0.02
        print(f"memory after {memory_found['minutes']:g} minutes of load: {growth:+.1%} of {memory_found['first_bytes'] / 2**20:,.0f} MiB")
    print("\n".join(f"{'holds ' if holds else 'MISSED'}  {bar}" for bar, holds in bars.items()))


if __name__ == "__main__":
    main()
