"""Which index serves a collection best: what `index.kind = "auto"` becomes."""

from __future__ import annotations

from retriever.index_settings import EXACT, INDEX_KINDS, AutoSettings, IndexSettings


def choose(settings: AutoSettings, student_kind: str, documents: int, dimensions: int) -> tuple[IndexSettings, str]:
    """The settings of a kind that fits the collection and the memory, and why.

    Args:
        settings: the memory allowed and the recall wanted.
        student_kind: decides which kinds are possible.
        documents: N.
        dimensions: D of a vector, of a token's vector, or the vocabulary's size.
    """
    kind = EXACT.get(student_kind, "flat")
    return INDEX_KINDS[kind](kind=kind, batch_size=settings.batch_size), f"{documents:,} documents of {dimensions:,} dimensions are searched exactly"
