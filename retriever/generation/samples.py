"""Which queries a generator writes: for documents drawn from the collection, in shards under <experiment>/generated/<fingerprint>."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.collection import Collection
from retriever.types import Document

SHARD_DOCUMENTS = 32
"""Documents of a shard: what a stop costs at most."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which samples there shall be.

    Attributes:
        collection: the documents.
        rows: int64 [n], the documents that get queries, in drawn order; no two with the same text.
        per_document: samples of each.
        column: the name of the ids, in the files.
    """

    collection: Collection
    rows: NDArray[np.int64]
    per_document: int
    column: str = "doc_id"

    def __len__(self) -> int:
        return len(self.rows) * self.per_document

    @property
    def about(self) -> Mapping[str, Any]:
        """What the documents are."""
        return {"collection": self.collection.fingerprint}

    def shards(self) -> dict[str, NDArray[np.int64]]:
        """File name and rows of each shard; a longer plan only adds to the end."""
        starts = range(0, len(self.rows), SHARD_DOCUMENTS)
        return {f"{number:06d}.parquet": self.rows[start : start + SHARD_DOCUMENTS] for number, start in enumerate(starts)}

    def items(self, task: NDArray[np.int64]) -> list[tuple[str, int]]:
        """The (document id, sample number) of some of its rows."""
        return [(doc_id, sample) for doc_id in self.collection.ids_of(task) for sample in range(self.per_document)]

    def asked(self, task: NDArray[np.int64]) -> Iterator[tuple[int, dict[str, Document]]]:
        """Every sample number with the documents of some of its rows."""
        documents = {document.doc_id: document for document in self.collection.documents_by_row(task)}
        yield from ((sample, documents) for sample in range(self.per_document))


def plan_samples(
    collection: Collection, queries: int, per_document: int, over_generation: float, seed: int, written: Callable[[Document], int] | None = None
) -> Plan:
    """The samples for so many wanted queries: documents drawn without replacement, those without words and repeated texts left out.

    Args:
        collection: the documents.
        queries: wanted.
        per_document: samples of each.
        over_generation: samples for each wanted query.
        seed: of the draw.
        written: how many samples a document has words for; `per_document` when left out.
    """
    _, distinct = np.unique(collection.variants, return_index=True)
    rows: list[int] = []
    samples = 0
    for row in np.random.default_rng(seed).permutation(np.sort(distinct)).tolist():
        if samples >= queries * over_generation:
            break
        document = collection.documents_by_row([row])[0]
        if document.full_text.strip():
            rows.append(row)
            samples += min(per_document, written(document)) if written else per_document
    return Plan(collection, np.array(rows, dtype=np.int64), per_document)
