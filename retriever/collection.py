"""Collections: documents, queries and qrels, prepared once on disk, so that they never need to fit in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from retriever import readers
from retriever.errors import ConfigError, DataError
from retriever.files import hidden_folder, lock, recover_folder, write_json, write_text
from retriever.readers import Judgement, Source
from retriever.runs import read_qrels
from retriever.settings.collection import CollectionSettings
from retriever.tables.documents import DocumentTable, DocumentWriter, framed
from retriever.tables.queries import QUERIES, query_bytes, read_query_table, refuse_unknown_fields, write_query_table
from retriever.types import Document, Qrels, Query, check_id

_LAYOUT = 4
_EXAMPLES = 5
_WITHOUT_FIELDS = ("files", "msmarco", "trec")

MissingDocuments = Literal["error", "ignore"]


def open_collection(settings: CollectionSettings, folder: Path) -> Collection:
    """The collection that the settings name, prepared in `folder` unless it lies there already.

    It is prepared anew when the source's files have changed since, and when the folder holds another collection or a
    damaged one. A prepared collection outlives its source. A path to one that is prepared already, by `write_collection`
    or for another experiment, is opened where it lies.

    Args:
        settings: where the source lies and what it is.
        folder: where the prepared form is kept; made if need be.

    Raises:
        ConfigError: the format is unknown.
        DataError: the source breaks a rule of its format; the message names file and line. Nothing half-written stays.
    """
    if settings.path and (settings.path / "collection.json").is_file():
        return Collection(settings.path)
    return _prepare(settings, folder)


def _prepare(settings: CollectionSettings, folder: Path) -> Collection:
    """The same of a source that is none yet."""
    recover_folder(folder)
    prepared = _prepared(folder)
    source = _source(settings, folder)
    if prepared and settings.path and not settings.path.exists() and prepared.source.get("location") == source.location:
        return prepared
    format_name = _format(settings)
    if settings.fields and format_name in _WITHOUT_FIELDS:
        raise ConfigError(f'collection.fields: documents of the format "{format_name}" have no fields. Give JSON lines, or leave collection.fields out')
    reader = readers.reader(format_name)
    files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in reader.files(source)]
    described = {"format": format_name, "location": source.location, "wanted": list(source.wanted), "files": files}
    described |= {"missing_documents": settings.missing_documents, "fields": list(settings.fields)}
    if prepared and prepared.source == described:
        return prepared
    contents = _Contents(
        name=settings.ir_datasets or source.path.name.split(".")[0],
        documents=lambda: reader.documents(source),
        queries=lambda: reader.queries(source),
        qrels={split: partial(reader.qrels, source, split) for split in reader.splits(source)},
        source=described,
        where=lambda row: next(islice(reader.documents(source), row, None))[0],
    )
    return _write(folder, contents, settings.missing_documents)


def write_collection(
    folder: Path,
    documents: Iterable[Document],
    queries: Mapping[str, Query] | Iterable[Query] = (),
    qrels: Mapping[str, Qrels] | None = None,
    *,
    name: str | None = None,
    missing_documents: MissingDocuments = "error",
) -> Collection:
    """A collection of Python values, written to `folder`; a collection that was there is replaced.

    Args:
        folder: where it is kept.
        documents: read once, in their order; any number.
        queries: by id, or just the queries.
        qrels: split -> query -> document -> grade.
        name: the folder's name when left out.
        missing_documents: whether qrels that name absent documents are an error, or left out and counted.

    Raises:
        DataError: a value breaks a rule, such as an id that stands twice.
    """
    listed = queries.values() if isinstance(queries, Mapping) else queries
    contents = _Contents(
        name=name or folder.name,
        documents=lambda: ((f"document {number}", document) for number, document in enumerate(documents, 1)),
        queries=lambda: ((f"query {number}", query) for number, query in enumerate(listed, 1)),
        qrels={split: partial(_judgements, split, judged) for split, judged in (qrels or {}).items()},
        source={"format": "python"},
        where=lambda row: f"document {row + 1}",
    )
    return _write(folder, contents, missing_documents)


def with_queries(documents: Collection, folder: Path, queries: Iterable[Query], qrels: Mapping[str, Qrels], source: Mapping[str, Any]) -> Collection:
    """The documents of a collection with other queries and qrels, in `folder`. Both share the documents' files where the disk has hard links.

    Args:
        documents: a prepared collection; it stays as it is.
        folder: where the new one is kept; one that was there is replaced.
        queries: all of them.
        qrels: split -> query -> document -> grade.
        source: where the queries come from, kept in `Collection.source`.
    """
    contents = _Contents(
        name=documents.name,
        documents=lambda: iter(()),
        queries=lambda: ((f"query {number}", query) for number, query in enumerate(queries, 1)),
        qrels={split: partial(_judgements, split, judged) for split, judged in qrels.items()},
        source=source,
        where=lambda row: f"document {row + 1}",
    )
    with _new_folder(folder, "preparing the collection", replaces="collection.json") as new:
        documents.link_to(new)
        _write_judgements(new, contents, DocumentTable(new), "error", documents.fingerprint, documents.counts)
    return Collection(folder)


class Collection(DocumentTable):
    """Documents, queries and qrels in a prepared folder. Documents are memory-mapped; queries and qrels are read when asked for.

    Attributes:
        name: the name of the source's folder, or its id.
        counts: what was counted while it was prepared: documents, empty_texts, queries, images and image_queries (those without a text)
            and, by split, pairs and dropped_pairs.
        splits: the splits that have qrels.
        source: where it came from: format, location and, of each file, size and time of change.
    """

    def __init__(self, folder: Path) -> None:
        """Opens a prepared folder.

        Raises:
            DataError: it is none, or a file is missing or cut off.
        """
        facts = _facts(folder)
        super().__init__(folder)
        self.name: str = facts["name"]
        self._fingerprint: str = facts["fingerprint"]
        self.counts: dict[str, Any] = facts["counts"]
        self.splits: tuple[str, ...] = tuple(self.counts["pairs"])
        self.source: dict[str, Any] = facts["source"]

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of all ids, titles, texts, images and fields in their order."""
        return self._fingerprint

    @property
    def has_images(self) -> bool:
        """Whether documents or queries are images without a text: then words find nothing."""
        return bool(self.counts["images"] or self.counts["image_queries"])

    def __reduce__(self) -> tuple[type[Collection], tuple[Path]]:
        return Collection, (self.folder,)

    def queries(self, split: str) -> dict[str, Query]:
        """The queries that have qrels in a split, in the order of the source; all queries for a split without qrels."""
        judged = self.qrels(split) if split in self.splits else None
        return {query.query_id: query for query in read_query_table(self.folder / QUERIES, judged)}

    def all_queries(self) -> Iterator[Query]:
        """The queries of all splits, in the order of the source."""
        return read_query_table(self.folder / QUERIES)

    def qrels(self, split: str) -> dict[str, dict[str, int]]:
        """Query -> document -> grade of a split; empty for a split that is not in `splits`."""
        return read_qrels(_qrels_path(self.folder, split)) if split in self.splits else {}

    def queries_fingerprint(self, split: str) -> str:
        """Sixteen hexadecimal digits of the split's queries and qrels; the order does not count."""
        digest = hashlib.sha256()
        for _, query in sorted(self.queries(split).items()):
            digest.update(query_bytes(query))
        for query_id, judged in sorted(self.qrels(split).items()):
            digest.update(framed(query_id, id=query_id, grades=json.dumps(judged, sort_keys=True)))
        return digest.hexdigest()[:16]

    def to_beir(self, folder: Path) -> None:
        """Writes corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv into a folder that is new or empty.

        Raises:
            DataError: there is something in the folder.
        """
        documents = (
            {"_id": d.doc_id, "title": d.title, "text": d.text} | _image_field(d.image) | ({"metadata": dict(d.fields)} if d.fields else {})
            for d in self.documents()
        )
        queries = ({"_id": q.query_id, "text": q.text} | _turn_fields(q) | _image_field(q.image) for q in self.all_queries())
        with _new_folder(folder, "exporting a collection") as new:
            for name, records in (("corpus.jsonl", documents), ("queries.jsonl", queries)):
                with (new / name).open("w", encoding="utf-8") as stream:
                    stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            for split in self.splits:
                _write_qrels(_qrels_path(new, split), self.qrels(split))


