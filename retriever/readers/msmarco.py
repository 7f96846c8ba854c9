"""MS MARCO's files (Nguyen et al. 2016, arXiv:1611.09268): tab-separated documents and queries, TREC qrels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from retriever.errors import DataError
from retriever.files import text_hash
from retriever.readers import Judgement, Source, _rewrites, _text
from retriever.types import Document, Query

LAYOUT = "collection.tsv (id, text) or docs.tsv or msmarco-docs.tsv (id, url, title, body), queries.SPLIT.tsv, qrels.SPLIT.tsv, each also with .gz"

_DOCUMENTS = ("collection.tsv", "docs.tsv", "documents.tsv", "msmarco-docs.tsv")
_QUERIES = re.compile(r"queries(\..+)?\.tsv(\.gz)?|msmarco-doc\w+-queries\.tsv(\.gz)?")
_DOCUMENT_QRELS = re.compile(r"msmarco-doc(\w+)-qrels\.tsv(?:\.gz)?")
_DOCUMENT_FIELDS = {2: "id, text", 4: "id, url, title, body"}


def recognises(path: Path) -> bool:
    """Whether there is a table of documents."""
    return _text.existing(path, *_DOCUMENTS) is not None


def files(source: Source) -> list[Path]:
    """The documents, the queries, the qrels and the rewrites."""
    return [_documents(source), *_query_files(source), *_qrels_files(source).values(), *_rewrites.files(source.path)]


def documents(source: Source) -> Iterator[tuple[str, Document]]:
    """The documents; the url of a four-column table is left out."""
    for where, fields in _text.columns(_documents(source), _DOCUMENT_FIELDS):
        yield where, Document(fields[0], fields[-1], fields[2] if len(fields) == 4 else "")


def queries(source: Source) -> Iterator[tuple[str, Query]]:
    """The queries of all files; one that another file had already (dev.small is a part of dev) comes once."""
    return _rewrites.added(source.path, _queries(source))


def splits(source: Source) -> tuple[str, ...]:
    """The splits that have qrels."""
    return tuple(_qrels_files(source))


def qrels(source: Source, split: str) -> Iterator[Judgement]:
    """The judgements of a split."""
    return _text.judgements(_qrels_files(source)[split])


def _queries(source: Source) -> Iterator[tuple[str, Query]]:
    seen: dict[str, int] = {}
    for path in _query_files(source):
        here: dict[str, int] = {}
        for where, (query_id, text) in _text.columns(path, {2: "id, text"}):
            here[query_id] = text_hash(text)
            if seen.get(query_id) != here[query_id]:
                yield where, Query(query_id, text)
        seen.update(here)


def _documents(source: Source) -> Path:
    path = _text.existing(source.path, *_DOCUMENTS)
    if path is None:
        raise DataError(f"{source.path}: there is no collection.tsv; MS MARCO's files are {LAYOUT}")
    return path


def _query_files(source: Source) -> list[Path]:
    return sorted(path for path in source.path.iterdir() if _QUERIES.fullmatch(path.name))


def _qrels_files(source: Source) -> dict[str, Path]:
    matches = ((_DOCUMENT_QRELS.fullmatch(path.name), path) for path in sorted(source.path.iterdir()))
    return _text.qrels_files(source.path) | {match[1]: path for match, path in matches if match}
