"""An index under kill -9, and what changes do to its recall.

    python benchmarks/index_changes.py                                  # 5,000 documents, 50 kills, 20 rounds: about 10 minutes
    python benchmarks/index_changes.py --documents 50000 --kind hnsw --kills 10

A process adds a tenth of the documents and deletes a tenth, in turns, and is killed at a random instant; then a fresh process opens the
index. What it finds must be all that the last acknowledged change left, or what the change after it would have left, and nothing in
between; `verify` must find nothing wrong. Then 20 rounds of both, and recall@10 beside an index built at once of the same documents,
against comparing all vectors.

The texts are words drawn with a fixed seed, the student a table of the words of all-MiniLM-L6-v2, which encodes thousands of them a second.
Prints a table and writes benchmarks/results/index_changes.json.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import MACHINE, keep
from tables import markdown

from retriever.collection import write_collection
from retriever.encodings import encode_collection
from retriever.index.changes import add, delete, publish
from retriever.index.soundness import verify
from retriever.models.names import find_model
from retriever.plugins import load_kind
from retriever.progress import silence_libraries
from retriever.search import SearchIndex, open_index
from retriever.settings.index import INDEX_KINDS, IndexSettings
from retriever.settings.student import StaticSettings
from retriever.types import Document, Query

SEED = 1
WORDS = 20
K = 10


def main() -> None:
    """Measures both, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=5000)
    parser.add_argument("--kind", choices=[kind for kind in INDEX_KINDS if kind in ("auto", "flat", "ivf", "hnsw")], default="ivf")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--change", type=Path, help=argparse.SUPPRESS)  # the process that is killed
    parser.add_argument("--from", dest="first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--no-results", action="store_true", help="print only, keep nothing")
    arguments = parser.parse_args()
    silence_libraries()
    if arguments.change:
        change_for_ever(arguments.change, arguments.documents, arguments.first)
        return
    settings = INDEX_KINDS[arguments.kind](kind=arguments.kind)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found: dict[str, Any] = {"documents": arguments.documents, "kind": arguments.kind, "seed": SEED, "machine": MACHINE}
        found["kills"] = killed(built(folder / "killed", range(arguments.documents), settings), arguments)
        found["rounds"] = recalls(folder, settings, arguments)
    if not arguments.no_results:
        keep("index_changes", {f"{arguments.kind}, {arguments.documents}": found})
    show(found)


def document(number: int, edition: int = 0) -> Document:
    """The same words for the same number and edition."""
    rng = np.random.default_rng([SEED, number, edition])
    return Document(f"d{number}", " ".join(vocabulary()[place] for place in rng.zipf(1.3, WORDS) % len(vocabulary())))


