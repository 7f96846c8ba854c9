"""What every kind of index under indexing/ is: encodings in, row numbers and scores out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import Encoding

Found = tuple[Sequence[NDArray[np.int64]], Sequence[NDArray[np.float32]]]
"""For each of B queries the rows of its best documents, best first, and their scores: as many as were wanted, or as there are."""


class VectorIndex(Protocol):
    """An opened index of the encodings of N documents, which have the rows 0 to N - 1.

    A module of this kind under indexing/ has the functions

    - `build(vectors: DocumentEncodings, folder: Path, settings: <its class in settings.index>) -> dict`: writes the files, in a stream, and
      returns what is worth telling of it (what was chosen and measured), as plain JSON;
    - `open_index(folder: Path) -> VectorIndex`: memory-mapped; raises SearchIndexError with one clear line where a file is missing, cut or
      damaged;
    - exact kinds: `of_vectors(vectors: DocumentEncodings) -> VectorIndex`, in memory, written nowhere.
    """

    @property
    def folder(self) -> Path:
        """Named in errors."""
        ...

    @property
    def dimensions(self) -> int:
        """D of a vector, the vocabulary's size for sparse entries."""
        ...

    def __len__(self) -> int:
        """N."""
        ...

    def search(self, queries: Encoding, k: int, allowed: NDArray[np.bool_] | None = None) -> Found:
        """The best documents of each query, best first; equal ones in the order of their rows where the kind is exact.

        Args:
            queries: of B queries.
            k: documents a query at most; there are fewer where fewer are allowed, or have a score above 0 in an index of sparse entries.
            allowed: [N], the documents that may be found; all when left out. Where few are, they are all compared: a kind that walks or
                probes must not return fewer than there are.

        Raises:
            SearchIndexError: the queries have another dimension, or are not finite.
        """
        ...

    def encodings(self, rows: NDArray[np.int64]) -> Any:
        """The encodings of documents as they were given (float16 where the kind keeps no more), or None where only an approximation is kept."""
        ...
