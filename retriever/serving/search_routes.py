"""POST /v1/search and /v1/explain, and what is served at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response

from retriever.conversations.chat import contributions
from retriever.explanation import explain
from retriever.search import Hit
from retriever.serving.answering import absent, indexes_answer, search_answer
from retriever.serving.answers import ExplainAnswer, IndexesAnswer, SearchAnswer
from retriever.serving.encoder_thread import Asked
from retriever.serving.faults import bad_request
from retriever.serving.requests import ExplainRequest, SearchRequest
from retriever.serving.routes import WRONG, Here, Searcher, answer, note, note_query
from retriever.serving.served import OpenView
from retriever.types import Document, Query

router = APIRouter(prefix="/v1", tags=["search"], responses=WRONG)
Value = TypeVar("Value")


@router.post("/search", response_model=SearchAnswer)
async def search_documents(body: SearchRequest, request: Request, service: Here, who: Searcher) -> Response:
    """Find documents for a query, or for several."""
    served = service.named(body.index)
    note(request, index=served.name, k=body.k)
    note_query(request, service, body.texts)
    if body.image is not None:
        note(request, queries=1, image=True)
    found = await search_answer(service, served, body)
    return answer({**found, "request_id": request.state.request_id})


@router.post("/explain", response_model=ExplainAnswer)
async def explain_result(body: ExplainRequest, request: Request, service: Here, who: Searcher) -> Response:
    """Say why a document has its score, what each stage of an experiment gave it, and what earlier turns contributed."""
    served = service.named(body.index)
    note(request, index=served.name)
    note_query(request, service, [body.query])
    query = service.query(body.query, [turn.turn() for turn in body.turns])
    view = await service.view(served)
    has_parts, in_stages = hasattr(view.encoder.own, "encode_queries"), bool(view.stages) and body.id is not None
    if not (has_parts or in_stages):
        raise bad_request(f'"{served.name}" has a student that reads query and document together, whose scores have no parts')
    document = None
    if body.text is not None:
        document = Document("text", service.texts("text", [body.text])[0])
    elif body.id is not None:
        wanted = body.id
        document = await service.read(served, lambda: view.document(wanted))
        if document is None:
            raise absent(wanted)
    conditions, depth = service.conditions(view, body.filter), service.depth(body.k)

    def hits(asked: Query) -> list[Hit]:
        found = view.encoder.do(lambda: view.answer([Asked(asked, depth, conditions)]))[0]
        return [Hit(rank, score, one) for rank, (score, one) in enumerate(zip(found.scores, found.documents(), strict=True), 1)]

    def work() -> dict[str, Any]:
        why = _in_turn(view, lambda encoder: explain(encoder, query, document, body.rows)) if document is not None and has_parts else None
        history = _in_turn(view, lambda encoder: contributions(encoder, query, hits, body.rows)) if body.turns and has_parts else None
        stages = view.encoder.do(lambda: view.standings(query, document.doc_id)) if document is not None and in_stages else ()
        told = {name: None if one is None else dataclasses.asdict(one) for name, one in {"explanation": why, "history": history}.items()}
        return {**told, "stages": [dataclasses.asdict(one) for one in stages]}

    return answer({"index": served.name, "version": view.version, **await service.work(served, work)})


@router.get("/indexes", response_model=IndexesAnswer)
async def list_indexes(service: Here, who: Searcher) -> Response:
    """List what is served; the first one answers where none is named."""
    return answer(await indexes_answer(service))


def _in_turn(view: OpenView, explained: Callable[[Any], Value]) -> Value:
    """In the encoder's thread for words and tokens, whose model is read by hand; what a dense student encodes goes there piece by piece."""
    own = view.encoder.own
    return view.encoder.do(lambda: explained(own)) if hasattr(own, "columns") else explained(view.encoder)
