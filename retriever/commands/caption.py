"""Synthetic captions of train images, for reinforced training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from retriever.commands.console import WORK, File, Json, Set, Work, duration, pipeline_of, print_json, tell, tell_next

EXAMPLES = 3


def caption(
    file: File,
    set_: Set = None,
    work: Work = WORK,
    as_json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many captions would be written, and how long it takes; write nothing.")] = False,
    export: Annotated[
        Path | None, typer.Option("--export", help="Write the captions as JSON lines, as reinforce.synthetic_captions reads them.", metavar="FILE.jsonl")
    ] = None,
) -> None:
    """Write captions of train images, for reinforced training."""
    from retriever.captioning import step as captioning

    pipeline = pipeline_of(file, set_, work)
    if dry_run:
        plans = captioning.estimate(pipeline)
        words = [
            f"{plan.captioner}: {plan.captions - plan.done:,} captions of {plan.images:,} images to write, {plan.done:,} done; "
            f"about {duration(plan.seconds)} here"
            for plan in plans
        ]
        tell(as_json, [dataclasses.asdict(plan) for plan in plans], "\n".join(words))
        tell_next("caption", file, set_, work)
        return
    done, rows = pipeline.open_step(lambda: captioning.caption(pipeline), captioning.read_captions)
    if export:
        captioning.write_caption_file(rows, export)
    result = {"captions": str(done.folder / captioning.CAPTIONS), **done.result, "exported": str(export) if export else None}
    if as_json:
        print_json(result)
        return
    for name, told in done.result["captioners"].items():
        counts = ", ".join(f"{status} {count:,}" for status, count in told["statuses"].items() if count)
        typer.echo(f"{name}: {done.result['images']:,} images: {counts}")
    _show_examples(rows)
    typer.echo(f"\nall with their lineage: {result['captions']}")
    if export:
        typer.echo(f"wrote {export}", err=True)
    tell_next("reinforce", file, set_, work)


def _show_examples(rows: list[dict[str, Any]]) -> None:
    """Some images with all their captions, spread over the images."""
    said: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] == "written":
            said.setdefault(row["doc_id"], []).append(f"  {row['captioner']}: {row['text']}")
    images = list(said)
    for doc_id in images[:: max(1, len(images) // EXAMPLES)][:EXAMPLES]:
        typer.echo("\n" + "\n".join([doc_id, *said[doc_id]]))
