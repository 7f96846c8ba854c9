"""A served index that changes under load and is killed: no failed request, nothing deleted that is still found, nothing acknowledged that is lost.

    python benchmarks/serving_changes.py                        # 60 seconds of changes and 50 kills: about 10 minutes
    python benchmarks/serving_changes.py --seconds 10 --kills 5 --workers 2

First, eight connections search without a pause while one writer adds ten documents by HTTP and deletes them again, another program adds and
deletes with `retriever.index.changes`, and now and then the index is compacted. After each acknowledged deletion a search for the very text
of each deleted document must not find it, nor may any later one. Then a writer adds one document after the other and the server is killed
(SIGKILL) at a random instant; when it runs again, each document that it had acknowledged must be there, and the index must be sound.

The texts are drawn with a fixed seed and the student is a static one (see index_changes.py). Prints the figures and the bars, and adds to
benchmarks/results/serving_changes.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from index_changes import SEED, built, document
from load_driver import Answers, bodies, closed_loop
from record import MACHINE, keep
from server_process import serving

from retriever.client import Client, ServiceError
from retriever.errors import LockedError
from retriever.index.changes import add, compact, delete
from retriever.index.soundness import verify
from retriever.progress import silence_libraries
from retriever.search import open_index
from retriever.settings.index import INDEX_KINDS
from retriever.types import Document

TOGETHER = 10
"""Documents of a change."""


def main() -> None:
    """Measures both, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=5_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--no-results", action="store_true", help="print only, keep nothing")
    arguments = parser.parse_args()
    silence_libraries()
    with tempfile.TemporaryDirectory() as name:
        index = built(Path(name), range(arguments.documents), INDEX_KINDS["flat"](kind="flat"))
        found: dict[str, Any] = {"documents": arguments.documents, "workers": arguments.workers, "seed": SEED, "machine": MACHINE}
        found["changes"] = changed(index, arguments)
        found["kills"] = killed(index, arguments)
    if not arguments.no_results:
        keep("serving_changes", {f"{arguments.documents:,} documents, {arguments.workers} workers": found})
    show(found)


def changed(index: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Searches and changes side by side."""
    queries = [document(number, edition=1).text for number in range(500)]
    with written_to(index, arguments.workers) as (url, _):
        writer, other = _Writer(url, arguments.seconds), _Elsewhere(index, arguments.seconds)
        answers: Answers = asyncio.run(_searched(url, queries, arguments.seconds, (writer, other)))
        late = [doc_id for doc_id in writer.deleted if doc_id in found_by(Client(url), doc_id)]
    return {
        "searches": len(answers.latencies),
        "failed": len(answers.failed),
        "searches_per_second": answers.per_second,
        "changes_by_http": writer.changes,
        "changes_elsewhere": other.changes,
        "failed_changes": writer.failed,
        "deleted_and_found": writer.stale + len(late),
        "unsound": bool(verify(index)),
    }


async def _searched(url: str, queries: list[str], seconds: float, others: tuple[threading.Thread, ...]) -> Answers:
    for thread in others:
        thread.start()
    answers = await closed_loop(url, "/v1/search", bodies(queries, k=10), 8, seconds)
    for thread in others:
        await asyncio.to_thread(thread.join)
    return answers


class _Writer(threading.Thread):
    """Adds and deletes by HTTP, and searches for what it deleted."""

    def __init__(self, url: str, seconds: float) -> None:
        super().__init__()
        self.client, self.until = Client(url), time.monotonic() + seconds
        self.changes = self.failed = self.stale = 0
        self.deleted: list[str] = []

    def run(self) -> None:
        """Until the time is over."""
        for number in itertools.count():
            if time.monotonic() > self.until:
                return
            ids = [f"http-{number * TOGETHER + place}" for place in range(TOGETHER)]
            try:
                self.client.add([Document(doc_id, text_of(doc_id)) for doc_id in ids])
                self.client.delete(ids)
            except ServiceError as error:
                print(error, file=sys.stderr)
                self.failed += 1
                continue
            self.changes += 2
            self.deleted += ids
            self.stale += sum(doc_id in found_by(self.client, doc_id) for doc_id in ids)


class _Elsewhere(threading.Thread):
    """Another program that changes the same index on the disk."""

    def __init__(self, index: Path, seconds: float) -> None:
        super().__init__()
        self.index, self.until = index, time.monotonic() + seconds
        self.changes = 0

    def run(self) -> None:
        """Until the time is over."""
        for number in itertools.count():
            if time.monotonic() > self.until:
                return
            doc_id = f"file-{number}"
            self._change(add, [("a document", Document(doc_id, text_of(doc_id)))])
            self._change(delete, [doc_id])
            if number % 10 == 9:
                self._change(compact)
            time.sleep(1.0)

    def _change(self, change: Callable[..., object], *what: object) -> None:
        while True:
            try:
                change(self.index, *what)
            except LockedError:  # the server is changing it: a program that does not wait for its turn is told so
                time.sleep(0.05)
                continue
            self.changes += 1
            return


def found_by(client: Client, doc_id: str) -> list[str]:
    """Ids that a search for the text of a document finds, which would be the first of them."""
    return [result.id for result in client.search(text_of(doc_id), k=10).results]


def text_of(doc_id: str) -> str:
    """The words of a document that is added: others than those of the ones that were there."""
    return document(int(doc_id.rpartition("-")[2]), edition=2).text


def killed(index: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Documents that were acknowledged before a kill, and are not there after it."""
    chance, written, lost, unsound = random.Random(SEED), list[str](), 0, 0
    for kill in range(arguments.kills):
        with written_to(index, arguments.workers) as (url, process):
            timer = threading.Timer(chance.uniform(0.1, 3.0), os.killpg, (process.pid, signal.SIGKILL))
            timer.start()
            written += written_until_the_end(url, kill)
            timer.join()
        snapshot = open_index(index).snapshot
        lost += int((snapshot.rows_of(written) < 0).sum())
        unsound += bool(verify(index))
        print(f"kill {kill + 1}: {len(written):,} documents acknowledged, {lost} lost", file=sys.stderr)
    return {"kills": arguments.kills, "acknowledged": len(written), "lost": lost, "unsound": unsound}


def written_until_the_end(url: str, kill: int) -> list[str]:
    """Ids of the documents that the server acknowledged, one by one, before it died."""
    client, done = Client(url, tries=1), list[str]()
    with contextlib.suppress(ServiceError):
        for number in itertools.count():
            doc_id = f"kill-{kill}-{number}"
            client.add([Document(doc_id, text_of(doc_id))])
            done.append(doc_id)
    return done


def written_to(index: Path, workers: int) -> contextlib.AbstractContextManager[tuple[str, subprocess.Popen[str]]]:
    """A server of an index whose documents may be changed."""
    return serving(f"notes={index}", "--port", "0", "--write", "--workers", str(workers))


def show(found: dict[str, Any]) -> None:
    """The figures and the bars."""
    changes, kills = found["changes"], found["kills"]
    print(json.dumps(found, indent=2))
    bars = {
        "no failed search or change": changes["failed"] == changes["failed_changes"] == 0,
        "nothing found that was deleted": changes["deleted_and_found"] == 0,
        "nothing acknowledged lost by a kill": kills["lost"] == 0,
        "sound": not changes["unsound"] and kills["unsound"] == 0,
    }
    print("\n".join(f"{'holds ' if holds else 'MISSED'}  {bar}" for bar, holds in bars.items()))


if __name__ == "__main__":
    main()
