"""A client of `retriever serve` that needs nothing but the plain package: its methods are the interface's routes, its answers typed values."""

from __future__ import annotations

import base64
import dataclasses
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from retriever.errors import RetrieverError
from retriever.images.files import image_bytes
from retriever.openers import opener_for
from retriever.serving.answers import (
    ChangeAnswer,
    ConversationAnswer,
    DocumentAnswer,
    EmbeddingsAnswer,
    ExplainAnswer,
    FeedbackAnswer,
    IndexAnswer,
    IndexesAnswer,
    RerankAnswer,
    SearchAnswer,
    TurnAnswer,
)
from retriever.types import Document, Turn

KEY = "RETRIEVER_KEY"
"""The environment variable that holds a key where none is given."""

LONGEST_WAIT_SECONDS = 30.0
"""That an answer of "try again" is heeded for."""

Told = TypeVar("Told", bound=BaseModel)


class ServiceError(RetrieverError):
    """The server did not do what was asked.

    Attributes:
        status: of HTTP; 0 where no server answered.
        kind: as the server calls what was wrong, such as "not_found"; without an answer "timeout", after which it may still be done, or "unreachable".
    """

    def __init__(self, message: str, status: int = 0, kind: str = "unreachable") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


@dataclasses.dataclass(frozen=True)
class Client:
    """A server by its address.

    Attributes:
        url: such as "http://127.0.0.1:8080".
        key: None for that of the environment variable `KEY`, or none.
        timeout_seconds: for an answer.
        tries: how often what the server is too busy for is asked.
        change_timeout_seconds: for the answer to a change; longer than the server takes to say that it goes on without an answer.
    """

    url: str
    key: str | None = dataclasses.field(default=None, repr=False)
    timeout_seconds: float = 60.0
    tries: int = 3
    change_timeout_seconds: float = 660.0

    def search(
        self,
        query: str | None = None,
        k: int = 10,
        index: str | None = None,
        where: Mapping[str, Any] | None = None,
        turns: Sequence[Turn] = (),
        whole_text: bool = False,
        *,
        image: Path | bytes | None = None,
    ) -> SearchAnswer:
        """The best k documents of a query, best first: `results` is a list of results.

        Args:
            query: a text; None for an image.
            k: documents at most.
            index: its name; the server's first one when left out.
            where: conditions on fields, such as {"year": {">=": 2020}}.
            turns: what was said before, oldest first.
            whole_text: whether results hold whole texts beside their snippets.
            image: an image file or its bytes, in the place of a text.

        Raises:
            ServiceError: the server does not answer, or refuses; so do all methods.
            DataError: the image file cannot be read.
        """
        body = {"query": query, "k": k, "index": index, "filter": where, "turns": _plain(turns), "text": whole_text, "image": _in_base64(image)}
        return self._post(SearchAnswer, "search", body)

    def search_all(
        self, queries: Sequence[str], k: int = 10, index: str | None = None, where: Mapping[str, Any] | None = None, whole_text: bool = False
    ) -> SearchAnswer:
        """The best k documents of several queries: `results` is such a list for each of them."""
        return self._post(SearchAnswer, "search", {"queries": list(queries), "k": k, "index": index, "filter": where, "text": whole_text})

    def indexes(self) -> list[IndexAnswer]:
        """What is served."""
        return self._ask(IndexesAnswer, "GET", "indexes").indexes

    def add(self, documents: Iterable[Document], index: str | None = None) -> ChangeAnswer:
        """Adds documents, or puts them in the place of those with the same ids; their images stay here."""
        listed = [{"id": one.doc_id, "title": one.title, "text": one.text, "fields": dict(one.fields)} for one in documents]
        return self._change("POST", {"documents": listed, "index": index})

    def delete(self, doc_ids: Iterable[str], index: str | None = None, ignore_missing: bool = False) -> ChangeAnswer:
        """Deletes documents by their ids; none where one is not there."""
        return self._change("DELETE", {"ids": list(doc_ids), "index": index, "ignore_missing": ignore_missing})

    def document(self, doc_id: str, index: str | None = None) -> DocumentAnswer:
        """A document by its id."""
        asked = f"?{urllib.parse.urlencode({'index': index})}" if index else ""
        return self._ask(DocumentAnswer, "GET", f"documents/{urllib.parse.quote(doc_id, safe='')}{asked}")

    def embeddings(self, texts: Sequence[str], index: str | None = None, input_type: str = "query") -> EmbeddingsAnswer:
        """The vectors of texts, in the shape of OpenAI's interface."""
        return self._post(EmbeddingsAnswer, "embeddings", {"input": list(texts), "model": index, "input_type": input_type})

    def rerank(self, query: str, texts: Sequence[str], index: str | None = None, top_n: int | None = None) -> RerankAnswer:
        """The student's scores of texts for a query, best first, in the shape of Cohere's interface."""
        return self._post(RerankAnswer, "rerank", {"query": query, "documents": list(texts), "model": index, "top_n": top_n})

    def explain(
        self,
        query: str,
        doc_id: str | None = None,
        text: str | None = None,
        index: str | None = None,
        turns: Sequence[Turn] = (),
        k: int = 5,
        where: Mapping[str, Any] | None = None,
    ) -> ExplainAnswer:
        """Why a document, named or given, has its score, and what earlier turns contributed."""
        body = {"query": query, "id": doc_id, "text": text, "index": index, "turns": _plain(turns), "k": k, "filter": where}
        return self._post(ExplainAnswer, "explain", body)

    def begin(self, index: str | None = None) -> ConversationAnswer:
        """A new conversation that the server keeps for a while."""
        return self._post(ConversationAnswer, "conversations", {"index": index})

    def say(self, conversation: str, text: str, k: int = 10, where: Mapping[str, Any] | None = None) -> TurnAnswer:
        """What is found for the user's next turn, with all that was said before."""
        return self._post(TurnAnswer, f"{_conversation(conversation)}/turns", {"text": text, "k": k, "filter": where})

    def hear(self, conversation: str, text: str) -> TurnAnswer:
        """Tells the server what the agent answered."""
        return self._post(TurnAnswer, f"{_conversation(conversation)}/turns", {"text": text, "speaker": "agent"})

    def conversation(self, conversation: str) -> ConversationAnswer:
        """What was said."""
        return self._ask(ConversationAnswer, "GET", _conversation(conversation))

    def forget(self, conversation: str) -> None:
        """Has the server forget a conversation now."""
        self._send("DELETE", _conversation(conversation), None, self.timeout_seconds)

    def feedback(self, query: str, doc_id: str, grade: int | None = None, index: str | None = None, turns: Sequence[Turn] = ()) -> FeedbackAnswer:
        """Tells the server of a click on a result, or of a judgement: 0 for irrelevant, more for better."""
        event = {"query": query, "id": doc_id, "grade": grade, "index": index, "turns": _plain(turns)}
        return self._post(FeedbackAnswer, "feedback", {"events": [_given(event)]})

    def _post(self, kind: type[Told], route: str, body: Mapping[str, Any]) -> Told:
        return self._ask(kind, "POST", route, body)

    def _change(self, method: str, body: Mapping[str, Any]) -> ChangeAnswer:
        return self._read(ChangeAnswer, self._send(method, "documents", body, self.change_timeout_seconds))

    def _ask(self, kind: type[Told], method: str, route: str, body: Mapping[str, Any] | None = None) -> Told:
        return self._read(kind, self._send(method, route, body, self.timeout_seconds))

    def _read(self, kind: type[Told], data: bytes) -> Told:
        try:
            return kind.model_validate_json(data)
        except ValidationError as error:
            raise ServiceError(f"{self.url}: answered something else than retriever does. Is the address right?") from error

    @cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        """What asks this server and no other, and one on this machine without a proxy between."""
        try:
            address = urllib.parse.urlsplit(self.url)
            host = address.hostname if address.scheme in ("http", "https") else None
        except ValueError:
            host = None
        if host is None:
            raise ServiceError(f"{self.url}: is no address of a server; write it like http://127.0.0.1:8080")
        return opener_for(host)

    def _send(self, method: str, route: str, body: Mapping[str, Any] | None, timeout_seconds: float) -> bytes:
        """The bytes of an answer; what the server is too busy for is asked again after the time that it says."""
        for attempt in range(1, self.tries + 1):
            try:
                with self._opener.open(self._request(method, route, body), timeout=timeout_seconds) as answer:
                    data: bytes = answer.read()
                    return data
            except urllib.error.HTTPError as error:
                after = error.headers.get("Retry-After", "")
                if error.code != 429 or attempt == self.tries or not after.isdigit():
                    raise _told(self.url, error) from error
                time.sleep(min(float(after), LONGEST_WAIT_SECONDS))
            except TimeoutError as error:  # the request went out whole: one that could not is a URLError
                raise ServiceError(
                    f"{self.url}: no answer within {timeout_seconds:g} s; what was asked may still be done, so look before you try again", kind="timeout"
                ) from error
            except (OSError, http.client.HTTPException) as error:  # the second: a server that ends in the middle of an answer
                reason = getattr(error, "reason", error)
                raise ServiceError(f"{self.url}: no answer ({reason}). Is the server running there? Start one: retriever serve INDEX") from error
        raise AssertionError

    def _request(self, method: str, route: str, body: Mapping[str, Any] | None) -> urllib.request.Request:
        key = self.key or os.environ.get(KEY, "").strip()
        headers = {"Content-Type": "application/json", "Accept": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        data = None if body is None else json.dumps(_given(body)).encode()
        return urllib.request.Request(f"{self.url.rstrip('/')}/v1/{route}", data, headers, method=method)


def _told(url: str, error: urllib.error.HTTPError) -> ServiceError:
    """What the server says is wrong."""
    try:
        said = json.loads(error.read())["error"]
        kind, message = str(said["type"]), str(said["message"])
    except (ValueError, KeyError, TypeError, OSError):
        kind, message = "unknown", f"answered with the status {error.code}"
    if 300 <= error.code < 400:
        message += f", which leads to {error.headers.get('Location', 'another address'):.200} and is not followed. Give the server's own address"
    advice = f". Give the key in the environment variable {KEY}" if error.code == 401 else ""
    return ServiceError(f"{url}: {message}{advice}", error.code, kind)


def _given(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


def _plain(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [dataclasses.asdict(turn) for turn in turns]


def _in_base64(image: Path | bytes | None) -> str | None:
    if image is None:
        return None
    return base64.b64encode(image_bytes(image) if isinstance(image, Path) else image).decode()


def _conversation(conversation: str) -> str:
    return f"conversations/{urllib.parse.quote(conversation, safe='')}"
