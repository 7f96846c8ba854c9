"""Score files of other frameworks: in as a run, out from an experiment's stored scores."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from retriever.commands.console import WORK, File, Json, Set, Work, pipeline_of, print_json
from retriever.errors import ConfigError

if TYPE_CHECKING:
    from retriever.scores.exchange import Imported


def import_(
    file: Annotated[Path, typer.Argument(help="Score file, plain or gzip.", metavar="FILE")],
    out: Annotated[Path, typer.Option("--out", help="The run to write.", metavar="RUN.parquet")],
    format_: Annotated[str | None, typer.Option("--format", help="Name of the format; recognised from the content when left out.", metavar="NAME")] = None,
    unit: Annotated[str | None, typer.Option("--unit", help="What the scores mean: logit, cosine, dot, ...", metavar="UNIT")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run; the file's when left out.", metavar="NAME")] = None,
    as_json: Json = False,
) -> None:
    """Turn another framework's score file into a run."""
    from retriever.scores.exchange import import_scores
    from retriever.types import Unit

    if unit is not None and unit not in get_args(Unit):
        raise ConfigError(f"--unit {unit}: unknown; known are {', '.join(get_args(Unit))}")
    imported = import_scores(file, out, format_, cast(Unit | None, unit), name, lambda pairs: typer.echo(f"read {pairs:,} pairs", err=True))
    if as_json:
        print_json(_plain(imported))
    else:
        typer.echo(_words(imported))
    typer.echo(_next_step(imported), err=True)


def export(  # noqa: PLR0913, PLR0917 (a command's options)
    file: File,
    format_: Annotated[str, typer.Option("--format", help="Name of the format.", metavar="NAME")],
    out: Annotated[Path, typer.Option("--out", help="The file to write; compressed when its name ends with .gz.", metavar="FILE")],
    teacher: Annotated[str | None, typer.Option("--teacher", help='Name of a teacher, or "ensemble".', metavar="NAME")] = None,
    split: Annotated[str, typer.Option("--split", help="Which queries: train or test.", metavar="SPLIT")] = "train",
    texts: Annotated[bool, typer.Option("--texts", help="Also write the texts of queries and documents, beside a format of ids.")] = False,
    set_: Set = None,
    work: Work = WORK,
    as_json: Json = False,
) -> None:
    """Write a teacher's stored scores in another framework's format."""
    from retriever.formats import format_named

    format_named(format_)  # a misspelt name is told before anything is loaded
    from retriever.scores.exchange import export_scores

    exported = export_scores(pipeline_of(file, set_, work), format_, out, teacher, split, texts)
    if as_json:
        print_json(_plain(exported))
    else:
        typer.echo(f"{exported.path}: {exported.queries:,} queries, scores of {exported.teacher} as {exported.format}")
        typer.echo("".join(f"{path}: texts\n" for path in exported.texts), nl=False)
    if exported.left_out:
        typer.echo(f"{exported.left_out:,} queries were left out: {exported.format} needs a relevant document beside another one", err=True)


def _plain(result: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return str(value) if isinstance(value, Path) else [plain(one) for one in value] if isinstance(value, tuple) else value

    return {key: plain(value) for key, value in dataclasses.asdict(result).items()}


def _words(imported: Imported) -> str:
    """What was written, a line for each file."""
    lines = []
    if imported.run:
        held = "with scores" if imported.scored else "without scores: each pair has minus its place in the list"
        lines.append(f"{imported.run}: {imported.queries:,} queries, {imported.pairs:,} pairs ({imported.format}, {held})")
    if imported.repeated:
        lines.append(f"{imported.repeated:,} pairs stood there again; the first score was kept")
    if imported.qrels:
        lines.append(f"{imported.qrels}: judgements")
    if imported.texts:
        lines.append(f"{imported.texts}: texts, a collection in BEIR's form")
    return "\n".join(lines)


def _next_step(imported: Imported) -> str:
    """What the user can do with the files."""
    if imported.run is None:
        return f"next: name {imported.qrels} among the qrels of a collection"
    path = json.dumps(str(imported.run))
    source = f"next: in the experiment file, candidates.sources = [{path}]"
    if not imported.scored:
        return source
    unit = "" if imported.unit else 'unit = "logit"    # or what the scores mean\n'
    return f'{source}, and\n[[teacher]]\nkind = "run"\npath = {path}\n{unit}'.rstrip("\n")
