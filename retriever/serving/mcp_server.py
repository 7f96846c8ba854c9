"""`retriever serve --mcp`: searches for an assistant that speaks the Model Context Protocol over standard input and output."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp_types import CallToolRequestParams, CallToolResult, ListToolsResult, PaginatedRequestParams

from retriever.client import Client
from retriever.doctor import DISTRIBUTION
from retriever.serving.assistant_answers import Answers, AnswersHere, AnswersThere
from retriever.serving.logs import tell, write_log
from retriever.serving.mcp_tools import INSTRUCTIONS, call_tool, tools_of
from retriever.serving.settings import ServeSettings

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve_here(settings: ServeSettings) -> None:
    """Opens indexes and answers one assistant until it hangs up.

    Raises:
        RetrieverError: something cannot be opened.
    """
    from retriever.progress import silence_libraries
    from retriever.serving.service import Service

    def tidy() -> None:
        if not settings.keep:
            shutil.rmtree(settings.state, ignore_errors=True)

    write_log()
    silence_libraries()
    with _nothing_printed():
        service = Service(settings)
    with _ended_by_signals(tidy), contextlib.closing(service):
        asyncio.run(_answer(AnswersHere(service)))


def serve_there(url: str) -> None:
    """Answers one assistant, by asking a server that runs already, until it hangs up.

    Raises:
        ServiceError: the server does not answer.
    """
    write_log()
    client = Client(url)
    client.indexes()  # one that does not answer is told before an assistant waits for it
    with _ended_by_signals(lambda: None):
        asyncio.run(_answer(AnswersThere(client)))


def server_of(answers: Answers) -> Server[Any]:
    """The tools, as the protocol carries them."""

    async def list_tools(context: ServerRequestContext[Any], params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=await tools_of(answers))

    async def call(context: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        start = time.perf_counter()
        found = await call_tool(answers, params.name, params.arguments or {})
        tell("call", tool=params.name[:100], failed=bool(found.is_error), ms=round((time.perf_counter() - start) * 1_000, 1))
        return found

    version = importlib.metadata.version(DISTRIBUTION)
    return Server("retriever", version=version, title="retriever", instructions=INSTRUCTIONS, on_list_tools=list_tools, on_call_tool=call)


async def _answer(answers: Answers) -> None:
    server = server_of(answers)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


@contextlib.contextmanager
def _nothing_printed() -> Iterator[None]:
    """Sends to standard error what libraries print while they are loaded: standard output belongs to the protocol."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def _ended_by_signals(tidy: Callable[[], None]) -> Iterator[None]:
    """Ends the process at SIGTERM and Ctrl-C: the thread that waits for the assistant's next line can be ended by nothing else, and only reads were begun."""

    def end(*_: object) -> None:
        tidy()
        os._exit(0)

    before = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
