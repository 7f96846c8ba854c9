"""The texts of a score file as a BEIR folder, each item once, written while the file is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from retriever.errors import DataError
from retriever.files import hidden_folder, make_folder, text_hash
from retriever.formats import Pair, _lines
from retriever.types import Qrels


@contextlib.contextmanager
def texts_folder(final: Path, wanted: bool) -> Iterator[Path | None]:
    """A hidden folder that takes the place of `final` when the block ends well, and vanishes when it does not; None where none is wanted.

    Raises:
        DataError: the final place holds something else than texts.
    """
    if not wanted:
        yield None
        return
    if final.exists() and not (final / "corpus.jsonl").is_file():
        raise DataError(f"{final}: is in the way: it holds something else, which would be lost. Name another file with --out")
    with hidden_folder(final) as new:
        make_folder(new / "qrels")
        yield new


class TextWriter:
    """Writes corpus.jsonl and queries.jsonl; remembers what it wrote by a hash each."""

    def __init__(self, folder: Path) -> None:
        self.corpus = (folder / "corpus.jsonl").open("w", encoding="utf-8")
        self.queries = (folder / "queries.jsonl").open("w", encoding="utf-8")
        self.written: dict[tuple[str, str], int] = {}

    def __enter__(self) -> TextWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.corpus.close()
        self.queries.close()

    def add(self, pair: Pair) -> None:
        """Writes the query and the document of a pair, unless they are there already.

        Raises:
            DataError: an id has another text than before.
        """
        if pair.query is not None and self._is_new(pair.where, "query", pair.query_id, pair.query):
            self.queries.write(_lines.json_line({"_id": pair.query_id, "text": pair.query}))
        document = pair.document
        if document is not None and self._is_new(pair.where, "document", pair.doc_id, f"{document.title}\n{document.text}"):
            self.corpus.write(_lines.json_line({"_id": pair.doc_id, "title": document.title, "text": document.text}))

    def _is_new(self, where: str, kind: str, identifier: str, text: str) -> bool:
        found = text_hash(text)
        earlier = self.written.setdefault((kind, identifier), -1)
        if earlier not in (-1, found):
            raise DataError(f"{where}: the {kind} {identifier} has another text than before. Ids must be unique")
        self.written[kind, identifier] = found
        return earlier == -1


def beir_qrels(qrels: Qrels) -> str:
    """The judgements as BEIR's qrels file has them."""
    lines = (f"{query_id}\t{doc_id}\t{grade}\n" for query_id, judged in qrels.items() for doc_id, grade in judged.items())
    return "query-id\tcorpus-id\tscore\n" + "".join(lines)
