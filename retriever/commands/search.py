"""Searching an index from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retriever.commands.console import WORK, Json, Set, Url, Work, pipeline_of, print_json
from retriever.commands.hits import plain_hit, show_hits
from retriever.errors import ConfigError

if TYPE_CHECKING:
    from retriever.filters import Condition
    from retriever.types import Query


def search(  # noqa: PLR0913, PLR0917 (a command's options)
    where: Annotated[
        str | None,
        typer.Argument(
            help="Index folder, or the folder of its experiment; an experiment file, for its stages; or an engine's address (with --student). "
            "With --url the name of a served index, or left out.",
            metavar="INDEX",
        ),
    ] = None,
    query: Annotated[str | None, typer.Argument(help="What to look for.", metavar="QUERY")] = None,
    queries: Annotated[Path | None, typer.Option("--queries", help="File of queries: id, tab, text; or one text a line.", metavar="FILE")] = None,
    image: Annotated[Path | None, typer.Option("--image", help="Image to search with, in the place of a text.", metavar="FILE")] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Documents for each query.", metavar="NUMBER")] = 10,
    filters: Annotated[
        list[str] | None, typer.Option("--filter", help="A condition on a field, such as 'year>=2020' or 'language in de,fr'.", metavar="CONDITION")
    ] = None,
    student: Annotated[
        Path | None,
        typer.Option(
            "--student",
            help="Folder of the experiment, index or student that encodes the query: of an engine's collection the one that made it; "
            "of an index another one, whose documents were frozen when it was trained.",
            metavar="FOLDER",
        ),
    ] = None,
    url: Url = None,
    set_: Set = None,
    work: Work = WORK,
    trec: Annotated[Path | None, typer.Option("--trec", help="Write a TREC run instead of printing.", metavar="FILE")] = None,
    as_json: Json = False,
) -> None:
    """Search an index: one query, a file of them, or an image."""
    from retriever.filters import parse_condition
    from retriever.progress import silence_libraries

    named = where
    if url is not None and query is None and queries is None and image is None:
        named, query = None, where  # the only argument is the query
    asked = _asked(query, queries, image)
    conditions = [parse_condition(one) for one in filters or []]
    if url is not None:
        from retriever.commands.served import served_search

        found: Any = served_search("search", url, named, student=student)
    elif where is not None:
        silence_libraries()
        found = _opened(where, student, set_, work)
    else:
        raise ConfigError('search: names no index. Give its folder, and what to look for: retriever search work/notes "the licence"')
    if trec:
        found.run(asked, k, where=conditions).write_trec(trec)
        typer.echo(f"wrote {trec}", err=True)
    else:
        _show_hits(found, asked, k, conditions, as_json)


def _asked(query: str | None, queries: Path | None, image: Path | None) -> dict[str, Query]:
    """What is asked: one of the three."""
    from retriever.commands.queries_file import read_queries
    from retriever.types import Query

    if sum(one is not None for one in (query, queries, image)) != 1:
        raise ConfigError("search: give a query, a file of them with --queries, or an image with --image")
    if image is not None:
        from retriever.images.reading import read_image

        read_image(image)  # one that cannot be read is told before the index is opened
        return {"query": Query("query", "", image=image)}
    asked = read_queries(queries) if queries else {"query": Query("query", str(query))}
    if not all(one.text.strip() for one in asked.values()):
        raise ConfigError("search: the query is empty")
    return asked


def _opened(where: str, student: Path | None, set_: list[str] | None, work: Path) -> Any:
    """An index on disk, the stages of an experiment file, or a collection of an engine: all of them have `hits` and `run`."""
    from retriever.remote.addresses import is_address

    if is_address(where):
        from retriever.remote.search import open_remote_search

        if student is None:
            raise ConfigError(f"search: {where} keeps no student. Give the one that made it: --student FOLDER")
        return open_remote_search(where, student)
    if where.endswith(".toml"):
        if student is not None:
            raise ConfigError("search: --student is for an index or an engine's address; the student of an experiment file's stages is its own")
        from retriever.steps.stages import open_stages

        return open_stages(pipeline_of(Path(where), set_, work))
    from retriever.search import open_index

    return open_index(Path(where), student)


def _show_hits(found: Any, asked: dict[str, Query], k: int, where: list[Condition], as_json: bool) -> None:
    for query_id, query in asked.items():
        hits = found.hits(query, k, where)
        if as_json:
            image = {"image": str(query.image)} if query.image else {}
            print_json({"query_id": query_id, "query": query.text, **image, "results": [plain_hit(hit) for hit in hits]})
            continue
        if len(asked) > 1:
            typer.secho(f"\n{query_id}: {query.shown}", bold=True)
        show_hits(hits, query.text)
