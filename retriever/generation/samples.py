"""What a generator wrote, as it came: shards of a few documents, each whole or absent, continued where a stop left them.

    <experiment>/generated/<fingerprint>/samples.json     who wrote them
    <experiment>/generated/<fingerprint>/000000.parquet   the answers for the first documents of the plan

They lie outside the step: other rules of the critic, or more queries, ask for no answer a second time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retriever.collection import Collection
from retriever.files import explain_full_disk, write_atomic, write_json
from retriever.generation.generators import Generator
from retriever.types import Document

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

    def shards(self) -> Iterator[tuple[str, list[Document]]]:
        """File name and documents of each shard; a longer plan only adds to the end."""
        for number, start in enumerate(range(0, len(self.rows), SHARD_DOCUMENTS)):
            yield f"{number:06d}.parquet", self.collection.documents_by_row(self.rows[start : start + SHARD_DOCUMENTS])

    def items(self, documents: Sequence[Document]) -> list[tuple[str, int]]:
        """The (document id, sample number) of some of its documents."""
        return [(document.doc_id, sample) for document in documents for sample in range(self.per_document)]


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
    return sum(len(set(plan.items(documents)) - set(_read(folder / name))) for name, documents in plan.shards())


def write_samples(plan: Plan, generator: Generator, folder: Path, advance: Callable[[int], None], tell: Callable[[str], None]) -> Answers:
    """All answers of the plan: those in the folder, and the missing ones, written shard by shard.

    Args:
        plan: what there shall be.
        generator: asked for what is missing.
        folder: of this generator and collection.
        advance: called with the number of samples of each shard that is on the disk.
        tell: called with a note on what was asked for so far.
    """
    with explain_full_disk(folder):
        write_json(folder / "samples.json", {"collection": plan.collection.fingerprint, "generator": dataclasses.asdict(generator.identity)})
    answers: Answers = {}
    for name, documents in plan.shards():
        found = _read(folder / name)
        items = plan.items(documents)
        if missing := set(items) - set(found):
            found = _ask(generator, documents, plan.per_document)  # all of the shard, because draws depend on what is asked together
            _write(folder / name, found)
            advance(len(missing))
            if generator.usage.requests:
                tell(str(generator.usage))
        answers |= {item: found[item] for item in items}
    return answers


def _ask(generator: Generator, documents: Sequence[Document], per_document: int) -> Answers:
    return {
        (document.doc_id, sample): raw for sample in range(per_document) for document, raw in zip(documents, generator.write(documents, sample), strict=True)
    }


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
