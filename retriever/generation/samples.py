"""What a generator wrote, as it came: shards of a few documents, each whole or absent, continued where a stop left them.

    <experiment>/generated/<fingerprint>/samples.json     who wrote them
    <experiment>/generated/<fingerprint>/000000.parquet   the answers for the first documents of the plan

They lie outside the step: other rules of the critic, or more queries, ask for no answer a second time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retriever.collection import Collection
from retriever.files import explain_full_disk, write_atomic, write_json
from retriever.generation.generators import Generator
from retriever.tasks import Engine, here
from retriever.types import Usage

SHARD_DOCUMENTS = 32
"""Documents of a shard: what a stop costs at most."""

SCHEMA = pa.schema([("doc_id", pa.string()), ("sample", pa.int32()), ("raw", pa.string())])
Answers = dict[tuple[str, int], str]
"""(document id, sample number) -> what the generator wrote."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which samples there shall be.

    Attributes:
        collection: the documents.
        rows: int64 [n], the documents that get queries, in drawn order; no two with the same text.
        per_document: samples of each.
    """

    collection: Collection
    rows: NDArray[np.int64]
    per_document: int

    def __len__(self) -> int:
        return len(self.rows) * self.per_document

    def shards(self) -> dict[str, NDArray[np.int64]]:
        """File name and rows of each shard; a longer plan only adds to the end."""
        starts = range(0, len(self.rows), SHARD_DOCUMENTS)
        return {f"{number:06d}.parquet": self.rows[start : start + SHARD_DOCUMENTS] for number, start in enumerate(starts)}

    def items(self, rows: NDArray[np.int64]) -> list[tuple[str, int]]:
        """The (document id, sample number) of some of its rows."""
        return [(doc_id, sample) for doc_id in self.collection.ids_of(rows) for sample in range(self.per_document)]

    def missing(self, rows: NDArray[np.int64], found: Answers) -> int:
        """How many samples of some of its rows were not found."""
        return len(set(self.items(rows)) - set(found))


@dataclasses.dataclass(frozen=True)
class Written:
    """A shard's answers, and what a language model was asked for them."""

    answers: Answers
    usage: Usage


def write_shard(generator: Generator, plan: Plan, rows: NDArray[np.int64]) -> Written:
    """All of a shard, because draws depend on what is asked together."""
    before, documents = generator.usage, plan.collection.documents_by_row(rows)
    drawn = [generator.write(documents, sample) for sample in range(plan.per_document)]
    answers = {(document.doc_id, sample): raw for sample, raws in enumerate(drawn) for document, raw in zip(documents, raws, strict=True)}
    return Written(answers, generator.usage - before)


WritingEngine = Engine[Generator, Plan, NDArray[np.int64], Written]
"""Asks a generator for shards of a plan, given by their rows, and yields what it wrote in their order."""

write_here: WritingEngine = here(write_shard)
"""Asks the generator in this process, one shard after the other."""


def plan_samples(collection: Collection, queries: int, per_document: int, over_generation: float, seed: int) -> Plan:
    """The samples for so many wanted queries: documents drawn without replacement, those without words and repeated texts left out."""
    wanted = -int(-queries * over_generation // per_document)
    _, distinct = np.unique(collection.variants, return_index=True)
    rows: list[int] = []
    for row in np.random.default_rng(seed).permutation(np.sort(distinct)).tolist():
        if len(rows) == wanted:
            break
        if collection.documents_by_row([row])[0].full_text.strip():
            rows.append(row)
    return Plan(collection, np.array(rows, dtype=np.int64), per_document)


def pending(plan: Plan, folder: Path) -> int:
    """How many samples are still to be written."""
    return sum(plan.missing(rows, _read(folder / name)) for name, rows in plan.shards().items())


def write_samples(
    plan: Plan, generator: Generator, folder: Path, advance: Callable[[int], None], tell: Callable[[Usage], None], engine: WritingEngine = write_here
) -> Answers:
    """All answers of the plan: those in the folder, and the missing ones, written shard by shard.

    Args:
        plan: what there shall be.
        generator: asked for what is missing.
        folder: of this generator and collection.
        advance: called with the number of samples of each shard that is on the disk.
        tell: called after each with what a language model was asked for so far.
        engine: who asks the generator, here or on other machines; writing is done here, in the same order and bytes.
    """
    with explain_full_disk(folder):
        write_json(folder / "samples.json", {"collection": plan.collection.fingerprint, "generator": dataclasses.asdict(generator.identity)})
    shards = plan.shards()
    found = {name: _read(folder / name) for name in shards}
    missing = {name: count for name, rows in shards.items() if (count := plan.missing(rows, found[name]))}
    used = Usage()
    for (name, count), written in zip(missing.items(), engine(generator, plan, [shards[name] for name in missing]), strict=True):
        _write(folder / name, written.answers)
        found[name] = written.answers
        used += written.usage
        advance(count)
        tell(used)
    return {item: found[name][item] for name, rows in shards.items() for item in plan.items(rows)}


def _read(path: Path) -> Answers:
    """The answers of a shard; none where it is absent or damaged, and is written again then."""
    try:
        rows = pq.read_table(path, schema=SCHEMA).to_pylist()
    except (OSError, ValueError, pa.ArrowException):
        return {}
    return {(row["doc_id"], row["sample"]): row["raw"] for row in rows}


def _write(path: Path, answers: Mapping[tuple[str, int], str]) -> None:
    rows = [{"doc_id": doc_id, "sample": sample, "raw": raw} for (doc_id, sample), raw in answers.items()]
    write_atomic(path, lambda temporary: pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary))
