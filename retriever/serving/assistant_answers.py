"""Where assistants' questions are answered: by the indexes of this process, or by a server that runs already."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Protocol

from retriever.client import Client
from retriever.serving.faults import RequestError
from retriever.serving.requests import SearchRequest

if TYPE_CHECKING:
    from retriever.serving.served import Served
    from retriever.serving.service import Service


class Answers(Protocol):
    """What can be asked. The answers are those of the HTTP interface, as `retriever.serving.answers` describes them."""

    async def search(self, body: SearchRequest) -> dict[str, Any]:
        """What is found."""
        ...

    async def document(self, doc_id: str, index: str | None) -> dict[str, Any]:
        """A document by its id."""
        ...

    async def indexes(self) -> dict[str, Any]:
        """What is served."""
        ...


@dataclasses.dataclass(frozen=True)
class AnswersHere:
    """Answers of indexes that this process has opened."""

    service: Service

    async def search(self, body: SearchRequest) -> dict[str, Any]:
        """What is found."""
        from retriever.serving.answering import search_answer

        served = self.service.named(body.index)
        async with self._in_time(served):
            return await search_answer(self.service, served, body)

    async def document(self, doc_id: str, index: str | None) -> dict[str, Any]:
        """A document by its id."""
        from retriever.serving.answering import document_answer

        served = self.service.named(index)
        async with self._in_time(served):
            return await document_answer(self.service, served, doc_id)

    async def indexes(self) -> dict[str, Any]:
        """What is served."""
        from retriever.serving.answering import indexes_answer

        return await indexes_answer(self.service)

    @contextlib.asynccontextmanager
    async def _in_time(self, served: Served) -> AsyncIterator[None]:
        seconds = self.service.limits.timeout_seconds
        try:
            with self.service.told(served):
                async with asyncio.timeout(seconds):
                    yield
        except TimeoutError as error:
            raise RequestError(504, "timeout", f"no answer within {seconds:g} s; ask for less at a time, or try again") from error


@dataclasses.dataclass(frozen=True)
class AnswersThere:
    """Answers of a server that runs already."""

    client: Client

    async def search(self, body: SearchRequest) -> dict[str, Any]:
        """What is found."""
        turns = [turn.turn() for turn in body.turns]
        found = await asyncio.to_thread(self.client.search, body.query or "", body.k, body.index, body.filter, turns)
        return found.model_dump(mode="json")

    async def document(self, doc_id: str, index: str | None) -> dict[str, Any]:
        """A document by its id."""
        return (await asyncio.to_thread(self.client.document, doc_id, index)).model_dump(mode="json")

    async def indexes(self) -> dict[str, Any]:
        """What is served."""
        return {"indexes": [one.model_dump(mode="json") for one in await asyncio.to_thread(self.client.indexes)]}
