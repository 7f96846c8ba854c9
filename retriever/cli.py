"""The command line: it reads arguments, calls the public functions and prints. Nothing heavy is imported before it is used."""

from __future__ import annotations

import dataclasses
import errno
import json
import shlex
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retriever.errors import ConfigError, RetrieverError

if TYPE_CHECKING:
    from rich.table import Table

    from retriever.pipeline import Pipeline
    from retriever.search import SearchIndex

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Distils slow, good rankers into fast retrievers: score, train, index, search, evaluate.",
)

File = Annotated[Path, typer.Argument(help="Experiment file (TOML).", metavar="FILE.toml")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a key, for example --set training.epochs=3.", metavar="KEY=VALUE")]
Work = Annotated[Path, typer.Option("--work", help="Folder that holds a folder for each experiment.", metavar="FOLDER")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
WORK = Path("work")
PLACES_THAT_CANNOT_BE_USED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOSPC, errno.EIO)
"""What the operating system says of a work folder that is a file, write-protected, full or broken."""


def main() -> None:
    """Runs the command; a user's mistake is one line and exit status 2, Ctrl-C is 130."""
    try:
        app(prog_name="retriever")
    except RetrieverError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stop:  # typer turns Ctrl-C into exit status 130
        if isinstance(stop, SystemExit) and stop.code != 130:
            raise
        typer.echo("stopped; what is done is kept, and the same command goes on from there", err=True)
        sys.exit(130)
    except OSError as error:
        if error.errno not in PLACES_THAT_CANNOT_BE_USED:
            raise
        place = error.filename2 or error.filename or "a file"
        typer.echo(f"error: {place}: {error.strerror}. Mend that, or name another place, and run the same command again", err=True)
        sys.exit(2)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Versions, devices, what is missing and the line that mends it."""
    from retriever.doctor import examine

    findings = examine()
    if as_json:
        _print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        table = _table("", "found", "")
        marks = {"ok": "", "warning": "warning", "problem": "PROBLEM"}
        for finding in findings:
            table.add_row(finding.name, finding.value, " ".join(part for part in (marks[finding.status], finding.advice) if part))
        _print(table)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder for the experiment; its name is the experiment's.", metavar="FOLDER")],
    collection: Annotated[str, typer.Option("--collection", help="Folder of the collection, or ir_datasets:ID.", metavar="FOLDER")],
    student: Annotated[str, typer.Option("--student", help="Starting checkpoint of the student.", metavar="MODEL")] = "sentence-transformers/all-MiniLM-L6-v2",
) -> None:
    """Write a new experiment file with every key explained."""
    from retriever.config import experiment_from
    from retriever.experiment_file import as_toml
    from retriever.files import write_text

    path = folder / "experiment.toml"
    if path.exists():
        raise ConfigError(f"{path}: is there already; it was left as it is. Give another folder")
    name = collection.removeprefix("ir_datasets:")
    source = {"ir_datasets": name} if name != collection else {"path": str(Path(collection).expanduser().resolve())}
    teachers = [{"kind": "lexical"}, {"kind": "embedding", "model": "student"}]
    values = {
        "name": folder.resolve().name,
        "collection": source,
        "teacher": teachers,
        "student": {"model": student},
        "candidates": {"sources": ["bm25", "student"]},
    }
    values["training"] = {"losses": {"kl_divergence": 1.0, "contrastive": 0.2}}
    write_text(path, as_toml(experiment_from(values, str(path)), explain=True))
    typer.echo(f"wrote {path}; next: retriever check {path}", err=True)
    typer.echo(path)


@app.command()
def check(file: File, set_: Set = None, work: Work = WORK, as_json: Json = False) -> None:
    """Validate the file and the collection; print every setting."""
    from retriever.check import check_collection
    from retriever.experiment_file import as_toml

    pipeline = _pipeline(file, set_, work)
    settings = pipeline.experiment.collection
    report = check_collection(pipeline.collection, settings.train, settings.test)
    pipeline.queries("train"), pipeline.queries("test")
    if as_json:
        _print_json({"experiment": pipeline.experiment.model_dump(mode="json"), "collection": dataclasses.asdict(report)})
        return
    typer.echo(as_toml(pipeline.experiment))
    splits = ", ".join(f"{name}: {split.queries:,} queries with {split.judged_pairs:,} judged pairs" for name, split in report.splits.items())
    typer.echo(f"{report.documents:,} documents; {splits}", err=True)
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
    _tell_next("distill", file, set_, work)


@app.command()
def candidates(file: File, set_: Set = None, work: Work = WORK, as_json: Json = False) -> None:
    """Find the documents that teachers will score."""
    pipeline = _pipeline(file, set_, work)
    found = {split: {"queries": len(run), "pairs": run.n_pairs} for split, run in pipeline.candidates.items()}
    _tell(as_json, found, "\n".join(f"{split}: {counts['queries']:,} queries, {counts['pairs']:,} pairs" for split, counts in found.items()))
    _tell_next("score", file, set_, work)


@app.command()
def teach(file: File, set_: Set = None, work: Work = WORK, as_json: Json = False) -> None:
    """Teach the teachers that have a `train` table. They learn from the train qrels."""
    pipeline = _pipeline(file, set_, work)
    taught = {settings.label: pipeline.teach(settings).model for settings in pipeline.experiment.teacher if settings.train}
    if not taught:
        raise ConfigError(f'{file}: no teacher has a "train" table, so there is nothing to teach')
    _tell(as_json, taught, "\n".join(f"{name}: {model}" for name, model in taught.items()))
    _tell_next("score", file, set_, work)


@app.command()
def score(
    file: File,
    set_: Set = None,
    work: Work = WORK,
    as_json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many pairs, bytes and minutes; score nothing.")] = False,
) -> None:
    """Let the teachers score the candidates, once for each pair."""
    from retriever.eval.wording import size
    from retriever.scoring_plan import estimate

    pipeline = _pipeline(file, set_, work)
    if dry_run:
        plans = estimate(pipeline)
        words = [
            f"{plan.teacher}: {plan.pending:,} pairs to score, {plan.done:,} done; about {_duration(plan.seconds)} here, {size(plan.bytes)}" for plan in plans
        ]
        _tell(as_json, [dataclasses.asdict(plan) for plan in plans], "\n".join(words))
        _tell_next("score", file, set_, work)
        return
    scored = {name: {split: runs[name].n_pairs for split, runs in pipeline.scores.items()} for name in pipeline.teachers}
    _tell(as_json, scored, "\n".join(f"{name}: {counts['train']:,} train and {counts['test']:,} test pairs" for name, counts in scored.items()))
    _tell_next("train", file, set_, work)


@app.command()
def train(file: File, set_: Set = None, work: Work = WORK, as_json: Json = False) -> None:
    """Train the student from the stored scores."""
    done = _pipeline(file, set_, work).trained
    result = {"student": str(done.folder / "student"), **done.result}
    best = result["validation"]
    _tell(as_json, result, f"{result['student']}\nheld-out train queries: {best['before']:.4f} before, {best['value']:.4f} at step {best['step']:.0f}")
    _tell_next("index", file, set_, work)


@app.command()
def index(file: File, set_: Set = None, work: Work = WORK, as_json: Json = False) -> None:
    """Encode the collection with the student and build its index."""
    from retriever.eval.wording import size

    found = _pipeline(file, set_, work).index
    result = {"index": str(found.folder), "documents": len(found.documents), "bytes": found.bytes}
    _tell(as_json, result, f"{found.folder}: {len(found.documents):,} documents, {size(found.bytes)}")
    _tell_next("evaluate", file, set_, work)


@app.command()
def evaluate(
    file: File,
    set_: Set = None,
    work: Work = WORK,
    as_json: Json = False,
    redraw: Annotated[bool, typer.Option("--redraw", help="Only draw report.html again from report.json.")] = False,
) -> None:
    """Measure, time and compare everything on the test queries. Writes the report."""
    pipeline = _pipeline(file, set_, work)
    if redraw:
        from retriever.eval.report import redraw_report

        redraw_report(pipeline.folder / "evaluate")
    _show_report(pipeline, as_json)


@app.command()
def distill(file: File, set_: Set = None, work: Work = WORK, as_json: Json = False) -> None:
    """The whole way: candidates, scores, student, index and report. What is done already is not repeated."""
    _show_report(_pipeline(file, set_, work), as_json)


@app.command()
def search(
    path: Annotated[Path, typer.Argument(help="Index folder, or the folder of the experiment that built it.", metavar="FOLDER")],
    query: Annotated[str | None, typer.Argument(help="What to look for.", metavar="QUERY")] = None,
    queries: Annotated[Path | None, typer.Option("--queries", help="File of queries: id, tab, text; or one text a line.", metavar="FILE")] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Documents for each query.", metavar="NUMBER")] = 10,
    trec: Annotated[Path | None, typer.Option("--trec", help="Write a TREC run instead of printing.", metavar="FILE")] = None,
    as_json: Json = False,
) -> None:
    """Search an index: one query, or a file of them."""
    from retriever.progress import silence_libraries
    from retriever.queries_file import read_queries
    from retriever.search import open_index
    from retriever.types import Query

    if (query is None) == (queries is None):
        raise ConfigError("search: give a query, or a file of them with --queries")
    asked = read_queries(queries) if queries else {"query": Query("query", str(query))}
    if not all(one.text.strip() for one in asked.values()):
        raise ConfigError("search: the query is empty")
    silence_libraries()
    found = open_index(path)
    if trec:
        found.run(asked, k).write_trec(trec)
        typer.echo(f"wrote {trec}", err=True)
    else:
        _show_hits(found, asked, k, as_json)


@app.command()
def demo(work: Work = WORK, as_json: Json = False) -> None:
    """The main job on documentation installed here, in minutes."""
    from retriever.demo import prepare_demo
    from retriever.progress import Terminal

    _show_report(prepare_demo(work, Terminal()), as_json)
    if not as_json:
        typer.echo(f"        retriever evaluate {work / 'demo.toml'} --json")


def _pipeline(file: Path, overrides: list[str] | None, work: Path) -> Pipeline:
    """The experiment's pipeline; words and bars go to standard error."""
    from retriever.config import read_experiment

    experiment = read_experiment(file, overrides or ())  # a mistake in the file is told before anything heavy is imported
    from retriever.pipeline import Pipeline
    from retriever.progress import Terminal

    return Pipeline(experiment, work, Terminal())


def _show_report(pipeline: Pipeline, as_json: bool) -> None:
    from retriever.eval.report import read_report
    from retriever.eval.terminal import terminal_table
    from retriever.eval.wording import verdict
    from retriever.evaluate_step import evaluate_experiment

    folder = evaluate_experiment(pipeline).folder
    if as_json:
        typer.echo((folder / "report.json").read_text(encoding="utf-8"))
        return
    report = read_report(folder)
    _print(terminal_table(report))
    typer.echo(f"\n{verdict(report).sentence}\nreport: {folder / 'report.html'}")
    typer.echo(f'next:   retriever search {pipeline.folder} "{next(iter(pipeline.queries("test").values())).text}"')


def _show_hits(found: SearchIndex, asked: dict[str, Any], k: int, as_json: bool) -> None:
    from retriever.search import snippet

    for query_id, query in asked.items():
        hits = found.hits(query, k)
        if as_json:
            shown = [{"rank": hit.rank, "score": hit.score, "id": hit.document.doc_id, "title": hit.document.title, "text": hit.document.text} for hit in hits]
            _print_json({"query_id": query_id, "query": query.text, "results": shown})
            continue
        if len(asked) > 1:
            typer.secho(f"\n{query_id}: {query.text}", bold=True)
        for hit in hits:
            typer.secho(f"{hit.rank:>3}  {hit.score:.4f}  {hit.document.title or hit.document.doc_id}", bold=True)
            typer.echo(_folded(snippet(hit.document.text, query.text)))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _folded(text: str) -> str:
    """A snippet under its title: indented, and folded where a person reads it."""
    indent = " " * 13
    width = min(shutil.get_terminal_size().columns, 120)
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent) if sys.stdout.isatty() else indent + text


def _tell(as_json: bool, value: Any, words: str) -> None:
    if as_json:
        _print_json(value)
    else:
        typer.echo(words)


def _tell_next(command: str, file: Path, overrides: list[str] | None, work: Path) -> None:
    """The command that follows, with the same options, on standard error."""
    options = [part for override in overrides or () for part in ("--set", override)] + (["--work", str(work)] if work != WORK else [])
    typer.echo(f"next: {shlex.join(['retriever', command, str(file), *options])}", err=True)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


def _table(*headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading)
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 120).print(table, markup=False)
