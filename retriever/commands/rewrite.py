"""Rewrites of turns, so that they stand alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from retriever.commands.console import WORK, File, Json, Set, Work, duration, pipeline_of, print_json, tell, tell_next

EXAMPLES = 3


def rewrite(
    file: File,
    set_: Set = None,
    work: Work = WORK,
    as_json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many turns would be rewritten, and how long it takes; write nothing.")] = False,
    export: Annotated[
        Path | None, typer.Option("--export", help="Write rewrites/NAME.jsonl into this folder, as collections of turns hold them.", metavar="FOLDER")
    ] = None,
) -> None:
    """Rewrite turns of conversations, so that they stand alone.

    Those of the collections in [[transfer]] too.
    """
    from retriever.conversations import rewriting

    pipeline = pipeline_of(file, set_, work)
    if dry_run:
        plans = rewriting.estimate(pipeline)
        words = [
            f"{plan.rewriter}: {plan.rewrites - plan.done:,} rewrites to write, {plan.done:,} done, {plan.alone:,} of {plan.turns:,} turns stand alone; "
            f"about {duration(plan.seconds)} here"
            for plan in plans
        ]
        tell(as_json, [dataclasses.asdict(plan) for plan in plans], "\n".join(words))
        tell_next("rewrite", file, set_, work)
        return
    done, rows = pipeline.open_step(lambda: rewriting.rewrite(pipeline), rewriting.read_rewrites)
    elsewhere = {there.experiment.name: rewriting.rewrite(there).result["rewriters"] for there in pipeline.elsewhere if there.experiment.rewriter}
    written = rewriting.write_rewrite_files(rows, export) if export else []
    result = {"rewrites": str(done.folder / rewriting.REWRITES), **done.result, "elsewhere": elsewhere, "exported": [str(path) for path in written]}
    if as_json:
        print_json(result)
        return
    turns = {query.query_id: query.text for query in pipeline.collection.all_queries()}
    others = {f"{name}, {collection}": told for collection, found in elsewhere.items() for name, told in found.items()}
    for name, told in {**done.result["rewriters"], **others}.items():
        counts = ", ".join(f"{status} {count:,}" for status, count in told["statuses"].items() if count)
        typer.echo(f"{name}: {told['turns']:,} turns: {counts}")
    _show_examples(rows, turns)
    typer.echo(f"\nall with their lineage: {result['rewrites']}")
    for path in written:
        typer.echo(f"wrote {path}", err=True)
    tell_next("candidates", file, set_, work)


def _show_examples(rows: list[dict[str, Any]], turns: dict[str, str]) -> None:
    """Some turns with what each rewriter made of them: those that were changed first, spread over the turns."""
    said: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["status"] == "written":
            said.setdefault(row["query_id"], {})[row["rewriter"]] = row["text"]
    changed = [query_id for query_id, own in said.items() if any(text != turns[query_id] for text in own.values())] or list(said)
    for query_id in changed[:: max(1, len(changed) // EXAMPLES)][:EXAMPLES]:
        typer.echo(f"\n{query_id}: {' '.join(turns[query_id].split())}")
        for name, text in said[query_id].items():
            typer.echo(f"  {name}: {text}")
