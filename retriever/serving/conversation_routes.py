"""Conversations that the server keeps for a while, and feedback that it keeps for good."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from retriever.serving import feedback
from retriever.serving.answers import ConversationAnswer, FeedbackAnswer, TurnAnswer
from retriever.serving.conversation_store import Kept
from retriever.serving.encoder_thread import Asked
from retriever.serving.faults import RequestError, bad_request
from retriever.serving.requests import FeedbackRequest, NewConversation, NewTurn
from retriever.serving.routes import WRONG, Here, Searcher, answer, note, note_query
from retriever.serving.searching import read_of, search
from retriever.types import check_id

router = APIRouter(prefix="/v1", tags=["conversations"], responses=WRONG)


@router.post("/conversations", response_model=ConversationAnswer, status_code=201)
async def begin(body: NewConversation, request: Request, service: Here, who: Searcher) -> Response:
    """Begin a conversation."""
    served = service.named(body.index)
    note(request, index=served.name)
    return answer(_shown(await asyncio.to_thread(service.conversations.begin, who.key_id, served.name)), 201)


@router.get("/conversations/{conversation_id}", response_model=ConversationAnswer)
async def get_conversation(conversation_id: str, service: Here, who: Searcher) -> Response:
    """Look at a conversation of this key."""
    return answer(_shown(await asyncio.to_thread(service.conversations.get, who.key_id, conversation_id)))


@router.delete("/conversations/{conversation_id}", status_code=204)
async def forget(conversation_id: str, service: Here, who: Searcher) -> Response:
    """Forget a conversation of this key."""
    await asyncio.to_thread(service.conversations.forget, who.key_id, conversation_id)
    return Response(status_code=204)


@router.post("/conversations/{conversation_id}/turns", response_model=TurnAnswer)
async def say(conversation_id: str, body: NewTurn, request: Request, service: Here, who: Searcher) -> Response:
    """Say what comes next: a turn of the user is searched with, with all that was said before it; one of the agent is remembered."""
    kept = await asyncio.to_thread(service.conversations.get, who.key_id, conversation_id)
    served = service.named(kept.place)
    note(request, index=served.name, turns=len(kept.conversation.turns))
    if len(body.text) > service.limits.query_characters or not body.text.strip():
        raise bad_request(f"text: from 1 to {service.limits.query_characters:,} characters")
    own = {"conversation": conversation_id, "index": served.name, "request_id": request.state.request_id}
    if body.speaker == "agent":
        await asyncio.to_thread(service.conversations.keep, who.key_id, kept, kept.conversation.heard(body.text))
        return answer({**own, "results": [], "version": None, "timings_ms": {}, "cached": False})
    note_query(request, service, [body.text])
    query = kept.conversation.asked(body.text)
    while query.turns and len(query.text) + sum(len(turn.text) for turn in query.turns) > service.limits.query_characters:
        query = dataclasses.replace(query, turns=query.turns[1:])  # the oldest are not searched with
    view = await service.view(served)
    conditions = service.conditions(view, body.filter)
    found = await search(service, served, view, [Asked(query, service.depth(body.k), conditions)], body.whole_text)
    read = await service.work(served, lambda: read_of(view, query))
    await asyncio.to_thread(service.conversations.keep, who.key_id, kept, kept.conversation.said(body.text))
    more = {"version": found.version, "timings_ms": found.timings, "cached": found.cached, "read": read}
    return answer({**own, "results": found.results[0], **more})


@router.post("/feedback", response_model=FeedbackAnswer, tags=["feedback"])
async def give_feedback(body: FeedbackRequest, request: Request, service: Here, who: Searcher) -> Response:
    """Keep clicks and judgements, from which experiments learn; they are on the disk when this is answered."""
    path = service.feedback
    if path is None:
        raise RequestError(403, "read_only", "this server keeps no feedback; it does with: retriever serve --state FOLDER")
    events: list[dict[str, Any]] = []
    for event in body.events:
        served = service.named(event.index)
        service.query(event.query, [turn.turn() for turn in event.turns])
        events.append({**event.model_dump(exclude_none=True), "id": check_id(event.id, "id"), "index": served.name, "key": who.key_id})
    note(request, events=len(events))
    await asyncio.to_thread(feedback.append, path, events)
    return answer({"kept": len(events)})


def _shown(kept: Kept) -> dict[str, Any]:
    until = datetime.datetime.fromtimestamp(kept.until, datetime.UTC).isoformat(timespec="seconds")
    turns = [dataclasses.asdict(turn) for turn in kept.conversation.turns]
    return {"id": kept.conversation_id, "index": kept.place, "turns": turns, "forgotten_at": until}
