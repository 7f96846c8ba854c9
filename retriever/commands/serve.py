"""Serving indexes over HTTP, and reading back what users thought of the results."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from retriever.commands.console import WORK, Json, Set, Work, tell
from retriever.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from retriever.serving.settings import ServeSettings


Indexes = Annotated[
    list[str] | None,
    typer.Argument(
        help="Index folders or their experiments', experiment files for their stages, or engines' addresses (with --student); NAME=INDEX names one.",
        metavar="INDEX...",
    ),
]
Host = Annotated[str, typer.Option("--host", help="Interface to listen on; this machine alone when left out.", metavar="HOST")]
Port = Annotated[int, typer.Option("--port", min=0, max=65_535, help="Where to listen; 0 takes a free port and prints it.", metavar="NUMBER")]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes, which share the index's files in memory.", metavar="NUMBER")]
Write = Annotated[bool, typer.Option("--write", help="Let documents be added and deleted: by keys of that role, or on this machine.")]
Keys = Annotated[Path | None, typer.Option("--keys", help="File of keys; without it nobody is asked for one.", metavar="FILE")]
NewKey = Annotated[str | None, typer.Option("--new-key", help="Print a new key of a role (search, write, admin), add it to --keys, and stop.", metavar="ROLE")]
Student = Annotated[Path | None, typer.Option("--student", help="Another student that encodes the queries, as of retriever search.", metavar="FOLDER")]
Reads = Annotated[
    list[str] | None,
    typer.Option("--reads", help="What the students read of a conversation, such as all; NAME=READING is for one index.", metavar="READING"),
]
Backend = Annotated[
    Literal["torch", "onnx", "openvino"],
    typer.Option("--backend", help="What computes the students: torch, or onnx or openvino (extra export), checked against torch.", metavar="NAME"),
]
State = Annotated[Path | None, typer.Option("--state", help="Folder that keeps conversations and feedback; without it nothing is kept.", metavar="FOLDER")]
LimitChanges = Annotated[list[str] | None, typer.Option("--limit", help="Change a limit, for example --limit k=100.", metavar="NAME=VALUE")]
AllowedHosts = Annotated[
    list[str] | None, typer.Option("--allow-host", help="Another name by which this server may be called, where there are no keys.", metavar="NAME")
]
LogQueries = Annotated[bool, typer.Option("--log-queries", help="Let the log hold what was asked.")]
Mcp = Annotated[
    bool, typer.Option("--mcp", help="Give an assistant tools to search with, by the Model Context Protocol on standard input and output, instead of HTTP.")
]
McpUrl = Annotated[
    str | None, typer.Option("--url", help="With --mcp: ask this server, in the place of indexes opened here; its key is in RETRIEVER_KEY.", metavar="URL")
]


def serve(  # noqa: PLR0913, PLR0917 (a command's options)
    indexes: Indexes = None,
    host: Host = "127.0.0.1",
    port: Port = 8_080,
    workers: Workers = 1,
    write: Write = False,
    keys: Keys = None,
    new_key: NewKey = None,
    student: Student = None,
    reads: Reads = None,
    backend: Backend = "torch",
    state: State = None,
    limits: LimitChanges = None,
    allowed_hosts: AllowedHosts = None,
    log_queries: LogQueries = False,
    mcp: Mcp = False,
    url: McpUrl = None,
    set_: Set = None,
    work: Work = WORK,
) -> None:
    """Answer searches over HTTP, or those of an assistant."""
    if new_key is not None:
        _print_new_key(keys, new_key)
        return
    if mcp or url is not None:
        over_http = {"--write": write, "--keys": keys, "--state": state, "--workers": workers > 1, "--allow-host": allowed_hosts, "--log-queries": log_queries}
        _check_mcp(mcp, next((name for name, given in over_http.items() if given), None))
    if url is not None:
        _serve_mcp_of(url, indexes)
        return
    named = _named(indexes)
    own_names = _check_reach(host, write, keys is not None, allowed_hosts or ())
    from retriever.serving.server import state_folder
    from retriever.serving.settings import checked, limits_of, places_of

    given: dict[str, object] = {
        "student": student,
        "backend": backend,
        "overrides": tuple(set_ or ()),
        "work": work,
        "write": write,
        "keys": keys,
        "log_queries": log_queries,
    }
    given |= {"places": places_of(named, reads or ()), "hosts": own_names, "limits": limits_of(limits or ())}
    with state_folder(state) as folder:
        _answer(checked({**given, "state": folder, "keep": state is not None}), mcp, host, port, workers)
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


def _named(indexes: list[str] | None) -> list[str]:
    """What is to be served, where a server can be started at all.

    Raises:
        MissingExtraError: a package is missing.
        ConfigError: nothing is named.
    """
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "serve")
    if not indexes:
        raise ConfigError("serve: names no index. Give one or several: retriever serve work/notes")
    return indexes


def _check_reach(host: str, write: bool, has_keys: bool, allowed: Sequence[str]) -> tuple[str, ...]:
    """The names by which the server may be called; none for any name. Warns where other machines reach it.

    Raises:
        ConfigError: everybody could change documents.
    """
    from retriever.openers import LOOPBACK
    from retriever.serving.server import is_loopback

    if is_loopback(host):
        return () if has_keys else (*LOOPBACK, host, *allowed)
    if write and not has_keys:
        raise ConfigError(
            f"serve: --write on {host} without keys would let everybody change documents. Make a key: retriever serve --new-key write --keys FILE"
        )
    _warn(host, has_keys)
    return ()


def _answer(settings: ServeSettings, mcp: bool, host: str, port: int, workers: int) -> None:
    """Answers until it is told to stop: one assistant, or whoever asks over HTTP."""
    if mcp:
        from retriever.serving.mcp_server import serve_here

        serve_here(settings)
        return
    from retriever.serving.server import serve

    serve(settings, host, port, workers, _tell_address)


def _print_new_key(keys: Path | None, role: str) -> None:
    from retriever.serving.keys import new_key

    if keys is None:
        raise ConfigError("--new-key: into which file? Name it: --keys FILE")
    typer.echo(new_key(keys, role))
    typer.echo(f"added to {keys} as a hash; the key itself is shown this once", err=True)


def _check_mcp(mcp: bool, over_http: str | None) -> None:
    """Refuses options that say nothing together.

    Args:
        mcp: whether --mcp is given.
        over_http: an option that is given and is for HTTP alone.
    """
    if not mcp:
        raise ConfigError("serve: --url is for --mcp, whose tools then ask that server")
    if over_http is not None:
        raise ConfigError(f"serve: --mcp speaks with one assistant, which reads alone; {over_http} is for HTTP. Leave one out")
    if importlib.util.find_spec("mcp") is None:
        raise MissingExtraError("mcp", "mcp")


def _serve_mcp_of(url: str, indexes: list[str] | None) -> None:
    if indexes:
        raise ConfigError("serve: --url gives an assistant all indexes of a server; INDEX opens some here. Leave one out")
    from retriever.serving.mcp_server import serve_there

    serve_there(url)
    typer.echo("stopped", err=True)


def offer_page(indexes: Mapping[str, Path]) -> None:
    """Says how indexes that were just built are searched on a page; on a terminal it is opened now, if that is wanted.

    Args:
        indexes: name -> folder; the first one is searched, and can be held against the others.
    """
    named = [f"{name}={folder}" for name, folder in indexes.items()]
    typer.echo(f"page:   {shlex.join([_program(), 'serve', *named])}")
    installed = importlib.util.find_spec("fastapi") is not None
    if installed and sys.stdin.isatty() and sys.stdout.isatty() and typer.confirm("start it now?", default=False):
        serve(named)


def _program() -> str:
    """The command as the user's shell finds it."""
    own = Path(sys.executable).with_name("retriever")
    if shutil.which("retriever") or not own.exists():
        return "retriever"
    return str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own)


def _tell_address(address: str) -> None:
    """On standard output for programs, on standard error for people."""
    typer.echo(f"listening on {address}")
    typer.echo(f"search page: {address}/", err=True)


def _warn(host: str, has_keys: bool) -> None:
    reach = "other machines can reach this server" if host in ("0.0.0.0", "::") else f"machines that reach {host} can reach this server"
    words = (
        "; keys go over the network in the clear, so put TLS before it" if has_keys else ", and there are no keys: everybody may search. Make one: --new-key"
    )
    typer.secho(f"warning: {reach}{words}", fg="yellow", err=True)
