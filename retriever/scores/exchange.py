"""Score files of other frameworks: in as a run of ours with what else they hold, out from an experiment's stored scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retriever.errors import ConfigError, DataError
from retriever.files import write_text
from retriever.formats import Pair, Part, format_named, recognise
from retriever.formats._collected import collect, run_of
from retriever.formats._lines import write_json_lines
from retriever.formats._texts import beir_qrels, texts_folder
from retriever.runs import Run, write_qrels
from retriever.types import Document, Qrels, Query, Unit

if TYPE_CHECKING:
    from retriever.collection import Collection
    from retriever.pipeline import Pipeline


BLOCK = 10_000
"""Documents whose texts are in memory at a time."""


@dataclasses.dataclass(frozen=True)
class Imported:
    """What a score file held, and where it lies now.

    Attributes:
        format: its name.
        queries: the number of queries.
        pairs: the number of distinct pairs.
        repeated: pairs that stood there more than once; the first score was kept.
        scored: whether the file has scores; without them, the run holds minus the place in the query's list.
        unit: what the run's scores mean, where it is known.
        run: the run, None for a file of judgements alone.
        qrels: the judgements, None where the file has none.
        texts: a BEIR folder, None where the file has only ids.
    """

    format: str
    queries: int
    pairs: int
    repeated: int
    scored: bool
    unit: Unit | None
    run: Path | None
    qrels: Path | None
    texts: Path | None


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written: the file, whose scores, how many queries, how many the format could not hold, and the tables of texts beside it."""

    path: Path
    format: str
    teacher: str
    queries: int
    left_out: int
    texts: tuple[Path, ...] = ()


def import_scores(
    path: Path,
    out: Path,
    format_name: str | None = None,
    unit: Unit | None = None,
    name: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Imported:
    """Writes a score file of any known format as a run of ours; nothing is written when a line is wrong.

    Args:
        path: the file, plain or gzip.
        out: the run in Parquet. Judgements go beside it as NAME.qrels, texts into the folder NAME-texts, in BEIR's form.
        format_name: recognised from the content when left out.
        unit: what the scores mean; kept in the run.
        name: of the run; the file's when left out.
        progress: called with the number of pairs read so far, now and then.

    Raises:
        ConfigError: there is no such format, a unit is given to a file without scores, or the file would be overwritten.
        DataError: the format is not recognised, or a line is malformed; the message names file and line.
    """
    if path.resolve() in (out.resolve(), out.with_suffix(".qrels").resolve()):
        raise ConfigError(f"{path}: would be overwritten by what is made of it. Name another file with --out")
    found = format_name or recognise(path)
    source = format_named(found)
    texts = out.with_name(f"{out.stem}-texts")
    with texts_folder(texts, wanted="texts" in source.HOLDS) as folder:
        collected = collect(source, path, folder, progress)
        if not len(collected.scores):
            raise DataError(f"{path}: holds no pairs. Is it the right file?")
        if folder:
            write_text(folder / "qrels" / "train.tsv", beir_qrels(collected.grades))
    scored = not np.isnan(collected.scores[0])
    if unit and not scored and unit != "rank":
        raise ConfigError(f'{path}: has no scores, so that they cannot be in "{unit}". Leave --unit out: the run holds the order')
    run, repeated = run_of(collected, name or path.name.split(".")[0], source, path)
    meaning: Unit | None = unit if scored else "rank"
    has_run = bool(source.HOLDS - {"positives"})
    if collected.grades:
        write_qrels(out.with_suffix(".qrels"), collected.grades)
    if has_run:
        run.write_parquet(out, meaning)
    return Imported(
        format=found,
        queries=len(run),
        pairs=run.n_pairs,
        repeated=repeated,
        scored=scored,
        unit=meaning if has_run else None,
        run=out if has_run else None,
        qrels=out.with_suffix(".qrels") if collected.grades else None,
        texts=texts if folder else None,
    )


def export_scores(pipeline: Pipeline, format_name: str, out: Path, teacher: str | None = None, split: str = "train", with_texts: bool = False) -> Exported:
    """Writes a teacher's stored scores of a split's pairs, or the ensemble's, in another framework's format.

    Args:
        pipeline: the experiment; what is not scored yet is scored first.
        format_name: the format.
        out: the file; compressed when its name ends with .gz.
        teacher: a name of the experiment, or "ensemble"; may be left out where there is only one.
        split: "train" or "test".
        with_texts: also write NAME.queries.jsonl (query_id, text) and NAME.documents.jsonl (document_id, text), as PyLate wants them
            beside a format of ids.

    Raises:
        ConfigError: there is no such format or teacher, or the format is only read.
        DataError: the format holds none of the queries.
    """
    target = format_named(format_name)
    if not hasattr(target, "write"):
        raise ConfigError(f'the format "{format_name}" is only read; its scores can be written as trec_run')
    if split not in ("train", "test"):
        raise ConfigError(f'there is no split "{split}"; allowed are train and test')
    known = [settings.label for settings in pipeline.experiment.teacher]
    known += ["ensemble"] if len(known) > 1 else []
    chosen = teacher or (known[0] if len(known) == 1 else None)
    if chosen not in known:
        found = f'no teacher is named "{chosen}"' if chosen else "there are several teachers"
        raise ConfigError(f"{found}; choose one with --teacher: {', '.join(known)}")
    run = pipeline.target.runs(split)[chosen]
    pairs = pairs_of(run, pipeline.qrels(split), pipeline.queries(split), pipeline.collection, target.HOLDS)
    written = target.write(out, pairs, chosen)
    texts = _write_texts(run, pipeline.queries(split), pipeline.collection, out) if with_texts else ()
    return Exported(out, format_name, chosen, written, len(run) - written, texts)


def _write_texts(run: Run, queries: dict[str, Query], collection: Collection, out: Path) -> tuple[Path, Path]:
    """The texts of a run's queries and documents, each once, as two tables beside a file."""
    stem = out.name.split(".")[0]
    paths = (out.with_name(f"{stem}.queries.jsonl"), out.with_name(f"{stem}.documents.jsonl"))
    asked = ({"query_id": query_id, "text": queries[query_id].text} for query_id in run)
    rows = np.unique(collection.rows_of(np.unique(run.doc_ids).tolist()))
    blocks = (collection.documents_by_row(rows[start : start + BLOCK].tolist()) for start in range(0, len(rows), BLOCK))
    found = ({"document_id": document.doc_id, "text": document.full_text} for block in blocks for document in block)
    for path, records in zip(paths, (asked, found), strict=True):
        write_json_lines(path, records)
    return paths


def pairs_of(run: Run, qrels: Qrels, queries: dict[str, Query], collection: Collection, holds: frozenset[Part]) -> Iterator[Pair]:
    """The pairs of a run as a format takes them, with their texts where it holds texts."""
    for query_id in run:
        listed, judged = run[query_id], qrels.get(query_id, {})
        documents: list[Document | None] = [None] * len(listed)
        if "texts" in holds:
            documents = [*collection.documents_by_row(collection.rows_of([doc_id for doc_id, _ in listed]).tolist())]
        for (doc_id, score), document in zip(listed, documents, strict=True):
            yield Pair("", query_id, doc_id, score, judged.get(doc_id), queries[query_id].text, document)
