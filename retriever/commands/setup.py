"""Commands before an experiment: what this machine has, a new file, its check, and the demo."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retriever.commands.console import WORK, File, Json, Set, Work, pipeline_of, print_json, print_table, show_report, table_of, tell_next
from retriever.commands.serve import offer_page
from retriever.errors import ConfigError

if TYPE_CHECKING:
    from retriever.check import ConversationsReport


def doctor(as_json: Json = False) -> None:
    """Versions, devices, what is missing and the line that mends it."""
    from retriever.doctor import examine

    findings = examine()
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        table = table_of("", "found", "")
        marks = {"ok": "", "warning": "warning", "problem": "PROBLEM"}
        for finding in findings:
            table.add_row(finding.name, finding.value, " ".join(part for part in (marks[finding.status], finding.advice) if part))
        print_table(table)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


def init(
    folder: Annotated[Path, typer.Argument(help="Folder for the experiment; its name is the experiment's.", metavar="FOLDER")],
    collection: Annotated[str, typer.Option("--collection", help="Folder of the collection, or ir_datasets:ID.", metavar="FOLDER")],
    student: Annotated[str, typer.Option("--student", help="Starting checkpoint of the student.", metavar="MODEL")] = "sentence-transformers/all-MiniLM-L6-v2",
    generator: Annotated[
        str | None,
        typer.Option("--generator", help="Language model that writes queries for a collection without any; left out, its first sentences are taken."),
    ] = None,
) -> None:
    """Write a new experiment file with every key explained."""
    from retriever.config import experiment_from
    from retriever.experiment_file import as_toml
    from retriever.files import write_text
    from retriever.readers import has_queries

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
    if generator:
        values["generation"] = {"method": "llm", "model": generator}
    elif "path" in source and not has_queries(Path(source["path"])):
        values["generation"] = {"method": "first_sentence"}
    write_text(path, as_toml(experiment_from(values, str(path)), explain=True))
    typer.echo(f"wrote {path}; next: retriever check {path}", err=True)
    typer.echo(path)


def check(file: File, set_: Set = None, work: Work = WORK, as_json: Json = False) -> None:
    """Validate the file and the collection; print every setting."""
    from retriever.check import check_collection
    from retriever.conversations.rewriting import turns_to_rewrite
    from retriever.experiment_file import as_toml
    from retriever.generation.step import check_beside
    from retriever.queries import judged_queries, unjudged_queries

    pipeline = pipeline_of(file, set_, work)
    settings = pipeline.experiment.collection
    report = check_collection(pipeline.documents, settings.train, settings.test)
    generation = pipeline.experiment.generation
    if generation:
        check_beside(pipeline)
    if generation is None or settings.unjudged:
        judged_queries(pipeline.documents, settings, pipeline.reporter.say)  # asking the pipeline would have turns rewritten
    rewriters = {} if generation and not settings.unjudged else turns_to_rewrite(pipeline)  # generated queries are no turns, and there are none yet
    if as_json:
        print_json({"experiment": pipeline.experiment.model_dump(mode="json"), "collection": dataclasses.asdict(report), "turns_to_rewrite": rewriters})
        return
    typer.echo(as_toml(pipeline.experiment))
    splits = ", ".join(f"{name}: {split.queries:,} queries with {split.judged_pairs:,} judged pairs" for name, split in report.splits.items())
    typer.echo(f"{report.documents:,} documents; {splits or 'no queries'}", err=True)
    if report.conversations:
        typer.echo(_conversations_line(report.conversations), err=True)
    if report.unjudged_queries and not settings.folds and (settings.unjudged or not generation):
        typer.echo(_unjudged_line(report.unjudged_queries, len(unjudged_queries(pipeline.documents, settings)) if settings.unjudged else None), err=True)
    if generation:
        becomes = "queries are generated to teach beside the judged ones" if settings.unjudged else "train queries are generated"
        typer.echo(f"{becomes} ({generation.method}): retriever generate {file} --dry-run", err=True)
    for name, turns in rewriters.items():
        typer.echo(f"rewriter {name}: {turns:,} turns with others before them", err=True)
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
    tell_next("distill", file, set_, work)


def _unjudged_line(queries: int, teach: int | None) -> str:
    if teach is None:
        return f"{queries:,} queries without judgements are not used; to let them teach by teachers' scores: collection.unjudged = true"
    left = f"; {queries - teach:,} do not, their texts are judged or tests would know them again" if teach < queries else ""
    return f"{teach:,} queries without judgements teach by teachers' scores alone{left}"


def _conversations_line(report: ConversationsReport) -> str:
    rewrites = ", ".join(f"{rewriter} {turns:,}" for rewriter, turns in report.rewrites.items())
    depth = f"{report.median_depth:,} deep in the median, {report.max_depth:,} at most"
    return f"{report.conversations:,} conversations with {report.turns:,} turns, {depth}; {f'turns with a rewrite: {rewrites}' if rewrites else 'no rewrites'}"


def demo(work: Work = WORK, as_json: Json = False) -> None:
    """The main job on documentation installed here, in minutes."""
    from retriever.documentation.demo import prepare_demo
    from retriever.progress import Terminal

    pipeline = prepare_demo(work, Terminal())
    show_report(pipeline, as_json)
    if not as_json:
        typer.echo(f"        retriever evaluate {work / 'demo.toml'} --json")
        offer_page({"student": pipeline.folder, "before": pipeline.folder / "index_before"})
