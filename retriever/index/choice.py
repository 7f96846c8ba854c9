"""Which index serves a collection best: what `index.kind = "auto"` becomes."""

from __future__ import annotations

import importlib.util
import math
import os

from retriever.settings.index import INDEX_KINDS, AutoSettings, IndexSettings, bytes_of

EXACT_NUMBERS = 4e7
"""Numbers of vectors (documents times dimensions) up to which comparing all of them is fast: 160 MB are read in some 20 ms on one core."""

EXACT_SPARSE = 200_000
"""Documents up to which an inverted index scores all that share a term in some 20 ms."""

EXACT_TOKENS = 20_000
"""Documents up to which MaxSim over every token is bearable for one query."""

RECALL_OF_2_BITS = 0.92
"""That residuals of 2 bits reach on scifact when every document is scored; 4 bits reach .98."""

NEIGHBOURS = 32
GRAPH_BYTES = 4 * (2 * NEIGHBOURS + 2) + 16
"""Of a graph for a document: edges, and where they begin."""

ROW_BYTES = 8
"""That a list keeps beside a document's code."""

BUILDING = 1 << 30
"""Bytes that are needed beside an index while it is built: a sample to train on, and a block of vectors."""

PQ_SHARE = 16


def choose(settings: AutoSettings, student_kind: str, documents: int, dimensions: int) -> tuple[IndexSettings, str]:
    """The settings of a kind that fits the collection and the memory, and why.

    Dense vectors are compared one by one while that is fast. More of them make a graph, which answers soonest, where it and the vectors
    fit into the memory; then one of vectors in a byte for each number, which the full vectors on disk score again; then lists of such
    codes, of which a search reads a few; then lists of the shortest codes.

    Args:
        settings: the memory allowed and the recall wanted.
        student_kind: decides which kinds are possible.
        documents: N.
        dimensions: D of a vector, of a token's vector, or the vocabulary's size.
    """
    memory = bytes_of(settings.memory) if settings.memory else machine_memory() // 2
    if student_kind == "sparse":
        kind, why = _sparse(documents)
        return _of(settings, kind), why
    if student_kind == "late_interaction":
        return _late_interaction(settings, documents)
    if documents * dimensions <= EXACT_NUMBERS:
        return _of(settings, "flat"), f"{documents:,} vectors of {dimensions:,} dimensions are few enough to compare them all, with nothing lost"
    return _dense(settings, documents, dimensions, memory)


def machine_memory() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _dense(settings: AutoSettings, documents: int, dimensions: int, memory: int) -> tuple[IndexSettings, str]:
    lists = 4 * math.sqrt(documents) * dimensions * 4
    codes = max(1, dimensions // PQ_SHARE)
    possible = (
        ("hnsw", "none", "a graph with whole vectors", documents * (4 * dimensions + GRAPH_BYTES)),
        ("hnsw", "int8", "a graph with a byte for each number", documents * (dimensions + GRAPH_BYTES)),
        ("ivf", "int8", "lists with a byte for each number", documents * (dimensions + ROW_BYTES) + lists),
        ("ivf", "pq", f"lists with codes of {codes} bytes", documents * (codes + ROW_BYTES) + lists),
    )
    needed = [int(size) + min(BUILDING, 4 * documents * dimensions) for *_, size in possible]
    fitting = [place for place, size in enumerate(needed) if size <= memory]
    place = fitting[0] if fitting else len(possible) - 1
    kind, quantisation, what, _ = possible[place]
    why = f"{what}, about {in_words(needed[place])} of memory to build and to search"
    if not fitting:
        return _of(settings, kind, quantisation), f"{why}: the smallest there is, though no more than {in_words(memory)} are allowed"
    larger = [f"{possible[other][2]} would take {in_words(needed[other])}" for other in range(place)]
    return _of(settings, kind, quantisation), "; ".join([f"{why}, fits into the {in_words(memory)} allowed", *larger])


def _late_interaction(settings: AutoSettings, documents: int) -> tuple[IndexSettings, str]:
    if documents <= EXACT_TOKENS:
        return _of(settings, "multivector"), f"{documents:,} documents are no more than the {EXACT_TOKENS:,} whose tokens are all compared"
    bits = 2 if settings.recall <= RECALL_OF_2_BITS else 4
    chosen = _of(settings, "token_clusters").model_copy(update={"bits": bits})
    return (
        chosen,
        f"{documents:,} documents are more than the {EXACT_TOKENS:,} whose tokens are all compared; {bits} bits a number for a recall of {settings.recall:g}",
    )


def _sparse(documents: int) -> tuple[str, str]:
    if documents <= EXACT_SPARSE:
        return "inverted", f"{documents:,} documents are no more than the {EXACT_SPARSE:,} that an exact search scores in time"
    if importlib.util.find_spec("seismic") is None:
        return "inverted", f'{documents:,} documents would be found sooner by the kind "seismic", which the extra [sparse] brings'
    return "seismic", f"{documents:,} documents are more than the {EXACT_SPARSE:,} that an exact search scores in time"


def _of(settings: AutoSettings, kind: str, quantisation: str | None = None) -> IndexSettings:
    """The settings of a kind with what `auto` was told; the rest is chosen on the collection."""
    of_kind = INDEX_KINDS[kind]
    told = {"recall": settings.recall} if "recall" in of_kind.model_fields else {}
    code = {"quantisation": quantisation} if quantisation else {}
    return of_kind.model_validate({"kind": kind, "batch_size": settings.batch_size, **told, **code})


def in_words(size: int) -> str:
    """Bytes as people say them: "3.2 GB"."""
    unit = min(3, max(1, int(math.log10(max(size, 1))) // 3))
    return f"{size / 1000**unit:.1f} {('', 'KB', 'MB', 'GB')[unit]}"
