"""Queries written for a collection."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from retriever.commands.console import WORK, File, Json, Set, Work, pipeline_of, print_json, print_table, table_of, tell, tell_next

EXAMPLES = 5


def generate(
    file: File,
    set_: Set = None,
    work: Work = WORK,
    as_json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many queries would be written; write none.")] = False,
) -> None:
    """Write queries for a collection, and keep the good ones."""
    from retriever.generation import step

    pipeline = pipeline_of(file, set_, work)
    step.generation_of(pipeline)
    if dry_run:
        found = step.prospect(pipeline)
        words = f"{found.samples - found.done:,} queries to write for {found.documents:,} documents, {found.done:,} written already"
        tell(as_json, dataclasses.asdict(found), words)
        tell_next("generate", file, set_, work)
        return
    done, rows = pipeline.open_step(lambda: step.generate(pipeline), step.read_generated)
    result, path = done.result, done.folder / step.QUERIES
    if as_json:
        print_json({"queries": str(path), **result})
        return
    _show(result, rows)
    splits = ", ".join(f"{count:,} {name}" for name, count in result["splits"].items())
    typer.echo(f"\nkept {result['verdicts']['kept']:,} of {result['written']:,} ({100 * result['yield']:.0f} %): {splits}; test queries are {result['test']}")
    typer.echo(f"all with their lineage: {path}")
    tell_next("distill", file, set_, work)


def _show(result: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Counts of each verdict with an example, then some kept queries, the best and the worst."""
    table = table_of("verdict", "queries", "example")
    for verdict, count in result["verdicts"].items():
        if count:
            example = next(row for row in rows if row["verdict"] == verdict)
            table.add_row(verdict, f"{count:,}", " ".join((example["text"] or example["raw"]).split())[:70])
    print_table(table)
    kept = sorted((row for row in rows if row["verdict"] == "kept"), key=lambda row: -row["critic_score"])
    shown = table_of("quality", "kept query", "document")
    for row in kept[: EXAMPLES - 2] + kept[EXAMPLES - 2 :][-2:]:
        shown.add_row(f"{row['critic_score']:.2f}", row["text"][:70], row["doc_id"])
    typer.echo("")
    print_table(shown)
