"""`retriever serve` as a process: it prints its address, survives kills without losing what it acknowledged, and stops when it has finished."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from retriever.client import Client, ServiceError
from retriever.index.layout import read_version
from retriever.index.soundness import verify
from retriever.search import open_index
from retriever.types import Document
from tests.forked_commands import RETRIEVER, ForkedCommands
from tests.test_index import built
from tests.tiny_experiment import command

DOCUMENTS = [Document("owl", "a bird that hunts mice at night", "Owl"), Document("saw", "a tool that cuts wood", "Saw")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Path:
    return built(tmp_path_factory.mktemp("served"), "dense", encoder_folder, DOCUMENTS)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "notes")


def started(commands: ForkedCommands, *arguments: object) -> tuple[int, Client]:
    """The process id of a server on a free port, and a client of it."""
    process_id = commands.start(*RETRIEVER, "serve", *arguments, "--port", "0")
    out, deadline = commands.folder / f"{process_id}.out", time.monotonic() + 120
    while not (out.exists() and out.read_text().endswith("\n")):
        assert time.monotonic() < deadline, (commands.folder / f"{process_id}.err").read_text()
        time.sleep(0.02)
    return process_id, Client(out.read_text().removeprefix("listening on ").strip(), tries=1)


def test_acknowledged_changes_and_feedback_survive_kills(forked_commands: ForkedCommands, folder: Path, tmp_path: Path) -> None:
    acknowledged: list[str] = []
    judged: list[str] = []

    def change(client: Client, process_id: int, attempt: int) -> None:
        for number in range(1_000):
            name = f"d{attempt}-{number}"
            client.add([Document(name, f"a bird of the number {number}")])
            acknowledged.append(name)
            if number == 2:
                threading.Timer(0.02 + 0.05 * attempt, os.kill, (process_id, signal.SIGKILL)).start()
            client.feedback("a bird", name, grade=1)
            judged.append(name)

    for attempt in range(3):
        process_id, client = started(forked_commands, folder, "--write", "--state", tmp_path / "state")
        with pytest.raises(ServiceError, match="no answer"):
            change(client, process_id, attempt)
        assert forked_commands.wait(process_id).status == -signal.SIGKILL
    assert len(acknowledged) >= 9
    found = {hit.document.doc_id for hit in open_index(folder).hits("a bird", 10_000)}
    assert set(acknowledged) <= found
    assert len(found - set(acknowledged)) <= 2 + 3  # of each life at most the last one, which nobody heard of
    assert verify(folder) == []
    said = command("feedback", tmp_path / "state" / "feedback.jsonl", folder, "--out", tmp_path / "learned", "--json")
    assert json.loads(said.out)["queries"] == 1
    assert len(judged) <= json.loads(said.out)["judgements"] <= len(judged) + 3


def test_a_stop_finishes_what_was_begun_and_the_log_holds_no_query(forked_commands: ForkedCommands, folder: Path) -> None:
    process_id, client = started(forked_commands, folder, "--limit", "batch_wait_ms=100")
    client.search("secret words")
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(client.search, f"secret words {number}") for number in range(8)]
        while not any(answer.done() for answer in answers):
            time.sleep(0.001)
        os.kill(process_id, signal.SIGTERM)
        for answer in answers:
            if answer.exception() is None:
                assert len(answer.result().results) == 2
            else:
                assert "no answer" in str(answer.exception())  # it came when no more were taken
    assert answers[0].exception() is None or any(answer.exception() is None for answer in answers)
    said = forked_commands.wait(process_id)
    assert said.status == 0
    assert said.err.endswith("stopped\n")
    assert "secret" not in said.err
    lines = [json.loads(line) for line in said.err.splitlines() if line.startswith("{")]
    requests = [line for line in lines if line["event"] == "request"]
    assert {(line["route"], line["status"], line["queries"], line["index"]) for line in requests} == {("/v1/search", 200, 1, "notes")}


def test_what_was_asked_is_logged_on_demand_and_a_port_that_is_taken_is_told(forked_commands: ForkedCommands, folder: Path, whole: Path) -> None:
    process_id, client = started(forked_commands, f"mine={folder}", "--log-queries")
    client.search("secret words")
    port = client.url.rpartition(":")[2]
    assert command("serve", whole, "--port", port).error.startswith(f"serve: 127.0.0.1 port {port} cannot be listened on (Address already in use")
    os.kill(process_id, signal.SIGINT)
    assert '"query": ["secret words"]' in forked_commands.wait(process_id).err


@pytest.mark.slow
def test_several_processes_answer_as_one(forked_commands: ForkedCommands, folder: Path, tmp_path: Path) -> None:
    process_id, client = started(forked_commands, folder, "--write", "--workers", 2)
    begun = client.begin()
    for _ in range(10):  # some of one process, some of the other
        client.hear(begun.id, "hello")
    assert len(client.conversation(begun.id).turns) == 10
    for number in range(6):
        client.add([Document(f"n{number}", "a bird")])
        client.delete([f"n{number}"])
        for _ in range(4):
            assert {one.id for one in client.search(f"a bird {number}").results if not isinstance(one, list)} == {"owl", "saw"}
    assert read_version(folder).number == 13
    for _ in range(4):  # whichever process is asked, it counts what all of them did
        with urllib.request.urlopen(f"{client.url}/metrics") as answer:
            counted = answer.read().decode()
        assert 'retriever_requests_total{method="POST",route="/v1/search",status="200"} 24.0' in counted
    os.kill(process_id, signal.SIGTERM)
    assert forked_commands.wait(process_id).status == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "serve: names no index. Give one or several: retriever serve work/notes"),
        (["nowhere"], "nowhere: no index here (index.json is missing). Build one with: retriever index FILE.toml"),
        (["qdrant://localhost:6333/notes"], "serve: qdrant://localhost:6333/notes keeps no student. Give the one that made it: --student FOLDER"),
        (["a/notes", "b/notes"], 'serve: two indexes have the name "notes". Give one another: NAME=b/notes'),
        (["notes", "--write", "--host", "0.0.0.0"], "serve: --write on 0.0.0.0 without keys would let everybody change documents. "),
        (["notes", "--keys", "none"], "none: there is no file of keys. Make one with: retriever serve --new-key admin --keys none"),
        (["notes", "--reads", "all", "--reads", "note=all"], '--reads note=all: there is no index "note", did you mean "notes"?'),
        (["notes", "--limit", "speed=3"], '--limit speed=3: there is no limit "speed"'),
    ],
)
def test_a_server_that_cannot_start_says_why(arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("serve", *arguments, "--port", "0").error.removeprefix(f"{tmp_path}/").startswith(said)
