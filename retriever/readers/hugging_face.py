"""Hugging Face datasets in the layout of BEIR's and MTEB's hub repositories, saved on disk or from the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from retriever.errors import DataError
from retriever.readers import Judgement, Source, _records, _rewrites
from retriever.types import Document, Query

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

LAYOUT = "folders corpus, queries and qrels written by save_to_disk, or a hub id with configurations of these names"

_ROWS = 1000
_CORPUS = ("corpus", "documents")
_QUERIES = ("queries",)
_QRELS = ("qrels", "default")
_DOCUMENT_COLUMNS = (*_records.DOCUMENT_ID, *_records.DOCUMENT_TEXT, "title")
_PICTURES = ("image", "images", "audio", "video")
_QRELS_COLUMNS = (*_records.JUDGED_QUERY, *_records.JUDGED_DOCUMENT, *_records.GRADE)

Loaded = TypeVar("Loaded")


def recognises(path: Path) -> bool:
    """Whether a folder holds a corpus written by save_to_disk."""
    return any(_is_saved(path / name) for name in _CORPUS)


def files(source: Source) -> list[Path]:
    """All files of the saved datasets, and the rewrites; none for a hub id."""
    folders = (source.path / name for name in (*_CORPUS, *_QUERIES, *_QRELS))
    return [*(path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()), *_rewrites.files(source.path)]


def documents(source: Source) -> Iterator[tuple[str, Document]]:
    """The documents of the corpus."""
    corpus = _part(source, _CORPUS)
    if corpus is None:
        raise DataError(f"{source.location}: there is no corpus; a collection has {LAYOUT}")
    for where, record in _rows(f"{source.location}: corpus", _only_split(source, corpus), (*_DOCUMENT_COLUMNS, "metadata", *source.fields)):
        yield where, _records.document(where, record, source.path, source.fields)


def queries(source: Source) -> Iterator[tuple[str, Query]]:
    """The queries; none when there is no part of this name."""
    part = _part(source, _QUERIES)
    if part is not None:
        table = _only_split(source, part)
        columns = tuple(name for name in table.column_names if name not in _PICTURES)
        rows = _rows(f"{source.location}: queries", table, columns)
        yield from _rewrites.added(source.path, _records.queries(rows, source.path))


def splits(source: Source) -> tuple[str, ...]:
    """The splits of the qrels."""
    return tuple(_qrels(source))


def qrels(source: Source, split: str) -> Iterator[Judgement]:
    """The judgements of a split."""
    for where, record in _rows(f"{source.location}: qrels {split}", _qrels(source)[split], _QRELS_COLUMNS):
        yield _records.judgement(where, record)


def hub_id(source: Source) -> str:
    """The id on the hub, owner/name: the last two parts of a location that is no folder here."""
    return "/".join(source.path.parts[-2:])


def _qrels(source: Source) -> dict[str, Dataset]:
    found = _part(source, _QRELS)
    if found is None and not source.path.exists():
        found = _loaded(source, lambda: _hub().load_dataset(f"{hub_id(source)}-qrels"))
    if found is None:
        folders = sorted(path for path in (source.path / "qrels").glob("*") if _is_saved(path))
        return {folder.name: _only_split(source, _loaded(source, partial(_hub().load_from_disk, str(folder)))) for folder in folders}
    return dict(found) if isinstance(found, dict) else {"test": found}


def _part(source: Source, names: tuple[str, ...]) -> Dataset | DatasetDict | None:
    """The first of the named parts that is there: a folder written by save_to_disk, or a configuration on the hub."""
    if source.path.exists():
        folder = next((source.path / name for name in names if _is_saved(source.path / name)), None)
        return None if folder is None else _loaded(source, lambda: _hub().load_from_disk(str(folder)))
    present = _loaded(source, lambda: _hub().get_dataset_config_names(hub_id(source)))
    name = next((name for name in names if name in present), None)
    return None if name is None else _loaded(source, lambda: _hub().load_dataset(hub_id(source), name))


def _only_split(source: Source, part: Dataset | DatasetDict) -> Dataset:
    if not isinstance(part, dict):
        return part
    named = [name for name in part if name in (*_CORPUS, *_QUERIES)] or list(part)
    if len(named) != 1:
        raise DataError(f"{source.location}: has the splits {', '.join(part)} where one was expected, such as corpus or queries")
    return part[named[0]]


def _rows(what: str, table: Dataset, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    present = [name for name in table.column_names if name in columns]
    batches = table.select_columns(present).iter(_ROWS)
    records = (dict(zip(batch, values, strict=True)) for batch in batches for values in zip(*batch.values(), strict=True))
    for row, record in enumerate(records, 1):
        yield f"{what}: row {row}", record


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _loaded(source: Source, load: Callable[[], Loaded]) -> Loaded:
    import pyarrow as pa
    from datasets.exceptions import DatasetsError

    try:
        return load()
    except (OSError, ValueError, DatasetsError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{source.location}: neither a whole dataset on disk nor one that the hub gave ({type(error).__name__}: {reason})") from error


def _hub() -> Any:
    import datasets

    return datasets
