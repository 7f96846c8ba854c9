"""What every command shares: its options, the way to the pipeline, and how results are shown."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from retriever.pipeline import Pipeline

File = Annotated[Path, typer.Argument(help="Experiment file (TOML).", metavar="FILE.toml")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a key, for example --set training.epochs=3.", metavar="KEY=VALUE")]
Work = Annotated[Path, typer.Option("--work", help="Folder that holds a folder for each experiment.", metavar="FOLDER")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Url = Annotated[
    str | None, typer.Option("--url", help="Ask this server, whose index INDEX then names; its key is in the variable RETRIEVER_KEY.", metavar="URL")
]
WORK = Path("work")

AROUND_COMMAND = contextlib.ExitStack()
"""What is to be left when the command is done, or fails."""


def pipeline_of(file: Path, overrides: list[str] | None, work: Path) -> Pipeline:
    """The experiment's pipeline; words and bars go to standard error. Of several processes only the first one comes back from here."""
    from retriever.config import read_experiment

    experiment = read_experiment(file, overrides or ())  # a mistake in the file is told before anything heavy is imported
    from retriever.pipeline import Pipeline
    from retriever.progress import Terminal
    from retriever.workers.processes import training_together

    pipeline = Pipeline(experiment, work, Terminal())
    if not AROUND_COMMAND.enter_context(training_together(pipeline)):
        raise typer.Exit
    return pipeline


def show_report(pipeline: Pipeline, as_json: bool) -> None:
    """Evaluates and prints: report.json, or the table, the verdict and what to do next."""
    from retriever.eval.report import read_report
    from retriever.eval.terminal import terminal_table
    from retriever.eval.wording import verdict
    from retriever.steps.evaluate import evaluate_experiment

    folder = evaluate_experiment(pipeline).folder
    if as_json:
        typer.echo((folder / "report.json").read_text(encoding="utf-8"))
        return
    report = read_report(folder)
    print_table(terminal_table(report))
    typer.echo(f"\n{verdict(report).sentence}\nreport: {folder / 'report.html'}")
    typer.echo(f"next:   {_search(pipeline)}")


def _search(pipeline: Pipeline) -> str:
    """A search that the user can try: of images by a caption, if there are any, else by the first test query."""
    queries = list(pipeline.queries("test").values())
    query = next((query for query in queries if query.text), queries[0])
    asked = f'"{query.text}"' if query.text else f"--image {shlex.quote(str(query.image))}"
    conditions = "".join(f" --filter {shlex.quote(f'{field}={value}')}" for field, value in query.among.items() if isinstance(value, str))
    return f"retriever search {pipeline.folder} {asked}{conditions}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def tell(as_json: bool, value: Any, words: str) -> None:
    """The result on standard output: the value as JSON, or the words."""
    if as_json:
        print_json(value)
    else:
        typer.echo(words)


def tell_next(command: str, file: Path, overrides: list[str] | None, work: Path) -> None:
    """The command that follows, with the same options, on standard error."""
    options = [part for override in overrides or () for part in ("--set", override)] + (["--work", str(work)] if work != WORK else [])
    typer.echo(f"next: {shlex.join(['retriever', command, str(file), *options])}", err=True)


def print_json(value: Any) -> None:
    """One line of JSON on standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def table_of(*headings: str) -> Table:
    """An empty table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading)
    return table


def print_table(table: Table) -> None:
    """A table on standard output, as wide as the terminal."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 120).print(table, markup=False)
