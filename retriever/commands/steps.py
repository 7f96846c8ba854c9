"""The steps of an experiment, each a command, and `distill`, which is all of them."""

from __future__ import annotations

import dataclasses
import re
import shlex
from typing import Annotated

import typer

from retriever.commands.console import WORK, File, Json, Set, Work, duration, pipeline_of, show_report, tell, tell_next
from retriever.errors import ConfigError


def candidates(file: File, set_: Set = None, work: Work = WORK, as_json: Json = False) -> None:
    """Find the documents that teachers will score."""
    pipeline = pipeline_of(file, set_, work)
    found = {split: {"queries": len(run), "pairs": run.n_pairs} for split, run in pipeline.candidates.items()}
    tell(as_json, found, "\n".join(f"{split}: {counts['queries']:,} queries, {counts['pairs']:,} pairs" for split, counts in found.items()))
    tell_next("score", file, set_, work)


def teach(file: File, set_: Set = None, work: Work = WORK, as_json: Json = False) -> None:
    """Teach the teachers that have a `train` table. They learn from the train qrels."""
    from retriever.steps.teach import teach_all

    taught = teach_all(pipeline_of(file, set_, work))
    if not taught:
        raise ConfigError(f'{file}: no teacher has a "train" table, so there is nothing to teach')
    tell(as_json, taught, "\n".join(f"{name}: {model}" for name, model in taught.items()))
    tell_next("score", file, set_, work)


def score(
    file: File,
    set_: Set = None,
    work: Work = WORK,
    as_json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many pairs, bytes and minutes; score nothing.")] = False,
    shard: Annotated[str | None, typer.Option("--shard", help="Score only part i of n, into a store of its own.", metavar="i/n")] = None,
) -> None:
    """Let the teachers score the candidates, once for each pair."""
    from retriever.eval.wording import size
    from retriever.scores.plan import estimate

    number, parts = _part(shard) if shard else (1, 1)
    if shard and dry_run:
        raise ConfigError("--shard and --dry-run: the plan is made for all parts together. Leave one of the two out")
    pipeline = pipeline_of(file, set_, work)
    if shard:
        from retriever.steps.score import score_part

        store = score_part(pipeline, number, parts)
        tell(as_json, {"store": str(store), "part": number, "parts": parts}, str(store))
        stores = [str(pipeline.folder / f"score-{one}-of-{parts}") for one in range(1, parts + 1)]
        typer.echo(f"next, when all parts are done: {shlex.join(['retriever', 'store', 'merge', *stores, str(pipeline.folder)])}", err=True)
        return
    if dry_run:
        plans = estimate(pipeline)
        words = [
            f"{plan.teacher}: {plan.pending:,} pairs to score, {plan.done:,} done; about {duration(plan.seconds)} here, {size(plan.bytes)}" for plan in plans
        ]
        tell(as_json, [dataclasses.asdict(plan) for plan in plans], "\n".join(words))
        tell_next("score", file, set_, work)
        return
    scored = {name: {split: runs[name].n_pairs for split, runs in pipeline.scores.items()} for name in pipeline.teachers}
    tell(as_json, scored, "\n".join(f"{name}: {counts['train']:,} train and {counts['test']:,} test pairs" for name, counts in scored.items()))
    tell_next("train", file, set_, work)


def _part(shard: str) -> tuple[int, int]:
    """The two numbers of "i/n"."""
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", shard)
    if not found or int(found[1]) > int(found[2]):
        raise ConfigError(f"--shard {shard}: expected the number of a part and the count of parts, for example 1/4 to 4/4")
    return int(found[1]), int(found[2])


def train(file: File, set_: Set = None, work: Work = WORK, as_json: Json = False) -> None:
    """Train the student from the stored scores."""
    done = pipeline_of(file, set_, work).trained
    result = {"student": str(done.folder / "student"), **done.result}
    best = result["validation"]
    tell(as_json, result, f"{result['student']}\nheld-out train queries: {best['before']:.4f} before, {best['value']:.4f} at step {best['step']:.0f}")
    tell_next("index", file, set_, work)


def evaluate(
    file: File,
    set_: Set = None,
    work: Work = WORK,
    as_json: Json = False,
    redraw: Annotated[bool, typer.Option("--redraw", help="Only draw report.html again from report.json.")] = False,
) -> None:
    """Measure, time and compare everything on the test queries. Writes the report."""
    pipeline = pipeline_of(file, set_, work)
    if redraw:
        from retriever.eval.report import redraw_report

        redraw_report(pipeline.folder / "evaluate")
    show_report(pipeline, as_json)


def distill(file: File, set_: Set = None, work: Work = WORK, as_json: Json = False) -> None:
    """The whole way: candidates, scores, student, index and report. What is done already is not repeated."""
    show_report(pipeline_of(file, set_, work), as_json)
