"""The client against servers that send it elsewhere, or that take their time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from retriever.client import Client, ServiceError
from retriever.serving.settings import Limits
from retriever.types import Document
from tests.llm_server import Fault, FaultyServer, Handler, running

CHANGED = {"index": "notes", "version": 2, "added": 1, "replaced": 0, "deleted": 0, "documents": 6}


class Deleting(Handler):
    def do_DELETE(self) -> None:  # noqa: N802 (http.server looks for this name)
        self.do_POST()


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer(Deleting) as found, running(found):
        yield found


@pytest.fixture
def other() -> Iterator[FaultyServer]:
    with FaultyServer(Handler) as found, running(found):
        yield found


def url(server: FaultyServer) -> str:
    return server.url.removesuffix("/v1")


def told(status: int, value: Any, **headers: str) -> Fault:
    return lambda handler: handler.send(status, value, **headers)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_key_goes_nowhere_but_to_the_server_it_was_given_for(server: FaultyServer, other: FaultyServer, status: int) -> None:
    elsewhere = f"{url(other).replace('127.0.0.1', 'localhost')}/v1/indexes"
    server.faults = [told(status, {}, Location=elsewhere)] * 2
    client = Client(url(server), "a-key")
    for ask in (client.indexes, lambda: client.add([Document("owl", "a bird")])):
        with pytest.raises(ServiceError, match=f"answered with the status {status}, which leads to {elsewhere} and is not followed") as caught:
            ask()
        assert caught.value.status == status
    assert server.keys == ["Bearer a-key"] * 2
    assert other.seen == []


def test_a_server_on_this_machine_is_asked_without_the_proxy_of_the_environment(
    server: FaultyServer, other: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", url(other))
    for one in (server, other):
        one.faults = [told(200, {"indexes": []})]
    assert Client(url(server)).indexes() == []
    assert (len(server.seen), len(other.seen)) == (1, 0)


def test_a_change_is_waited_for_longer_than_a_search_and_what_has_no_answer_may_still_be_done(server: FaultyServer) -> None:
    server.faults = [told(200, CHANGED)] * 4
    server.delay_seconds = 0.5
    client = Client(url(server), timeout_seconds=0.1, change_timeout_seconds=20.0)
    assert (client.add([Document("owl", "a bird")]).version, client.delete(["owl"]).version) == (2, 2)
    hasty = Client(url(server), change_timeout_seconds=0.1)
    for ask in (lambda: client.search("a bird"), lambda: hasty.add([Document("owl", "a bird")])):
        with pytest.raises(ServiceError, match=r"no answer within 0\.1 s; what was asked may still be done, so look before you try again") as caught:
            ask()
        assert (caught.value.status, caught.value.kind) == (0, "timeout")
    limits = Limits()
    assert client.timeout_seconds < limits.timeout_seconds + limits.write_timeout_seconds < Client(url(server)).change_timeout_seconds


@pytest.mark.parametrize("address", ["file:///etc/passwd", "127.0.0.1:8080", "http://", "http://["])
def test_what_is_no_address_of_a_server_is_told(address: str) -> None:
    with pytest.raises(ServiceError, match="is no address of a server; write it like http://127"):
        Client(address).indexes()
