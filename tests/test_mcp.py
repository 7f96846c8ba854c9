"""An assistant's client of the Model Context Protocol, and `retriever serve --mcp` as the process that it starts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retriever.search import open_index
from retriever.serving.assistant_answers import AnswersThere
from retriever.serving.mcp_tools import call_tool, tools_of
from retriever.types import Document
from tests.forked_commands import RETRIEVER, ForkedCommands
from tests.serving_material import Running, running
from tests.test_index import built
from tests.tiny_experiment import ROOT, command, process_environment

pytest.importorskip("mcp")

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp_types import CallToolResult

DOCUMENTS = [
    Document("owl", "a bird that hunts mice at night. It has large eyes.", "Owl", fields={"kind": "animal", "legs": 2}),
    Document("beaver", "a rodent that builds dams", "Beaver", fields={"kind": "animal", "legs": 4}),
    Document("saw", "a tool that cuts wood", "Saw", fields={"kind": "tool"}),
    Document("hammer/claw", "a tool that drives nails into wood", "Hammer", fields={"kind": "tool"}),
]
SERVE = ("serve", "--mcp")
QUERY = "an animal that hunts"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Path:
    return built(tmp_path_factory.mktemp("served"), "dense", encoder_folder, DOCUMENTS)


@pytest.fixture(scope="module")
def server(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("state"), f"notes={whole}", reads=["all"]) as found:
        yield found


def asked(work: Callable[[Client], Awaitable[Any]], parameters: StdioServerParameters, log: Path) -> Any:
    """What an assistant gets that starts a process and does some work with it."""

    async def talk() -> Any:
        with log.open("a") as errors:
            async with Client(stdio_client(parameters, errors), read_timeout_seconds=600) as client:
                return await work(client)

    return asyncio.run(talk())


def forked(commands: ForkedCommands, *arguments: object, log: Path) -> StdioServerParameters:
    """Starts `retriever serve --mcp`; the process for the assistant to start carries words to and fro."""
    pipes = {"in": commands.pipe(), "out": commands.pipe()}
    commands.start(*RETRIEVER, *SERVE, *arguments, streams={**pipes, "err": log})
    carry = 'exec 3<&0; cat <&3 > "$0" & exec cat "$1"'  # bash gives a process in the background no standard input of its own accord
    return StdioServerParameters(command="bash", args=["-c", carry, *map(str, pipes.values())])


def said(result: CallToolResult) -> str:
    """The text of an answer, which is one."""
    (content,) = result.content
    assert content.type == "text"
    assert "\n" not in content.text
    return content.text


def refused(result: CallToolResult) -> str:
    """The one line of a mistake."""
    assert result.is_error
    return said(result)


def test_an_assistant_searches_reads_and_is_told_its_mistakes(whole: Path, tmp_path: Path, forked_commands: ForkedCommands) -> None:
    long = "long " * 3_000
    calls: list[tuple[str, dict[str, Any]]] = [
        ("search", {"query": QUERY, "k": 2}),
        ("search", {"query": QUERY, "filter": {"legs": {">=": 4}}, "index": "again"}),
        ("search", {"query": QUERY, "filter": '{"kind": ["tool"]}', "turns": [{"speaker": "user", "text": "wood"}]}),
        ("get_document", {"id": "hammer/claw"}),
        ("list_indexes", {}),
        ("search", {"query": QUERY, "index": "other"}),
        ("search", {"query": QUERY, "filter": {"leg": 4}}),
        ("search", {"query": QUERY, "filter": {"legs": {"~": 4}}}),
        ("search", {"query": QUERY, "filter": "legs > 4"}),
        ("search", {"query": long}),
        ("search", {"query": " "}),
        ("search", {"query": QUERY, "k": 0}),
        ("search", {"query": QUERY, "k": 2_000}),
        ("search", {"query": QUERY, "limit": 3}),
        ("search", {}),
        ("get_document", {"id": "cow"}),
        ("delete_document", {"id": "owl"}),
    ]

    async def work(client: Client) -> Any:
        return await client.list_tools(), [await client.call_tool(name, arguments) for name, arguments in calls]

    log = tmp_path / "log"
    listed, answers = asked(work, forked(forked_commands, f"notes={whole}", f"again={whole}", log=log), log)
    found = [answer.structured_content for answer in answers[:5]]
    assert [json.loads(said(answer)) for answer in answers[:5]] == found
    hits = open_index(whole).hits(QUERY, 2)
    assert [(one["id"], one["score"]) for one in found[0]["results"]] == [(hit.document.doc_id, pytest.approx(hit.score, abs=2e-6)) for hit in hits]
    assert found[0]["index"] == "notes"
    assert found[1]["results"] == [
        {
            "id": "beaver",
            "score": pytest.approx(found[1]["results"][0]["score"]),
            "title": "Beaver",
            "snippet": "a rodent that builds dams",
            "fields": {"kind": "animal", "legs": 4},
            "image": False,
        }
    ]
    assert {one["id"] for one in found[2]["results"]} == {"saw", "hammer/claw"}
    assert (found[3]["text"], found[3]["title"]) == ("a tool that drives nails into wood", "Hammer")
    assert [(one["name"], one["documents"], one["fields"]) for one in found[4]["indexes"]] == [
        (name, 4, {"kind": "text", "legs": "number"}) for name in ("notes", "again")
    ]
    assert [refused(answer) for answer in answers[5:]] == [
        'there is no index "other"; served are notes, again',
        'filter: no document has a field "leg"; did you mean "legs"?',
        'filter: "~" is no comparison; allowed are = != < <= > >= in',
        "filter: Input should be a valid dictionary",
        "query: characters: 15,000, and 8,192 are allowed",
        "query: is empty",
        "k: Input should be greater than or equal to 1",
        "k: 2,000, and 1,000 are allowed",
        "limit: there is no such argument",
        "query: Field required",
        'there is no document "cow"',
        'there is no tool "delete_document"; there are search, get_document, list_indexes',
    ]
    tools = {tool.name: tool for tool in listed.tools}
    assert list(tools) == ["search", "get_document", "list_indexes"]
    assert all(tool.annotations.read_only_hint and not tool.annotations.open_world_hint for tool in tools.values())
    search = tools["search"].input_schema
    assert search["required"] == ["query"]
    assert search["properties"]["index"]["enum"] == ["notes", "again"]
    assert search["properties"]["filter"]["description"].endswith("The fields: notes: kind (text), legs (number); again: kind (text), legs (number)")
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert [(line["tool"], line["failed"]) for line in lines if line["event"] == "call"] == [(name, number >= 5) for number, (name, _) in enumerate(calls)]
    assert "hunts" not in log.read_text()


def test_standard_output_holds_the_protocol_and_nothing_else(whole: Path, forked_commands: ForkedCommands) -> None:
    begin = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "a test", "version": "1"}}
    messages: list[dict[str, Any]] = [
        {"id": 1, "method": "initialize", "params": begin},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/call", "params": {"name": "search", "arguments": {"query": QUERY, "k": 1}}},
    ]
    noisy = "import sys, retriever.serving.service as s, retriever.cli as c; own = s.Service.__init__; "
    noisy += "s.Service.__init__ = lambda self, settings: (print('loading'), own(self, settings))[1]; c.main()"
    pipes = {"in": forked_commands.pipe(), "out": forked_commands.pipe()}
    process_id = forked_commands.start("-c", noisy, *SERVE, whole, streams=pipes)
    answers = []
    with pipes["in"].open("w", buffering=1) as asks, pipes["out"].open() as tells:
        for message in messages:
            asks.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
            if "id" in message:
                answers.append(json.loads(tells.readline()))
        asks.close()  # its end of the conversation
        assert tells.read() == ""
    status, _, errors = forked_commands.wait(process_id)
    assert status == 0
    assert [(answer["id"], "result" in answer) for answer in answers] == [(1, True), (2, True)]
    assert answers[1]["result"]["structuredContent"]["results"][0]["id"] == open_index(whole).hits(QUERY, 1)[0].document.doc_id
    assert "loading" in errors
    assert errors.endswith("stopped\n")


def test_a_signal_ends_it_while_it_waits_for_the_assistant(whole: Path, tmp_path: Path, forked_commands: ForkedCommands) -> None:
    pipes = {"in": forked_commands.pipe(), "out": forked_commands.pipe()}
    process_id = forked_commands.start(*RETRIEVER, *SERVE, whole, environment=process_environment(TMPDIR=str(tmp_path)), streams=pipes)
    with pipes["in"].open("w", buffering=1) as asks, pipes["out"].open() as tells:
        asks.write(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}) + "\n")
        tells.readline()
        assert list(tmp_path.glob("retriever-serve-*")) != []
        start = time.monotonic()
        os.kill(process_id, signal.SIGINT)
        assert forked_commands.wait(process_id, timeout_seconds=10).status == 0
    assert time.monotonic() - start < 5
    assert list(tmp_path.glob("retriever-serve-*")) == []


def test_a_running_server_is_asked_in_the_place_of_indexes(server: Running) -> None:
    answers = AnswersThere(server.client())

    def call(name: str, **arguments: Any) -> CallToolResult:
        return asyncio.run(call_tool(answers, name, arguments))

    found = call("search", query="what hunts mice", filter={"legs": 2}, turns=[{"speaker": "user", "text": "birds"}]).structured_content
    assert found
    assert [one["id"] for one in found["results"]] == ["owl"]
    assert json.loads(said(call("get_document", id="owl")))["text"] == DOCUMENTS[0].text
    assert refused(call("search", query=QUERY, index="other")) == f'{server.url}: there is no index "other"; served are notes'
    assert refused(call("search", query=QUERY, filter={"leg": 2})).endswith('did you mean "legs"?')
    assert [tool.name for tool in asyncio.run(tools_of(answers))] == ["search", "get_document", "list_indexes"]


def test_an_assistant_is_served_by_a_running_server(server: Running, tmp_path: Path) -> None:
    async def work(client: Client) -> Any:
        return await client.call_tool("search", {"query": QUERY, "k": 1})

    line = [*RETRIEVER, *SERVE, "--url", server.url]
    found = asked(work, StdioServerParameters(command=sys.executable, args=line, env=process_environment(), cwd=ROOT), tmp_path / "log")
    assert [one["id"] for one in found.structured_content["results"]] == server.ids(QUERY, 1)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--mcp"], "serve: names no index. Give one or several: retriever serve work/notes"),
        (["--mcp", "nowhere"], "nowhere: no index here (index.json is missing). Build one with: retriever index FILE.toml"),
        (["--mcp", "notes", "--write"], "serve: --mcp speaks with one assistant, which reads alone; --write is for HTTP. Leave one out"),
        (["notes", "--url", "http://127.0.0.1:9"], "serve: --url is for --mcp, whose tools then ask that server"),
        (["notes", "--mcp", "--url", "http://127.0.0.1:9"], "serve: --url gives an assistant all indexes of a server; INDEX opens some here. Leave one out"),
        (["--mcp", "--url", "http://127.0.0.1:9"], "http://127.0.0.1:9: no answer ([Errno 111] Connection refused). Is the server running there?"),
    ],
)
def test_what_cannot_start_says_why(arguments: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("serve", *arguments).error.removeprefix(f"{tmp_path}/").startswith(error)


def test_without_the_extra_the_line_that_brings_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    assert command("serve", "--mcp", "notes").error == 'the package "mcp" is not installed. Install it with: pip install "retriever-distill[mcp]"'
