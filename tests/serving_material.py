"""A real server on loopback in this process, and requests to it without a client's help."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn

from retriever.client import Client
from retriever.serving.app import application, open_service
from retriever.serving.server import _config, address_of, listening
from retriever.serving.service import Service
from retriever.serving.settings import Limits, ServeSettings, places_of

STAGES = '\n[[stage]]\nby = ["bm25", "student"]\nkeep = 6\nfusion = "z_score"\n\n[[stage]]\nby = ["student"]\nkeep = 4\n'
"""Two stages, for the end of an experiment file."""


class Reply(NamedTuple):
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The one line of a refusal, after its type."""
        assert self.status >= 400, self.body
        assert set(self.json) == {"error"}
        assert set(self.json["error"]) == {"type", "message"}
        message = str(self.json["error"]["message"])
        assert "\n" not in message
        assert "Traceback" not in message
        return f"{self.status} {self.json['error']['type']}: {message}"


class Running(NamedTuple):
    """A server that runs."""

    url: str
    service: Service

    def client(self, key: str | None = None) -> Client:
        return Client(self.url, key, tries=1)

    def ask(self, method: str, path: str, body: Any = None, key: str | None = None, **headers: str) -> Reply:
        """One request; a body that is no bytes goes as JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {} if body is None else {"Content-Type": "application/json"}
        sent |= {"Authorization": f"Bearer {key}"} if key else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())

    def post(self, path: str, body: Any, key: str | None = None) -> Reply:
        return self.ask("POST", path, body, key)

    def ids(self, query: str, k: int = 5, **more: Any) -> list[str]:
        """The ids that a search finds."""
        found = self.post("/v1/search", {"query": query, "k": k, **more})
        assert found.status == 200, found.body
        return [result["id"] for result in found.json["results"]]


@contextlib.contextmanager
def running(state: Path, *indexes: Path | str, reads: Sequence[str] = (), **settings: Any) -> Iterator[Running]:
    """A server of index folders for as long as the block runs; `reads` are the values of --reads."""
    state.mkdir(exist_ok=True)
    limits = Limits(**settings.pop("limits", {}))
    places = places_of([str(index) for index in indexes], reads)
    wanted = ServeSettings(places=places, state=state, keep=True, limits=limits, **settings)
    service = open_service(wanted)
    with listening("127.0.0.1", 0) as own:
        server = uvicorn.Server(_config(application(wanted, service), 1))
        thread = threading.Thread(target=server.run, args=([own],))
        thread.start()
        try:
            yield Running(address_of(own, "127.0.0.1"), service)
        finally:
            server.should_exit = True
            thread.join()