@dataclasses.dataclass(frozen=True)
class _Contents:
    """What a collection is made of, each item with where it stands."""

    name: str
    documents: Callable[[], Iterator[tuple[str, Document]]]
    queries: Callable[[], Iterator[tuple[str, Query]]]
    qrels: Mapping[str, Callable[[], Iterator[Judgement]]]
    source: Mapping[str, Any]
    where: Callable[[int], str]  # of the document in a row


def _source(settings: CollectionSettings, folder: Path) -> Source:
    if settings.ir_datasets is not None:
        return Source(settings.ir_datasets, tuple(dict.fromkeys((settings.train, settings.test))), settings.fields)
    if settings.path is None:
        raise ConfigError("collection: give either path or ir_datasets")
    return Source(str(settings.path), fields=settings.fields, kept=folder.with_name(f"{folder.name}-images").resolve())


def _format(settings: CollectionSettings) -> str:
    if settings.path is None:
        return "ir_datasets"
    if settings.format is None:
        return readers.recognise(settings.path)
    readers.reader(settings.format)
    if settings.format != "hugging_face" and not settings.path.exists():  # what is no folder may be an id on the hub
        raise DataError(f"{settings.path}: there is no such folder or file")
    return settings.format


def _judgements(split: str, qrels: Qrels) -> Iterator[Judgement]:
    pairs = ((query_id, doc_id, grade) for query_id, judged in qrels.items() for doc_id, grade in judged.items())
    return (Judgement(f"qrels {split}, query {query_id}", query_id, doc_id, grade) for query_id, doc_id, grade in pairs)


