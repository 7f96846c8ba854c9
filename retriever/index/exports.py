"""Exports for other engines: impacts that Anserini and Pyserini index with Lucene, and a folder that Pyserini searches with FAISS."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from retriever.encodings import Encoding
from retriever.errors import ConfigError, SearchIndexError
from retriever.files import explain_full_disk, make_folder, recover_folder, replace_folder, write_json, write_text
from retriever.indexing.flat import file_header
from retriever.ragged import Ragged
from retriever.remote.engine import Facts, check_encodings
from retriever.types import Document

MANIFEST = "export.json"
COLLECTION = "collection"
"""The folder of impacts to index; what it was made of stands beside it, for Anserini would read every JSON file inside as documents."""

FILE_DOCUMENTS = 100_000
"""In a file of impacts: Anserini gives each of its threads one file at a time."""

SCALE = 100.0
"""Impacts a unit of weight, as published SPLADE indexes have it."""

_LONGEST_TERM = 255
"""In UTF-16 units: Lucene's whitespace tokenizer cuts longer ones."""

Block = tuple[Sequence[Document], Encoding]
"""Some documents, and their encodings in the same order."""


def export_impacts(folder: Path, blocks: Iterable[Block], facts: Facts, vocabulary: Sequence[str], scale: float = SCALE) -> dict[str, Any]:
    """Writes a collection of impacts, and returns what stands in its manifest.

    It is indexed by: io.anserini.index.IndexCollection -collection JsonVectorCollection -generator DefaultLuceneDocumentGenerator -impact
    -pretokenized -input FOLDER/collection -index INDEX. A weight becomes the whole number nearest to weight times scale; those that become 0 are
    left out, so a score of such an index is the student's times the scales of documents and queries, but for the rounding.

    Args:
        folder: made, or replaced where it holds another export.
        blocks: all N documents in the order of their rows.
        facts: whose they are.
        vocabulary: the V terms of the student, as texts.
        scale: impacts a unit of weight.

    Raises:
        ConfigError: the student is not sparse, or the vocabulary is another's.
        SearchIndexError: the encodings are another's, or the folder holds something else.
    """
    terms = _terms_for(facts, vocabulary, folder)
    lost = 0
    with _new_folder(folder) as new:
        make_folder(new / COLLECTION)
        stream: TextIO | None = None
        try:
            for row, (document, weights) in enumerate(_impacts(folder, blocks, facts, scale)):
                if row % FILE_DOCUMENTS == 0:
                    if stream:
                        stream.close()
                    stream = (new / COLLECTION / f"{row // FILE_DOCUMENTS:05d}.jsonl").open("w", encoding="utf-8")
                vector = {terms[dimension]: weight for dimension, weight in weights if weight > 0}
                lost += len(weights) - len(vector)
                if stream:
                    stream.write(json.dumps({"id": document.doc_id, "contents": document.full_text, "vector": vector}, ensure_ascii=False) + "\n")
        finally:
            if stream:
                stream.close()
        manifest = {"kind": "impacts", "scale": scale, "weights_rounded_to_0": lost, **vars(facts), "terms_renamed": _renamed(vocabulary, terms)}
        write_json(new / MANIFEST, manifest)
    return manifest


def write_topics(path: Path, query_ids: Sequence[str], queries: Ragged, facts: Facts, vocabulary: Sequence[str], scale: float = SCALE) -> int:
    """Writes queries for an index of impacts: a line each with the id, a tab and every term as often as its impact says.

    They are searched by: io.anserini.search.SearchCollection -topicReader TsvString -impact -pretokenized -topics PATH -index INDEX.

    Returns:
        How many were written: a query without a term has no line, for Anserini fails on an empty one.
    """
    terms = _terms_for(facts, vocabulary, path)
    check_encodings(str(path), queries, facts, "a query")
    lines = []
    for query_id, weights in zip(query_ids, _weights(queries, scale), strict=True):
        words = " ".join(term for dimension, weight in weights for term in [terms[dimension]] * weight)
        if words:
            lines.append(f"{query_id}\t{words}\n")
    write_text(path, "".join(lines))
    return len(lines)


