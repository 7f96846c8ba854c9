"""TREC's files: documents in SGML, topics in <top> form or tab-separated, qrels."""

from __future__ import annotations

import html
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from retriever.errors import DataError
from retriever.readers import Source, _rewrites, _text
from retriever.types import Document, Query

LAYOUT = "files that begin with <DOC> (also in documents/), topics.* or queries.* (<top> or id, tab, text), qrels.SPLIT or qrels/SPLIT.txt, each also with .gz"

splits = _text.splits
qrels = _text.qrels

_FOLDERS = ("documents", "docs", "corpus")
_TAG = re.compile(r"</?[A-Za-z!?][^<>]*>")
_DOCNO = re.compile(r"<DOCNO>(.*?)</DOCNO>", re.IGNORECASE | re.DOTALL)
_HEADER = re.compile(r"<(DOCHDR|DOCID)>.*?</\1>", re.IGNORECASE | re.DOTALL)
_TITLE = re.compile(r"<(TITLE|HEADLINE)>(.*?)</\1>", re.IGNORECASE | re.DOTALL)
_TEXT = re.compile(r"<(TEXT|BODY)>(.*?)</\1>", re.IGNORECASE | re.DOTALL)


def recognises(path: Path) -> bool:
    """Whether a file begins with <DOC>: the path itself, or one in the folder."""
    return any(_begins_with_document(file) for file in _candidates(path))


def files(source: Source) -> list[Path]:
    """The documents, the topics, the qrels and the rewrites."""
    return [*_document_files(source), *_topic_files(source), *_text.qrels_files(source.path).values(), *_rewrites.files(source.path)]


def documents(source: Source) -> Iterator[tuple[str, Document]]:
    """The documents of all files, in the order of the files' names; tags are taken out and entities resolved."""
    for path in _document_files(source):
        for where, block in _blocks(path, "DOC"):
            yield where, _document(where, block)


def queries(source: Source) -> Iterator[tuple[str, Query]]:
    """The topics: their number and title (the description where there is no title)."""
    return _rewrites.added(source.path, _queries(source))


def _queries(source: Source) -> Iterator[tuple[str, Query]]:
    for path in _topic_files(source):
        _, first = next(_text.lines(path), ("", ""))
        if first.lstrip().startswith("<"):
            yield from ((where, _topic(where, block)) for where, block in _blocks(path, "top"))
        else:
            yield from ((where, Query(query_id, text)) for where, (query_id, text) in _text.columns(path, {2: "id, text"}))


def _blocks(path: Path, tag: str) -> Iterator[tuple[str, str]]:
    """What stands between <tag> and </tag>, each with the line where it begins."""
    opening, closing = re.compile(rf"<{tag}\s*>", re.IGNORECASE), re.compile(rf"</{tag}\s*>", re.IGNORECASE)
    begun, buffer = "", list[str]()
    for where, line in _text.lines(path):
        begun = begun or where
        buffer.append(line)
        if closing.search(line):
            *blocks, rest = closing.split("\n".join(buffer))
            for block in blocks:
                before, *inside = opening.split(block)
                if before.strip() or len(inside) != 1:
                    raise DataError(f"{begun}: a <{tag}> must begin here and end before the next one; found {block.strip()[:40]!r}")
                yield begun, inside[0]
            begun, buffer = (where, [rest]) if rest.strip() else ("", [])
    if buffer:
        raise DataError(f"{begun}: the <{tag}> that begins here has no </{tag}>: the file is cut off or broken")


def _document(where: str, block: str) -> Document:
    number = _DOCNO.search(block)
    if number is None:
        raise DataError(f"{where}: the document has no <DOCNO>")
    title = _TITLE.search(block)
    texts = [match[2] for match in _TEXT.finditer(block)]
    if not texts:
        texts = [_TITLE.sub(" ", _HEADER.sub(" ", _DOCNO.sub(" ", block)))]
    return Document(number[1].strip(), _plain(" ".join(texts)), _plain(title[2]) if title else "")


def _topic(where: str, block: str) -> Query:
    number = _topic_field(block, "num", "Number:")
    if not number:
        raise DataError(f"{where}: the topic has no <num>")
    return Query(number, _topic_field(block, "title", "Topic:") or _topic_field(block, "desc", "Description:"))


def _topic_field(block: str, tag: str, label: str) -> str:
    match = re.search(rf"<{tag}>\s*(?:{label})?(.*?)(?=</?[A-Za-z]|\Z)", block, re.IGNORECASE | re.DOTALL)
    return _plain(match[1]) if match else ""


def _plain(markup: str) -> str:
    return " ".join(html.unescape(_TAG.sub(" ", markup)).split())


def _candidates(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    yield from sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    for folder in _FOLDERS:
        yield from sorted(file for file in (path / folder).rglob("*") if file.is_file())


def _begins_with_document(path: Path) -> bool:
    try:
        with _text.open_bytes(path) as stream:
            return stream.read(512).lstrip(b"\xef\xbb\xbf \t\r\n")[:5].upper() == b"<DOC>"
    except (OSError, EOFError, zlib.error):
        return False


def _document_files(source: Source) -> list[Path]:
    paths = [path for path in _candidates(source.path) if _begins_with_document(path)]
    if not paths:
        raise DataError(f"{source.path}: no file begins with <DOC>; TREC's files are {LAYOUT}")
    return paths


def _topic_files(source: Source) -> list[Path]:
    return [path for path in _candidates(source.path) if path.parent == source.path and path.name.startswith(("topics", "queries"))]
