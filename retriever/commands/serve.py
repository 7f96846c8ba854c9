"""Serving indexes over HTTP, and reading back what users thought of the results."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from retriever.commands.console import WORK, Json, Set, Work, tell
from retriever.errors import ConfigError, MissingExtraError


def serve(  # noqa: PLR0913, PLR0917 (a command's options)
    indexes: Annotated[
        list[str] | None,
        typer.Argument(
            help="Index folders or their experiments', experiment files for their stages, or engines' addresses (with --student); NAME=INDEX names one.",
            metavar="INDEX...",
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Interface to listen on; this machine alone when left out.", metavar="HOST")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="Where to listen; 0 takes a free port and prints it.", metavar="NUMBER")] = 8_080,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes, which share the index's files in memory.", metavar="NUMBER")] = 1,
    write: Annotated[bool, typer.Option("--write", help="Let documents be added and deleted: by keys of that role, or on this machine.")] = False,
    keys: Annotated[Path | None, typer.Option("--keys", help="File of keys; without it nobody is asked for one.", metavar="FILE")] = None,
    new_key: Annotated[
        str | None, typer.Option("--new-key", help="Print a new key of a role (search, write, admin), add it to --keys, and stop.", metavar="ROLE")
    ] = None,
    student: Annotated[
        Path | None, typer.Option("--student", help="Another student that encodes the queries, as of retriever search.", metavar="FOLDER")
    ] = None,
    reads: Annotated[str | None, typer.Option("--reads", help="What the student reads of a conversation, such as all.", metavar="READING")] = None,
    state: Annotated[
        Path | None, typer.Option("--state", help="Folder that keeps conversations and feedback; without it nothing is kept.", metavar="FOLDER")
    ] = None,
    limits: Annotated[list[str] | None, typer.Option("--limit", help="Change a limit, for example --limit k=100.", metavar="NAME=VALUE")] = None,
    allowed_hosts: Annotated[
        list[str] | None, typer.Option("--allow-host", help="Another name by which this server may be called, where there are no keys.", metavar="NAME")
    ] = None,
    log_queries: Annotated[bool, typer.Option("--log-queries", help="Let the log hold what was asked.")] = False,
    set_: Set = None,
    work: Work = WORK,
) -> None:
    """Answer searches over HTTP, until Ctrl-C or SIGTERM."""
    if new_key is not None:
        _print_new_key(keys, new_key)
        return
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "serve")
    if not indexes:
        raise ConfigError("serve: names no index. Give one or several: retriever serve work/notes")
    from retriever.serving.server import is_loopback, serve, state_folder
    from retriever.serving.settings import LOOPBACK, checked, limits_of, place_of

    local = is_loopback(host)
    if write and keys is None and not local:
        raise ConfigError(
            f"serve: --write on {host} without keys would let everybody change documents. Make a key: retriever serve --new-key write --keys FILE"
        )
    if not local:
        _warn(host, keys is not None)
    with state_folder(state) as folder:
        settings = checked(
            {
                "places": tuple(place_of(text) for text in indexes),
                "student": student,
                "reads": reads,
                "overrides": tuple(set_ or ()),
                "work": work,
                "write": write,
                "keys": keys,
                "state": folder,
                "keep": state is not None,
                "hosts": (*LOOPBACK, host, *(allowed_hosts or ())) if local and keys is None else (),
                "log_queries": log_queries,
                "limits": limits_of(limits or ()),
            }
        )
        serve(settings, host, port, workers, lambda address: typer.echo(f"listening on {address}"))
    typer.echo("stopped", err=True)


def feedback(
    log: Annotated[Path, typer.Argument(help="The log of a server: feedback.jsonl in the folder of --state.", metavar="LOG")],
    index: Annotated[Path, typer.Argument(help="Index folder, or the folder of its experiment, whose documents were judged.", metavar="INDEX")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write the collection to.", metavar="FOLDER")],
    name: Annotated[str | None, typer.Option("--name", help="Take the feedback on one index: its name on the server.", metavar="NAME")] = None,
    split: Annotated[str, typer.Option("--split", help="Which queries these are.", metavar="SPLIT")] = "train",
    as_json: Json = False,
) -> None:
    """Turn clicks and judgements into a collection to train on."""
    from retriever.search import open_documents
    from retriever.serving.feedback import to_qrels, write_training

    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"--out {out}: is not empty. Name a new folder")
    done = write_training(out, to_qrels(log, name), open_documents(index), split)
    pairs = sum(map(len, done.qrels.values()))
    value = {"folder": str(out), "queries": len(done.queries), "judgements": pairs, "damaged_lines": done.damaged, "absent_documents": done.absent}
    left = [f"{count:,} {what}" for count, what in ((done.damaged, "damaged lines"), (done.absent, "judgements of documents that are gone")) if count]
    tell(as_json, value, f"{out}: {len(done.queries):,} queries, {pairs:,} judgements" + (f"; left out: {', '.join(left)}" if left else ""))
    typer.echo(f'next: in the experiment file, [collection] path = "{out}"', err=True)


def _print_new_key(keys: Path | None, role: str) -> None:
    from retriever.serving.keys import new_key

    if keys is None:
        raise ConfigError("--new-key: into which file? Name it: --keys FILE")
    typer.echo(new_key(keys, role))
    typer.echo(f"added to {keys} as a hash; the key itself is shown this once", err=True)


def _warn(host: str, has_keys: bool) -> None:
    reach = "other machines can reach this server" if host in ("0.0.0.0", "::") else f"machines that reach {host} can reach this server"
    words = (
        "; keys go over the network in the clear, so put TLS before it" if has_keys else ", and there are no keys: everybody may search. Make one: --new-key"
    )
    typer.secho(f"warning: {reach}{words}", fg="yellow", err=True)
