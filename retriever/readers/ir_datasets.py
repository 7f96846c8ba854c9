"""Ids of the library ir_datasets (MacAvaney et al. 2021, arXiv:2103.02280), which fetches what is not in its own folder (IR_DATASETS_HOME)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from retriever.errors import DataError
from retriever.readers import Judgement, Source, _records
from retriever.types import Document, Query

LAYOUT = ""

_TEXTS = ("text", "body", "abstract", "contents")

Record = TypeVar("Record")


def recognises(path: Path) -> bool:
    """Never: an id is no path."""
    return False


def files(source: Source) -> list[Path]:
    """None: the library keeps its own."""
    return []


def documents(source: Source) -> Iterator[tuple[str, Document]]:
    """The documents of the id, or of the first split that has some."""
    holder = next((dataset for dataset in _datasets(source) if dataset.has_docs()), None)
    if holder is None:
        raise DataError(f'ir_datasets "{source.location}": this id has no documents')
    for number, record in enumerate(_explained(source, holder.docs_iter()), 1):
        yield f"{source.location}: document {number}", _document(record, source.fields)


def queries(source: Source) -> Iterator[tuple[str, Query]]:
    """The queries of the id and of its splits; one that stands in several comes once."""
    seen: dict[str, str] = {}
    for dataset in _datasets(source):
        here: dict[str, str] = {}
        for number, record in enumerate(_explained(source, dataset.queries_iter()) if dataset.has_queries() else (), 1):
            query = Query(record.query_id, _default_text(record))
            here[query.query_id] = query.text
            if seen.get(query.query_id) != query.text:
                yield f"{source.location}: query {number}", query
        seen.update(here)


def splits(source: Source) -> tuple[str, ...]:
    """The wanted splits that have qrels (all of the id's when none are named)."""
    return tuple(split for split in _wanted(source) if _split(source, split) is not None)


def qrels(source: Source, split: str) -> Iterator[Judgement]:
    """The judgements of a split."""
    for number, record in enumerate(_explained(source, _split(source, split).qrels_iter()), 1):
        yield Judgement(f"{source.location}/{split}: judgement {number}", record.query_id, record.doc_id, int(record.relevance))


def _datasets(source: Source) -> list[Any]:
    """The id's own data and that of each of its splits."""
    return [_load(source.location), *(_split(source, split) for split in splits(source))]


def _wanted(source: Source) -> Iterable[str]:
    import ir_datasets

    if source.wanted:
        return dict.fromkeys(source.wanted)
    below = [name.removeprefix(f"{source.location}/") for name in ir_datasets.registry if name.startswith(f"{source.location}/")]
    return dict.fromkeys([*below, "test"])


def _split(source: Source, split: str) -> Any:
    """The data of "id/split"; an id whose qrels have no split of their own gives them as "test"."""
    import ir_datasets

    base = _load(source.location)
    try:
        dataset = ir_datasets.load(f"{source.location}/{split}")
    except KeyError:
        dataset = base if split == "test" else None
    return dataset if dataset is not None and dataset.has_qrels() else None


def _load(name: str) -> Any:
    import ir_datasets

    try:
        return ir_datasets.load(name)
    except KeyError as error:
        near = difflib.get_close_matches(name, list(ir_datasets.registry), 3)
        hint = f" Near it are {', '.join(near)}" if near else ""
        raise DataError(f'ir_datasets knows no id "{name}".{hint or " See https://ir-datasets.com for all"}') from error


def _explained(source: Source, records: Iterable[Record]) -> Iterator[Record]:
    """The records; what goes wrong in the library becomes one line."""
    try:
        yield from records
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f'ir_datasets "{source.location}": the library could not fetch or read it ({reason})') from error


def _document(record: Any, wanted: Sequence[str]) -> Document:
    fields = _records.kept_fields(record._asdict(), wanted) if wanted else {}
    title = getattr(record, "title", None)
    text = next((getattr(record, name) for name in _TEXTS if isinstance(getattr(record, name, None), str)), None)
    if isinstance(title, str) and text is not None:
        return Document(record.doc_id, text, title, fields=fields)
    return Document(record.doc_id, _default_text(record), fields=fields)


def _default_text(record: Any) -> str:
    return str(record.default_text()) if hasattr(record, "default_text") else str(record.text)