def vocabulary() -> list[str]:
    """Some of the words of the model's vocabulary."""
    if not _WORDS:
        lines = (find_model("sentence-transformers/all-MiniLM-L6-v2").folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        _WORDS.extend(np.random.default_rng(SEED).permutation([word for word in lines if word.isalpha() and len(word) > 2]).tolist())
    return _WORDS


_WORDS: list[str] = []


def built(folder: Path, numbers: range, settings: IndexSettings, edition: int = 0) -> Path:
    """An index of these documents by a static student."""
    student = load_kind("students", "static", "student").load(StaticSettings(model="sentence-transformers/all-MiniLM-L6-v2", dimensions=128))
    student.save(folder / "student")
    student = load_kind("students", "static", "student").load_folder(folder / "student")
    collection = write_collection(folder / "collection", (document(number, edition) for number in numbers))
    publish(folder / "index", settings, "static", folder / "student", student, encode_collection(student, collection, folder / "encodings"), collection)
    return folder / "index"


def change(folder: Path, documents: int, number: int) -> None:
    """The change of this number: even ones add a tenth, odd ones delete it again."""
    share = documents // 10
    first = documents + (number // 2) * share
    if number % 2 == 0:
        add(folder, ((f"document {one}", document(one)) for one in range(first, first + share)))
    else:
        delete(folder, [f"d{one}" for one in range(first, first + share)])


def expected(documents: int, changes: int) -> set[str]:
    """The ids that can be found after so many changes."""
    share = documents // 10
    added = documents + (changes // 2) * share
    return {f"d{number}" for number in range(documents)} | {f"d{number}" for number in range(added, added + share * (changes % 2))}


def change_for_ever(folder: Path, documents: int, first: int) -> None:
    """One change after the other, each acknowledged on standard output when it is done."""
    print("ready", flush=True)
    number = first
    while True:
        change(folder, documents, number)
        print(number, flush=True)
        number += 1


def killed(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What is found after each kill, at an instant in the time that three changes or so take."""
    chance, between, unsound, inside = random.Random(SEED), 0, 0, 0
    start = time.perf_counter()
    change(folder, arguments.documents, 0)
    done, seconds = 1, time.perf_counter() - start
    program = [sys.executable, __file__, "--documents", str(arguments.documents), "--change", str(folder)]
    for number in range(arguments.kills):
        with subprocess.Popen([*program, "--from", str(done)], stdout=subprocess.PIPE, text=True) as process:
            if process.stdout is None:
                raise OSError("no pipe")
            process.stdout.readline()
            time.sleep(chance.uniform(0.0, 3 * seconds))
            process.send_signal(signal.SIGKILL)
            acknowledged = [int(line) for line in process.stdout.read().split() if line]
        done = acknowledged[-1] + 1 if acknowledged else done
        inside += bool(list(folder.glob(".adding-*")) or list(folder.glob(".incoming")))
        found = ids_in(open_index(folder))
        if found == expected(arguments.documents, done + 1):
            done += 1  # it was there, and not yet acknowledged
        elif found != expected(arguments.documents, done):
            between += 1
        unsound += bool(verify(folder))
        print(f"kill {number + 1}: after {done} changes, {len(found):,} documents", file=sys.stderr)
    return {"kills": arguments.kills, "in_the_middle_of_a_change": inside, "changes": done, "neither_before_nor_after": between, "unsound": unsound}


def ids_in(index: SearchIndex) -> set[str]:
    """All ids that can be found."""
    snapshot = index.snapshot
    return {doc_id for segment in snapshot.segments for doc_id in segment.documents.ids_of(segment.live)}


def recalls(folder: Path, settings: IndexSettings, arguments: argparse.Namespace) -> dict[str, Any]:
    """Recall@10 after the rounds and of a fresh index of the same documents, with the queries' number."""
    documents, share = arguments.documents, arguments.documents // 10
    changed = built(folder / "changed", range(documents), settings)
    for number in range(arguments.rounds):
        add(changed, ((f"document {one}", document(one)) for one in range(documents + number * share, documents + (number + 1) * share)))
        delete(changed, [f"d{one}" for one in range(number * share, (number + 1) * share)])
        print(f"round {number + 1}: {len(open_index(changed)):,} documents", file=sys.stderr)
    left = range(arguments.rounds * share, documents + arguments.rounds * share)
    fresh = built(folder / "fresh", left, settings)
    exact = built(folder / "exact", left, INDEX_KINDS["flat"](kind="flat"))
    queries = {f"q{number}": Query(f"q{number}", document(number, edition=1).text) for number in range(arguments.queries)}
    truth = best_of(open_index(exact), queries)
    names = {"changed": changed, "fresh": fresh}
    found = {name: np.mean([len(best & truth[query_id]) / K for query_id, best in best_of(open_index(one), queries).items()]) for name, one in names.items()}
    return {"rounds": arguments.rounds, "queries": len(queries), **{name: float(value) for name, value in found.items()}}


def best_of(index: SearchIndex, queries: dict[str, Query]) -> dict[str, set[str]]:
    """The ids of the best 10 of each query."""
    run = index.run(queries, K)
    return {query_id: {doc_id for doc_id, _ in run[query_id]} for query_id in run}


def show(found: dict[str, Any]) -> None:
    """A table and the bars."""
    kills, rounds = found["kills"], found["rounds"]
    rows = [
        ["kills", f"{kills['kills']}, {kills['in_the_middle_of_a_change']} of them while something was half-written"],
        ["neither before nor after a change", str(kills["neither_before_nor_after"])],
        ["unsound", str(kills["unsound"])],
        [f"recall@10 after {rounds['rounds']} rounds", f"{rounds['changed']:.3f}"],
        ["recall@10 of a fresh index", f"{rounds['fresh']:.3f}"],
    ]
    print(markdown([f"{found['kind']}, {found['documents']:,} documents", "found"], rows))
    bars = {
        "always one version, whole": kills["neither_before_nor_after"] == kills["unsound"] == 0,
        "recall after the rounds within .01 of a fresh index": rounds["changed"] >= rounds["fresh"] - 0.01,
    }
    for bar, met in bars.items():
        print(f"{'met   ' if met else 'MISSED'}  {bar}")


if __name__ == "__main__":
    main()
