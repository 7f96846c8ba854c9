"""A searchable folder: index, documents and the student that encodes queries, with nothing else needed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retriever.candidates import index_run
from retriever.collection import Collection
from retriever.document_table import DocumentTable
from retriever.encodings import DocumentEncodings, Encoder
from retriever.errors import ConfigError, DataError, SearchIndexError
from retriever.files import sha256_file, write_json
from retriever.index_choice import choose
from retriever.index_settings import AutoSettings, IndexSettings
from retriever.plugins import load_kind
from retriever.runs import Run
from retriever.types import Document, Query

MANIFEST = "index.json"
LAYOUT = 1
FACTS = frozenset({"kind", "student_kind", "encoder", "documents", "bytes"})
"""What a manifest must say for the index to be opened."""


@dataclasses.dataclass(frozen=True)
class Hit:
    """One result: its place from 1, the student's score and the document."""

    rank: int
    score: float
    document: Document


@dataclasses.dataclass(frozen=True)
class SearchIndex:
    """An opened index folder.

    Attributes:
        folder: where it lies.
        encoder: the student.
        index: what an engine of retriever.indexing opened.
        documents: ids, titles and texts, memory-mapped.
    """

    folder: Path
    encoder: Encoder
    index: Any
    documents: DocumentTable

    @property
    def bytes(self) -> int:
        """What the engine's files take on disk; documents and student not counted."""
        return int(read_facts(self.folder)["bytes"])

    def hits(self, query: str | Query, k: int = 10) -> list[Hit]:
        """The best k documents of one query with their texts, best first."""
        asked = query if isinstance(query, Query) else Query("query", query)
        rows, scores = self.index.search(self.encoder.encode_queries([asked]), k)
        documents = self.documents.documents_by_row(rows[0])
        return [Hit(rank, float(score), document) for rank, (score, document) in enumerate(zip(scores[0], documents, strict=True), 1)]

    def run(self, queries: Mapping[str, Query], k: int = 1000, name: str | None = None) -> Run:
        """The best k documents of many queries, as a run."""
        return index_run(name or self.folder.name, self.encoder, self.index, self.documents, queries, k)


def write_index(
    folder: Path, settings: IndexSettings, student_kind: str, student_folder: Path, encoder: Encoder, vectors: DocumentEncodings, collection: Collection
) -> dict[str, Any]:
    """Fills a folder with a searchable index of the collection; returns what its manifest says.

    Raises:
        ConfigError: there is no such kind of index.
        SearchIndexError: the vectors were made by another encoder.
    """
    if vectors.encoder != encoder.identity:
        raise SearchIndexError(
            f"{vectors.folder}: these vectors were made by another student ({vectors.encoder}, not {encoder.identity}). Encode again with: retriever index"
        )
    if isinstance(settings, AutoSettings):
        settings, _ = choose(settings, student_kind, len(vectors), vectors.dimensions)
    kind = settings.kind
    load_kind("indexing", kind, "index.kind").build(vectors, folder, settings)
    _link(student_folder, folder / "student", ("*.md", "manifest.json"))
    _link(collection.folder, folder / "documents", ("queries*", "qrels*"))
    facts = {"layout": LAYOUT, "kind": kind, "student_kind": student_kind, "encoder": encoder.identity, "collection": collection.fingerprint}
    facts |= {"documents": len(collection), "dimensions": vectors.dimensions}
    files = sorted(path for path in folder.glob("*") if path.is_file() and path.name != "step.json")
    checksums = {path.name: sha256_file(path) for path in files}
    manifest = {**facts, "bytes": sum(path.stat().st_size for path in files), "sha256": checksums}
    write_json(folder / MANIFEST, manifest)
    return manifest


def open_index(path: Path) -> SearchIndex:
    """The index in a folder, or in the folder of the experiment that built it.

    Raises:
        SearchIndexError: there is none, it was written by another version, or it does not fit its student or documents.
    """
    folder = path / "index" if (path / "index" / MANIFEST).is_file() else path
    facts = read_facts(folder)
    try:
        student = load_kind("students", facts["student_kind"], str(folder)).load_folder(folder / "student")
    except ConfigError as error:
        raise SearchIndexError(f"{folder}: its student cannot be loaded ({error}). Build the index again with: retriever index FILE.toml") from error
    if student.identity != facts["encoder"]:
        raise SearchIndexError(
            f"{folder}: built with the student {facts['encoder']}, but the folder student holds {student.identity}. Build it again with: retriever index"
        )
    index = load_kind("indexing", facts["kind"], str(folder)).open_index(folder)
    try:
        documents = DocumentTable(folder / "documents")
    except DataError as error:
        raise SearchIndexError(f"{folder}: its documents are missing or damaged. Build the index again with: retriever index FILE.toml") from error
    if not len(index) == len(documents) == facts["documents"]:
        raise SearchIndexError(
            f"{folder}: {len(index)} vectors, {len(documents)} documents and {facts['documents']} in {MANIFEST} disagree. Build it again with: retriever index"
        )
    return SearchIndex(folder, student, index, documents)


def read_facts(folder: Path) -> dict[str, Any]:
    """What an index folder's manifest says.

    Raises:
        SearchIndexError: there is none, or it is of another version.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SearchIndexError(f"{folder}: no index here ({MANIFEST} is missing). Build one with: retriever index FILE.toml") from error
    except (OSError, ValueError) as error:
        raise SearchIndexError(f"{folder / MANIFEST}: damaged ({error}). Build the index again with: retriever index FILE.toml") from error
    if not isinstance(facts, dict):
        raise SearchIndexError(f"{folder / MANIFEST}: damaged (no JSON object). Build the index again with: retriever index FILE.toml")
    if facts.get("layout") != LAYOUT:
        raise SearchIndexError(
            f"{folder}: an index of layout {facts.get('layout')}; this version reads layout {LAYOUT}. Build it again with: retriever index FILE.toml"
        )
    if missing := sorted(FACTS - facts.keys()):
        raise SearchIndexError(f"{folder / MANIFEST}: damaged (no {', '.join(missing)}). Build the index again with: retriever index FILE.toml")
    return facts


def snippet(text: str, query: str, words: int = 40) -> str:
    """The stretch of a text in which most of the query's words stand."""
    split = text.split()
    wanted = {word.strip(".,;:()").lower() for word in query.split() if len(word) > 3}
    found = [word.strip(".,;:()").lower() in wanted for word in split]
    starts = range(max(1, len(split) - words + 1))
    best = max(starts, key=lambda start: (sum(found[start : start + words]), -start))
    return f"{'... ' if best else ''}{' '.join(split[best : best + words])}{' ...' if best + words < len(split) else ''}"


def _link(source: Path, target: Path, leave: Sequence[str]) -> None:
    """Copies a folder; files are hard links where the file system can, for they are never changed in place."""

    def link_or_copy(one: str, other: str) -> None:
        try:
            os.link(os.path.realpath(one), other)
        except OSError:
            shutil.copy2(one, other)

    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=link_or_copy, ignore=shutil.ignore_patterns(*leave))
