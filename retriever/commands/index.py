"""Building an index and caring for it: `retriever index FILE.toml`, and a group of commands under the same name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from retriever.commands.console import WORK, File, Json, Set, Work, pipeline_of, print_json, print_table, table_of, tell, tell_next

if TYPE_CHECKING:
    from retriever.index.changes import Changed
    from retriever.index.snapshot import Snapshot
    from retriever.types import Document


class _BuildsByDefault(TyperGroup):
    """A first argument that is none of the commands belongs to `build`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["build", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_BuildsByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Build an index (index FILE.toml), or change, check, mend one.",
)

Index = Annotated[Path, typer.Argument(help="Index folder, or the folder of the experiment that built it.", metavar="INDEX")]


To = Annotated[
    str | None, typer.Option("--to", help="Then fill a collection of an engine: qdrant://HOST:6333/NAME or milvus://HOST:19530/NAME.", metavar="ADDRESS")
]


@app.command()
def build(file: File, set_: Set = None, work: Work = WORK, to: To = None, as_json: Json = False) -> None:
    """Encode the collection with the student and build its index. The word build may be left out."""
    from retriever.eval.wording import size
    from retriever.remote.addresses import parse_address

    if to:
        parse_address(to)  # a wrong one is told before anything long is begun
    found = pipeline_of(file, set_, work).index
    kinds = [segment.facts.kind for segment in found.snapshot.segments]
    result = {"index": str(found.folder), "version": found.snapshot.version.number, "documents": len(found), "bytes": found.bytes, "kinds": kinds}
    if to:
        result["uploaded"] = _upload(found.snapshot, to)
    tell(as_json, result, f"{found.folder}: {len(found):,} documents, {size(found.bytes)}, {', '.join(kinds)}")
    tell_next("evaluate", file, set_, work)


@app.command()
def add(
    index: Index,
    documents: Annotated[Path | None, typer.Argument(help="JSON lines, plain or gzip; standard input when left out.", metavar="FILE")] = None,
    fields: Annotated[list[str] | None, typer.Option("--field", help="A field to keep beside those that the index has.", metavar="NAME")] = None,
    as_json: Json = False,
) -> None:
    """Add documents. One whose id is there already takes the place of the old one."""
    from retriever.index.changes import add
    from retriever.index.layout import index_folder, read_version
    from retriever.index.segments import fields_of
    from retriever.progress import Terminal, quiet_libraries

    folder = index_folder(index)
    with quiet_libraries():
        known = fields_of(folder, read_version(folder))
        changed = add(folder, _documents(documents, [*known, *(fields or [])]), Terminal())
    _tell_change(changed, folder, as_json)


@app.command()
def delete(
    index: Index,
    doc_ids: Annotated[list[str] | None, typer.Argument(help="Ids of documents; one a line on standard input when left out.", metavar="ID...")] = None,
    ignore_missing: Annotated[bool, typer.Option("--ignore-missing", help="Pass over ids that are not there.")] = False,
    as_json: Json = False,
) -> None:
    """Delete documents by their ids. They cannot be found any more; `compact` and `prune` free their room."""
    from retriever.index.changes import delete
    from retriever.index.layout import index_folder

    wanted = doc_ids or [line.strip() for line in sys.stdin if line.strip()]
    folder = index_folder(index)
    _tell_change(delete(folder, wanted, ignore_missing), folder, as_json)


@app.command()
def compact(index: Index, as_json: Json = False) -> None:
    """Put all segments together into one, without deleted documents."""
    from retriever.index.changes import compact
    from retriever.index.layout import index_folder
    from retriever.progress import Terminal, quiet_libraries

    folder = index_folder(index)
    with quiet_libraries():
        changed = compact(folder, Terminal())
    _tell_change(changed, folder, as_json)
    typer.echo(f"next: retriever index prune {index}", err=True)


@app.command()
def upload(
    index: Index, address: Annotated[str, typer.Argument(help="qdrant://HOST:6333/NAME or milvus://HOST:19530/NAME.", metavar="ADDRESS")], as_json: Json = False
) -> None:
    """Fill a collection of an engine with the index's documents. One that was stopped goes on."""
    from retriever.progress import quiet_libraries
    from retriever.search import open_index

    with quiet_libraries():
        done = _upload(open_index(index).snapshot, address)
    tell(as_json, done, f"{address}: {done['documents']:,} documents, {done['sent']:,} sent now; recall@10 {done['recall']:.3f}")
    typer.echo(f'next: retriever search {address} "..." --student {index}', err=True)


@app.command()
def export(
    index: Index,
    folder: Annotated[Path, typer.Argument(help="Folder to write.", metavar="FOLDER")],
    form: Annotated[str, typer.Option("--format", help="impacts (of a sparse student, for Anserini) or faiss (for Pyserini).", metavar="NAME")],
    as_json: Json = False,
) -> None:
    """Write the index for Anserini and Pyserini."""
    from retriever.index.elsewhere import export_index, known_format
    from retriever.progress import quiet_libraries
    from retriever.search import open_index

    wanted = known_format(form)
    with quiet_libraries():
        done = export_index(open_index(index).snapshot, folder, wanted)
    tell(as_json, {"folder": str(folder), **done}, f"{folder}: {done['documents']:,} documents")