# Writing a prepared folder


def _write(folder: Path, contents: _Contents, missing_documents: MissingDocuments) -> Collection:
    with _new_folder(folder, "preparing the collection", replaces="collection.json") as new:
        with DocumentWriter(new) as writer:
            for where, document in contents.documents():
                writer.add(where, document)
        if not len(writer):
            raise DataError(f"{contents.source.get('location', folder)}: the collection is empty: it has no documents")
        table = DocumentTable(new)
        _refuse_repeated_documents(table, contents)
        _write_judgements(new, contents, table, missing_documents, writer.fingerprint, {"empty_texts": writer.empty_texts, "images": writer.images})
    return Collection(folder)


def _write_judgements(
    folder: Path, contents: _Contents, table: DocumentTable, missing_documents: MissingDocuments, fingerprint: str, counted: Mapping[str, int]
) -> None:
    """Writes queries, qrels and what the collection is, to a folder that holds the documents."""
    asked = write_query_table(folder / QUERIES, contents.queries())
    refuse_unknown_fields(asked, table)
    query_ids = asked.query_ids
    pairs, dropped = {}, {}
    for split, judgements in contents.qrels.items():
        qrels = _checked_qrels(judgements(), query_ids)
        dropped[split] = _drop_missing_documents(qrels, table, missing_documents)
        pairs[split] = sum(map(len, qrels.values()))
        _write_qrels(_qrels_path(folder, split), {query_id: {d: j.grade for d, j in judged.items()} for query_id, judged in qrels.items()})
    counts = {"documents": len(table), "queries": len(query_ids), "pairs": pairs, "dropped_pairs": dropped}
    counts |= {"empty_texts": counted["empty_texts"], "images": counted["images"], "image_queries": asked.images}
    facts = {"layout": _LAYOUT, "name": contents.name, "fingerprint": fingerprint, "counts": counts, "source": contents.source}
    write_json(folder / "collection.json", facts)


@contextlib.contextmanager
def _new_folder(folder: Path, what: str, replaces: str | None = None) -> Iterator[Path]:
    """A hidden folder that takes the place of `folder` when the block ends well, and vanishes when it does not.

    Args:
        folder: the final place: absent, empty, or with a file named `replaces` in it.
        what: what a second process is told that this one is doing.
        replaces: the file that shows that the old folder is ours to replace.
    """
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (replaces and (folder / replaces).is_file()))):
        raise DataError(f"{folder}: is in the way: it holds something else, which would be lost. Name a new folder")
    with lock(folder.with_name(f".{folder.name}.lock"), what), hidden_folder(folder) as new:
        yield new


def _refuse_repeated_documents(table: DocumentTable, contents: _Contents) -> None:
    repeated = table.repeated_ids()
    if repeated:
        earlier, later = repeated[0]
        doc_id = table.documents_by_row([later])[0].doc_id
        more = f" ({len(repeated)} such documents in all)" if len(repeated) > 1 else ""
        raise DataError(f"{contents.where(later)}: the document id {doc_id} stands already at {contents.where(earlier)}{more}. Ids must be unique")


