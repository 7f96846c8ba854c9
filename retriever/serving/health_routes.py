"""Whether the server lives, whether it can answer, what it counts, and how it is asked."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from retriever.serving.faults import unavailable
from retriever.serving.page import api_page
from retriever.serving.routes import WRONG, Here, Searcher, answer

router = APIRouter(responses=WRONG)


@router.get("/health", tags=["health"])
async def health() -> Response:
    """Answer, if the process lives."""
    return answer({"status": "ok"})


@router.get("/ready", tags=["health"])
async def is_ready(service: Here) -> Response:
    """Answer when every index is open in its newest version, and the server is not about to stop."""
    for served in service.served.values():
        await service.view(served)
        if served.behind:
            raise unavailable(f"{served.name}: its newest version cannot be served, and the one before is served on; the server's log says why")
    return answer({"status": "ready", "indexes": list(service.served)})


@router.get("/metrics", tags=["health"], responses={200: {"content": {"text/plain": {}}}}, response_class=Response)
async def metrics(service: Here, who: Searcher) -> Response:
    """Count requests, batches, caches and indexes, in Prometheus' format."""
    indexes = []
    for served in service.served.values():
        view = await service.view(served)
        indexes.append((served.name, view.documents, view.version))
    text = await service.work(next(iter(service.served.values())), lambda: service.metrics.text(indexes, service.encoder.waiting))
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """Show the interface on a page of its own, without scripts."""
    return HTMLResponse(api_page(request.app.openapi()))