def export_faiss(folder: Path, blocks: Iterable[Block], facts: Facts) -> dict[str, Any]:
    """Writes a folder with an exact inner-product index, `index`, and the documents' ids, `docid`, and returns what stands in its manifest.

    It is opened by pyserini.search.faiss.FaissSearcher(FOLDER, encoder), and `index` by stock FAISS.

    Args:
        folder: made, or replaced where it holds another export.
        blocks: all N documents in the order of their rows, with vectors.
        facts: whose they are.

    Raises:
        ConfigError: the student gives no vectors.
        SearchIndexError: the encodings are another's, or the folder holds something else.
    """
    if facts.student_kind not in ("dense", "static"):
        raise ConfigError(f"{folder}: FAISS in Pyserini keeps one vector of each document, and the student is {facts.student_kind}. Export a dense one")
    with _new_folder(folder) as new, (new / "index").open("wb") as vectors, (new / "docid").open("w", encoding="utf-8") as ids:
        vectors.write(file_header(facts.documents, facts.dimensions))
        for documents, encodings in _checked(folder, blocks, facts):
            vectors.write(np.ascontiguousarray(encodings, dtype="<f4").data)
            ids.writelines(f"{document.doc_id}\n" for document in documents)
        manifest = {"kind": "faiss", **vars(facts)}
        write_json(new / MANIFEST, manifest)
    return manifest


def terms_of(vocabulary: Sequence[str]) -> list[str]:
    """The vocabulary with "#number" for whatever Lucene would not read back as one term: empty, with white space, too long, or there before."""
    taken, seen, terms = set(vocabulary), set[str](), []
    for number, token in enumerate(vocabulary):
        units = len(token.encode("utf-16-le", "surrogatepass")) // 2
        whole = token.split() == [token] and units <= _LONGEST_TERM and token not in seen and not any("\ud800" <= letter <= "\udfff" for letter in token)
        term = token if whole else f"#{number}"
        while not whole and term in taken:
            term = f"#{term}"
        seen.add(token)
        terms.append(term)
    return terms


def _terms_for(facts: Facts, vocabulary: Sequence[str], where: Path) -> list[str]:
    if facts.student_kind != "sparse":
        raise ConfigError(f"{where}: impacts are of a sparse student, and this one is {facts.student_kind}. Export to FAISS, or train a sparse one")
    if len(vocabulary) != facts.dimensions:
        raise ConfigError(f"{where}: the vocabulary has {len(vocabulary):,} terms, and the encodings {facts.dimensions:,} dimensions. Give the student's own")
    return terms_of(vocabulary)


def _renamed(vocabulary: Sequence[str], terms: Sequence[str]) -> dict[str, str]:
    return {term: token for token, term in zip(vocabulary, terms, strict=True) if token != term}


def _impacts(where: Path, blocks: Iterable[Block], facts: Facts, scale: float) -> Iterator[tuple[Document, list[tuple[int, int]]]]:
    """Each document with its dimensions and impacts."""
    for documents, encodings in _checked(where, blocks, facts):
        if isinstance(encodings, Ragged):
            yield from zip(documents, _weights(encodings, scale), strict=True)


def _weights(encodings: Ragged, scale: float) -> Iterator[list[tuple[int, int]]]:
    impacts = np.rint(encodings.columns["values"].astype(np.float64) * scale).astype(np.int64)
    for start, end in zip(encodings.offsets[:-1], encodings.offsets[1:], strict=True):
        yield list(zip(encodings.columns["dimensions"][start:end].tolist(), impacts[start:end].tolist(), strict=True))


def _checked(where: Path, blocks: Iterable[Block], facts: Facts) -> Iterator[Block]:
    """The blocks, when they are of N documents and of the student's kind."""
    rows = 0
    for documents, encodings in blocks:
        check_encodings(str(where), encodings, facts, "a document")
        rows += len(encodings)
        if len(documents) != len(encodings) or rows > facts.documents:
            raise SearchIndexError(f"{where}: documents and encodings do not fit ({len(documents)} and {len(encodings)} in a block, {facts.documents} in all)")
        yield documents, encodings
    if rows != facts.documents:
        raise SearchIndexError(f"{where}: {rows:,} documents were given, and there should be {facts.documents:,}")


@contextlib.contextmanager
def _new_folder(final: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of an earlier export when the block ends well, and is gone when it does not."""
    recover_folder(final)
    if final.exists() and not (final / MANIFEST).is_file() and (not final.is_dir() or any(final.iterdir())):
        raise SearchIndexError(f"{final}: is in the way: it holds no {MANIFEST}. Move it away, or name another folder")
    new = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        with explain_full_disk(final):
            shutil.rmtree(new, ignore_errors=True)
            make_folder(new)
            yield new
            replace_folder(new, final)
    finally:
        shutil.rmtree(new, ignore_errors=True)
