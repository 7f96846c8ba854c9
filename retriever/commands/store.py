"""Care for the stored scores of teachers: a group of commands under `retriever store`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from retriever.commands.console import Json, print_json, print_table, table_of, tell

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Care for stored scores: verify, list, merge, compact, drop.")

Folder = Annotated[Path, typer.Argument(help="Folder of an experiment, or its folder score.", metavar="FOLDER")]


@app.command()
def verify(folder: Folder, as_json: Json = False) -> None:
    """Look for damage. Changes nothing; exit status 1 when something is wrong."""
    from retriever.scores.maintenance import verify_store

    problems = verify_store(folder)
    words = [str(problem) for problem in problems] or ["nothing is wrong"]
    tell(as_json, [{"path": str(problem.path), "problem": problem.problem} for problem in problems], "\n".join(words))
    if problems:
        typer.echo('next: "retriever score" with the same experiment file scores the pairs of damaged shards again', err=True)
        raise typer.Exit(1)


@app.command("list")
def list_(folder: Folder, as_json: Json = False) -> None:
    """Say which teachers have scores here, and how many."""
    from retriever.eval.wording import size
    from retriever.scores.maintenance import list_teachers

    entries = list_teachers(folder)
    if as_json:
        print_json([dataclasses.asdict(entry) for entry in entries])
        return
    table = table_of("teacher", "fingerprint", "kind", "unit", "pairs", "mean", "std", "truncated", "shards", "bytes")
    for entry in entries:
        numbers = (f"{entry.pairs:,}", f"{entry.mean:.3f}", f"{entry.std:.3f}", f"{entry.truncated:.1%}", f"{entry.shards:,}", size(entry.bytes))
        table.add_row(entry.name, entry.fingerprint, entry.kind, entry.unit, *numbers)
    print_table(table)


@app.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Stores to copy from, then the one to copy into.", metavar="SOURCE... TARGET")],
    as_json: Json = False,
) -> None:
    """Copy stores of a collection into another one. Doing it again changes nothing."""
    from retriever.errors import ConfigError
    from retriever.scores.maintenance import merge_stores

    if len(folders) < 2:
        raise ConfigError("store merge: name one store at least to copy from, then the one to copy into")
    changes = merge_stores(folders[:-1], folders[-1])
    words = [f"{change.teacher}: {change.shards_written:,} shards with {change.pairs_written:,} pairs copied" for change in changes]
    tell(as_json, [dataclasses.asdict(change) for change in changes], "\n".join(words) or "no teachers in it")
    typer.echo(f"next: retriever store compact {folders[-1]}", err=True)


@app.command()
def compact(folder: Folder, as_json: Json = False) -> None:
    """Join many small shards into few. A pair that stands twice stays once."""
    from retriever.scores.maintenance import compact_store

    changes = compact_store(folder)
    words = [
        f"{one.teacher}: {one.shards_removed:,} shards with {one.pairs_removed:,} pairs are now {one.shards_written:,} with {one.pairs_written:,}"
        if one.shards_written
        else f"{one.teacher}: compact already"
        for one in changes
    ]
    tell(as_json, [dataclasses.asdict(change) for change in changes], "\n".join(words) or "no teachers in it")


@app.command()
def drop(
    folder: Folder,
    teacher: Annotated[str, typer.Argument(help="Its name or fingerprint.", metavar="TEACHER")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove all scores of a teacher."""
    from retriever.scores.files import StoreFiles
    from retriever.scores.maintenance import drop_teacher, find_teacher

    files = StoreFiles.at(folder)
    identity = find_teacher(files, teacher)
    pairs = files.statistics(identity.fingerprint).pairs
    if not yes and not typer.confirm(f"Remove the {pairs:,} scores of {identity.name} ({identity.fingerprint})?", err=True):
        typer.echo("nothing was removed", err=True)
        raise typer.Exit(1)
    drop_teacher(files.folder, identity.fingerprint)
    typer.echo(f"removed {pairs:,} scores of {identity.name} ({identity.fingerprint})", err=True)
