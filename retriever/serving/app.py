"""The application: routes behind the guard, over a service that is opened when it starts and closed when it has answered everything."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from retriever.errors import RetrieverError
from retriever.serving import compatible_routes, conversation_routes, document_routes, health_routes, search_routes, web_routes
from retriever.serving.faults import RequestError, bad_request, fault_of, printable, said
from retriever.serving.guard import Guard
from retriever.serving.logs import write_log
from retriever.serving.routes import answer
from retriever.serving.service import Service
from retriever.serving.settings import ServeSettings, settings_from_environment

_KINDS = {404: "not_found", 405: "method_not_allowed"}


class Application(FastAPI):
    """Routes and how they are described."""

    def openapi(self) -> dict[str, Any]:
        """The description, without the answers of status 422 that the framework adds: what they are for has the status 400 here."""
        document = super().openapi()
        for methods in document["paths"].values():
            for route in methods.values():
                route.get("responses", {}).pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document.get("components", {}).get("schemas", {}).pop(name, None)
        return document


def app_from_environment() -> Guard:
    """The application of a worker process; opens what its parent wrote into the environment."""
    write_log()
    return application(settings_from_environment())


def application(settings: ServeSettings, service: Service | None = None) -> Guard:
    """The application.

    Args:
        settings: of the server.
        service: opened already; when the application starts, if left out.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        opened = await asyncio.to_thread(open_service, settings) if service is None else service
        app.state.service = opened
        yield
        await asyncio.to_thread(opened.close)

    app = Application(title="retriever", summary="Search in documents", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    for router in (search_routes.router, document_routes.router, conversation_routes.router, compatible_routes.router, health_routes.router):
        app.include_router(router)
    app.include_router(web_routes.router)
    app.add_exception_handler(RequestError, _faulty)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RetrieverError, _mistaken)
    app.add_exception_handler(Exception, _failed)
    return Guard(app)


def open_service(settings: ServeSettings) -> Service:
    """Everything opened, and libraries silenced."""
    from retriever.progress import silence_libraries

    silence_libraries()
    return Service(settings)


async def _faulty(request: Request, error: Exception) -> Response:
    fault = error if isinstance(error, RequestError) else RequestError(500, "internal", "")
    found = answer(fault.body(), fault.status)
    found.headers.update(fault.headers)
    return found


async def _invalid(request: Request, error: Exception) -> Response:
    """The first thing that is wrong with a request, without what was sent."""
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    if first.get("type") == "json_invalid":
        message = f"body: is no JSON ({first['ctx']['error']})"
    elif first.get("type") in ("model_attributes_type", "missing") and first.get("loc") == ("body",):
        message = "body: expected a JSON object, sent with Content-Type: application/json"
    else:
        place = ".".join(map(str, first.get("loc", ())[1:])) or "body"
        message = f"{place:.200}: {said(first)}"
    return await _faulty(request, bad_request(printable(message)))


async def _refused(request: Request, error: Exception) -> Response:
    """What the framework refuses: no such route or method, or a body that cannot be read."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = str(error.detail) if isinstance(error, HTTPException) else ""
    fault = RequestError(
        status, _KINDS.get(status, "invalid_request"), f"{request.method} {request.url.path}: {message.lower()}" if status in _KINDS else message
    )
    found = await _faulty(request, fault)
    if isinstance(error, HTTPException) and error.headers:
        found.headers.update(error.headers)
    return found


async def _mistaken(request: Request, error: Exception) -> Response:
    if not isinstance(error, RetrieverError):
        raise error
    places = {path: name for served in request.app.state.service.served.values() for path, name in served.paths.items()}
    return await _faulty(request, fault_of(error, places))


async def _failed(request: Request, error: Exception) -> Response:
    """Leaves what nobody foresaw to the guard: the framework would answer it by itself, and not in JSON."""
    raise error
