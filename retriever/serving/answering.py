"""What is asked for, answered: the same for HTTP and for assistants, whatever carries it."""

from __future__ import annotations

import contextlib
from typing import Any

from retriever.serving.encoder_thread import Asked
from retriever.serving.faults import RequestError, bad_request, beyond
from retriever.serving.requests import SearchRequest
from retriever.serving.searching import read_of, search
from retriever.serving.served import Served
from retriever.serving.service import Service, writable
from retriever.serving.uploads import uploaded
from retriever.types import Document


async def search_answer(service: Service, served: Served, body: SearchRequest) -> dict[str, Any]:
    """What is found, as `retriever.serving.answers.SearchAnswer` has it, without the request's id.

    Raises:
        RequestError: something is beyond a limit, or the server has too much to do.
        ConfigError: the documents' fields cannot answer the filter.
    """
    if len(body.texts) > service.limits.queries:
        raise beyond("queries", len(body.texts), service.limits.queries)
    queries = [service.query(text, [turn.turn() for turn in body.turns]) for text in body.texts]
    view = await service.view(served)
    if body.stages is not None and body.stages > len(view.stages):
        raise bad_request(f'stages: {body.stages}, and "{served.name}" has {len(view.stages) or "none"}')
    conditions, depth = service.conditions(view, body.filter), service.depth(body.k)
    async with contextlib.AsyncExitStack() as until_answered:
        if body.image is not None:
            queries = [await until_answered.enter_async_context(uploaded(service, served, view, body.image))]
        found = await search(service, served, view, [Asked(query, depth, conditions, body.stages) for query in queries], body.text)
    read = await service.work(served, lambda: read_of(view, queries[0])) if body.turns else None
    return {
        "results": found.results if body.queries is not None else found.results[0],
        "index": served.name,
        "version": found.version,
        "timings_ms": found.timings,
        "cached": found.cached,
        **({"read": read} if read else {}),
    }


async def document_answer(service: Service, served: Served, doc_id: str) -> dict[str, Any]:
    """A document, as `retriever.serving.answers.DocumentAnswer` has it.

    Raises:
        RequestError: there is none.
    """
    view = await service.view(served)
    found: Document | None = await service.read(served, lambda: view.document(doc_id))
    if found is None:
        raise absent(doc_id)
    own: dict[str, Any] = {"id": found.doc_id, "title": found.title, "text": found.text}
    return {"index": served.name, **own, "fields": dict(found.fields), "image": found.image is not None}


async def indexes_answer(service: Service) -> dict[str, Any]:
    """What is served, as `retriever.serving.answers.IndexesAnswer` has it."""
    listed = []
    for served in service.served.values():
        view = await service.view(served)
        own = {"name": served.name, "kind": served.kind, "version": view.version, "documents": view.documents, "student": view.encoder.own.kind}
        listed.append({**own, "fields": dict(view.fields), "stages": list(view.stages), "writable": writable(service, served)})
    return {"indexes": listed}


def absent(doc_id: str) -> RequestError:
    """For a document that is not there."""
    return RequestError(404, "not_found", f'there is no document "{doc_id:.100}"')
