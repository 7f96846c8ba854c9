"""What routes share: who asks, and how an answer is sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import pydantic_core
from fastapi import Depends, Request
from fastapi.responses import Response

from retriever.serving.answers import ErrorAnswer
from retriever.serving.faults import RequestError
from retriever.serving.keys import Principal, Role
from retriever.serving.service import Service

WRONG: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": words}
    for status, words in {
        400: "what was asked for is wrong or beyond a limit",
        401: "no such key",
        403: "the key may not do this, or the server does not",
        404: "there is no such thing",
        413: "the body is too large",
        429: "too much to do: try again after Retry-After seconds",
        503: "it cannot be done at the moment",
        504: "it took too long",
    }.items()
}
"""The answers that every route can give beside its own."""


async def service_of(request: Request) -> Service:
    """What the process holds. Not a plain function: FastAPI would give each request a thread for it."""
    found: Service = request.app.state.service
    return found


def needs(role: Role) -> Callable[[Request], Awaitable[Principal]]:
    """Lets those in that may do what `role` may, and says in the log who it was."""

    async def principal(request: Request) -> Principal:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key")
        found = await (await service_of(request)).principal(key)
        note(request, key=found.key_id)
        if not found.may(role):
            raise RequestError(403, "forbidden", f'this key has the role "{found.role}", and this needs "{role}"')
        return found

    return principal


def note(request: Request, **facts: Any) -> None:
    """Facts for the line of the log."""
    request.state.facts.update(facts)


def note_query(request: Request, service: Service, texts: list[str]) -> None:
    """How many queries; and what they are, where the server was told to log that."""
    note(request, queries=len(texts), **({"query": texts} if service.settings.log_queries else {}))


def answer(value: Any, status: int = 200) -> Response:
    """A value as JSON."""
    return Response(pydantic_core.to_json(value, inf_nan_mode="null"), status, media_type="application/json")


Here = Annotated[Service, Depends(service_of)]
Searcher = Annotated[Principal, Depends(needs("search"))]
Writer = Annotated[Principal, Depends(needs("write"))]
Admin = Annotated[Principal, Depends(needs("admin"))]
