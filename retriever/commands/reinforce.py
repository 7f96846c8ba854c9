"""Reinforced datasets: what teachers make of augmented images and of captions, kept for training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retriever.commands.console import WORK, Json, Set, Work, duration, pipeline_of, print_json, tell, tell_next
from retriever.errors import ConfigError, DataError

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline


def reinforce(
    file: Annotated[
        Path | None, typer.Argument(help="Experiment file (TOML); with --verify only needed where the dataset keeps no images.", metavar="FILE.toml")
    ] = None,
    set_: Set = None,
    work: Work = WORK,
    as_json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many images, captions, bytes and minutes; make nothing.")] = False,
    verify: Annotated[Path | None, typer.Option("--verify", help="Look at every file of this reinforced dataset; make nothing.", metavar="FOLDER")] = None,
) -> None:
    """Augment train images, and keep what teachers make of them."""
    if verify is not None:
        _verify(verify, pipeline_of(file, set_, work) if file else None, as_json)
        return
    if file is None:
        raise ConfigError("reinforce: name an experiment file to make a dataset, or a dataset to look at: retriever reinforce --verify FOLDER")
    from retriever.eval.wording import size
    from retriever.reinforced import step as reinforce_step
    from retriever.reinforced.shards import ReinforcedDataset

    pipeline = pipeline_of(file, set_, work)
    if dry_run:
        found = reinforce_step.prospect(pipeline)
        words = (
            f"{found.images - found.done:,} images to reinforce, {found.done:,} done: {found.augmentations} augmentations of each, "
            f"{found.captions:,} captions and {found.synthetic:,} synthetic ones in all; about {duration(found.seconds)} here, {size(found.bytes)}"
        )
        words += f"\n{found.to_write:,} captions to write first, which are not counted: retriever caption --dry-run" if found.to_write else ""
        tell(as_json, dataclasses.asdict(found), words)
        tell_next("reinforce", file, set_, work)
        return
    done, dataset = pipeline.open_step(lambda: reinforce_step.reinforce(pipeline), ReinforcedDataset)
    if as_json:
        print_json({"dataset": str(done.folder), **done.result})
        return
    result = done.result
    typer.echo(
        f"{result['images']:,} images, {result['augmentations']} augmentations of each, {result['captions']:,} captions, {result['synthetic']:,} synthetic"
    )
    typer.echo("teachers: " + ", ".join(f"{one.name} ({one.dimensions} dimensions, logit scale {one.logit_scale:g})" for one in dataset.teachers))
    typer.echo(f"dataset:  {done.folder}")
    learns = bool(pipeline.experiment.training.losses.get("reinforced"))
    tell_next("train", file, [*(set_ or ()), *([] if learns else ["training.losses={ reinforced = 1.0 }"])], work)


def _verify(folder: Path, pipeline: Pipeline | None, as_json: bool) -> None:
    """Prints what was looked at; images that the dataset does not keep are looked for in the experiment's collection.

    Raises:
        DataError: the dataset is not in order; the first problem is named.
    """
    from retriever.progress import Terminal
    from retriever.reinforced.check import verify
    from retriever.reinforced.shards import ReinforcedDataset

    with Terminal().bar("verifying images", len(ReinforcedDataset(folder))) as advance:
        found = verify(folder, advance, (lambda doc_id: pipeline.collection.document(doc_id).image) if pipeline else (lambda doc_id: None))
    if as_json:
        print_json(dataclasses.asdict(found))
    if found.problems:
        more = f" ({len(found.problems) - 1} more; --json lists them)" if len(found.problems) > 1 else ""
        raise DataError(f"{found.problems[0]}{more}. Make it again with: retriever reinforce FILE.toml")
    if not as_json:
        typer.echo(f"{found.images:,} images in order; {found.remade:,} augmented ones were made again, and are the pixels that the teachers saw")