@app.command()
def verify(index: Index, as_json: Json = False) -> None:
    """Look for damage: checksums, counts, ids, the student. Changes nothing; exit status 1 when something is wrong."""
    from retriever.index.layout import index_folder
    from retriever.index.soundness import verify
    from retriever.progress import Terminal, quiet_libraries

    with quiet_libraries():
        problems = verify(index_folder(index), Terminal())
    found = [{"path": problem.where, "problem": problem.what} for problem in problems]
    tell(as_json, found, "\n".join(map(str, problems)) or "nothing is wrong")
    if problems:
        typer.echo(f"next: retriever index repair {index}", err=True)
        raise typer.Exit(1)


@app.command()
def repair(index: Index, as_json: Json = False) -> None:
    """Mend what can be mended: damaged engines are built again from their documents. Exit status 1 when something stays wrong."""
    from retriever.index.layout import index_folder
    from retriever.index.soundness import repair, verify
    from retriever.progress import Terminal, quiet_libraries

    folder = index_folder(index)
    with quiet_libraries():
        done = repair(folder, Terminal())
        left = verify(folder)
    tell(as_json, {"done": done, "left": [str(problem) for problem in left]}, "\n".join([*done, *map(str, left)]) or "nothing was wrong")
    if left:
        raise typer.Exit(1)


@app.command()
def stats(index: Index, as_json: Json = False) -> None:
    """Say what an index holds and takes: segments, versions, bytes."""
    from retriever.eval.wording import size
    from retriever.index.layout import index_folder
    from retriever.index.soundness import stats

    found = stats(index_folder(index))
    if as_json:
        print_json(found)
        return
    typer.echo(
        f"{found['index']}: version {found['version']}, {found['documents']:,} documents, {size(found['bytes'])} of index, "
        f"{size(found['document_bytes'])} of documents, a {found['student_kind']} student"
    )
    table = table_of("segment", "kind", "documents", "deleted", "dimensions", "index", "documents", "fields")
    for one in found["segments"]:
        counts = (f"{one['documents']:,}", f"{one['deleted']:,}", f"{one['dimensions']:,}", size(one["bytes"]), size(one["document_bytes"]))
        table.add_row(one["name"], one["kind"], *counts, ", ".join(one["fields"]))
    print_table(table)
    table = table_of("version", "made", "documents", "change")
    for one in found["versions"]:
        count = "" if one["documents"] is None else f"{one['documents']:,}"
        table.add_row(str(one["number"]), one["made"] or "", count, one["change"])
    print_table(table)


@app.command()
def rollback(
    index: Index, to: Annotated[int, typer.Option("--to", min=1, help="A version that is kept; see stats.", metavar="VERSION")], as_json: Json = False
) -> None:
    """Go back to an earlier version. It becomes a new one, so that this can be undone too."""
    from retriever.index.changes import roll_back
    from retriever.index.layout import index_folder
    from retriever.progress import quiet_libraries

    folder = index_folder(index)
    with quiet_libraries():
        version = roll_back(folder, to)
    result = {"index": str(folder), "version": version.number, "documents": version.documents}
    tell(as_json, result, f"{folder}: version {version.number} is as version {to} was, {version.documents:,} documents")


@app.command()
def prune(index: Index, as_json: Json = False) -> None:
    """Remove all versions but the current one, and what only they need."""
    from retriever.eval.wording import size
    from retriever.index.changes import prune
    from retriever.index.layout import index_folder

    freed = prune(index_folder(index))
    tell(as_json, {"freed": freed}, f"{size(freed)} freed")


def _documents(path: Path | None, fields: list[str]) -> Iterator[tuple[str, Document]]:
    """The documents of JSON lines, each with where it stands."""
    from retriever.readers import _records, _text

    source = path or Path("/dev/stdin")
    for where, record in _text.json_lines(source):
        yield where, _records.document(where, record, source.parent, fields)


def _upload(snapshot: Snapshot, address: str) -> dict[str, Any]:
    import dataclasses

    from retriever.index.elsewhere import upload_index
    from retriever.progress import Terminal

    return {"address": address, **dataclasses.asdict(upload_index(snapshot, address, Terminal()))}


def _tell_change(changed: Changed, folder: Path, as_json: bool) -> None:
    import dataclasses

    done = [f"{count:,} {what}" for count, what in ((changed.added, "added"), (changed.replaced, "replaced"), (changed.deleted, "deleted")) if count]
    words = f"{folder}: {', '.join(done) or 'nothing changed'}; version {changed.version}, {changed.documents:,} documents"
    tell(as_json, {"index": str(folder), **dataclasses.asdict(changed)}, words)