def _checked_qrels(judgements: Iterator[Judgement], query_ids: set[str]) -> dict[str, dict[str, Judgement]]:
    """Query -> document -> judgement, after the checks that need no documents."""
    qrels: dict[str, dict[str, Judgement]] = {}
    absent: dict[str, str] = {}
    for judgement in judgements:
        check_id(judgement.query_id, judgement.where)
        check_id(judgement.doc_id, judgement.where)
        earlier = qrels.setdefault(judgement.query_id, {}).setdefault(judgement.doc_id, judgement)
        if earlier.grade != judgement.grade:
            pair = f"query {judgement.query_id} and document {judgement.doc_id}"
            raise DataError(f"{judgement.where}: {pair} have grade {judgement.grade}, but {earlier.grade} at {earlier.where}. Keep one of the two")
        if judgement.query_id not in query_ids:
            absent.setdefault(judgement.query_id, judgement.where)
    if absent:
        first = next(iter(absent.values()))
        raise DataError(f"{first}: the qrels name queries that are not there ({len(absent)}): {_listed(absent)}. Add them, or take these lines out")
    return qrels


def _drop_missing_documents(qrels: dict[str, dict[str, Judgement]], table: DocumentTable, missing_documents: MissingDocuments) -> int:
    """Takes pairs with absent documents out of the qrels and gives their number, or refuses them."""
    doc_ids = list(dict.fromkeys(doc_id for judged in qrels.values() for doc_id in judged))
    absent = {doc_id for doc_id, row in zip(doc_ids, table.rows_of(doc_ids).tolist(), strict=True) if row < 0}
    missing = [judgement for judged in qrels.values() for judgement in judged.values() if judgement.doc_id in absent]
    if missing and missing_documents == "error":
        named = f"the qrels name documents that are not there ({len(absent)}, in {len(missing)} pairs): {_listed(dict.fromkeys(j.doc_id for j in missing))}"
        raise DataError(f'{missing[0].where}: {named}. Add them, or leave such pairs out with collection.missing_documents = "ignore"')
    for judgement in missing:
        del qrels[judgement.query_id][judgement.doc_id]
    return len(missing)


def _listed(ids: Mapping[str, object]) -> str:
    more = len(ids) - _EXAMPLES
    return ", ".join(islice(ids, _EXAMPLES)) + (f" and {more} more" if more > 0 else "")


def _qrels_path(folder: Path, split: str) -> Path:
    """Where the qrels of a split lie; a name such as dev/small keeps its slash."""
    parts = split.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise DataError(f'the split name "{split}" cannot be a file\'s name')
    return folder.joinpath("qrels", *parts[:-1], f"{parts[-1]}.tsv")


def _write_qrels(path: Path, qrels: Qrels) -> None:
    lines = (f"{query_id}\t{doc_id}\t{grade}\n" for query_id, judged in qrels.items() for doc_id, grade in judged.items())
    write_text(path, "query-id\tcorpus-id\tscore\n" + "".join(lines))


# Reading it


def _prepared(folder: Path) -> Collection | None:
    """The collection in a folder; none when there is no whole one."""
    try:
        return Collection(folder)
    except DataError:
        return None


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / "collection.json"
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{folder}: is no prepared collection ({path.name}: {error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: is damaged ({error}). Delete the folder {folder} and run the same command again") from error
    if facts.get("layout") != _LAYOUT:
        found = f"layout {facts.get('layout')}, not {_LAYOUT}"
        raise DataError(f"{path}: was written by another version ({found}). Delete the folder {folder} and run the same command again")
    return facts


def _turn_fields(query: Query) -> dict[str, Any]:
    """What a record says of a query beside its text, as the readers read it."""
    fields: dict[str, Any] = {"turns": [dataclasses.asdict(turn) for turn in query.turns]} if query.turns else {}
    fields |= {"conversation_id": query.conversation} if query.conversation else {}
    fields |= {"rewrites": dict(query.rewrites)} if query.rewrites else {}
    fields |= {"among": dict(query.among)} if query.among else {}
    return fields | ({"metadata": dict(query.fields)} if query.fields else {})


def _image_field(image: Path | None) -> dict[str, str]:
    return {} if image is None else {"image": str(image)}
