"""The page for people at `/`, and what it asks for beside the interface: its own files, pictures of documents, reports, and what the server can do."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from pathlib import Path
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from retriever.errors import DataError
from retriever.images.readers import TEXT_STUDENTS
from retriever.serving.answers import AbilitiesAnswer
from retriever.serving.faults import RequestError
from retriever.serving.logs import LOG
from retriever.serving.pictures import MEDIA_TYPE, Pictures
from retriever.serving.routes import WRONG, Here, Searcher, answer, note
from retriever.serving.served import Served

router = APIRouter(tags=["page"])

FOLDER = Path(__file__).with_name("web")
PAGE = "index.html"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Referrer-Policy": "no-referrer",
}
"""Of the page: nothing from elsewhere, no inline script or style, and no text that a browser would read as HTML. A blob holds a picture fetched with a key."""

REPORT_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
"""Of a report, which has its styles and pictures inside and no script: none would run."""

_PICTURES = Pictures()
Size = Annotated[int, Query(ge=16, le=1_600, description="pixels of the longer side at most")]
Index = Annotated[str | None, Query(max_length=100, description="the index's name; the first one when left out")]


class _File(NamedTuple):
    """A file of the page."""

    content: bytes
    media_type: str
    mark: str


@functools.cache
def _files() -> dict[str, _File]:
    """Name -> file, read once: what a request names is looked up here, and never becomes a path."""
    contents = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in MEDIA_TYPES}
    return {name: _File(content, MEDIA_TYPES[Path(name).suffix], hashlib.sha256(content).hexdigest()[:32]) for name, content in contents.items()}


@router.get("/", include_in_schema=False)
async def page(request: Request) -> Response:
    """Show the page."""
    return _file(request, PAGE)


@router.get("/web/{name}", include_in_schema=False)
async def web_file(name: str, request: Request) -> Response:
    """Give a file of the page."""
    if name == PAGE or name not in _files():
        raise RequestError(404, "not_found", f'the page has no file "{name:.100}"')
    return _file(request, name)


@router.get("/v1/abilities", response_model=AbilitiesAnswer, responses=WRONG)
async def abilities(service: Here, who: Searcher) -> Response:
    """Say what this server can do beside searching, and how much of it, so that a page offers nothing that would be refused."""
    reports = await asyncio.to_thread(lambda: [name for name, served in service.served.items() if report_of(served)])
    limits = {name: getattr(service.limits, name) for name in ("k", "turns", "query_characters", "body_bytes", "image_pixels")}
    images = [name for name, served in service.served.items() if (await service.view(served)).encoder.own.kind not in TEXT_STUDENTS]
    return answer({"feedback": service.feedback is not None, "reports": reports, "images": images, "limits": limits})


@router.get("/v1/images/{doc_id:path}", responses={**WRONG, 200: {"content": {MEDIA_TYPE: {}}}}, response_class=Response)
async def image(doc_id: str, request: Request, service: Here, who: Searcher, index: Index = None, size: Size = 320) -> Response:
    """Show the image of a document, as a JPEG of at most so many pixels."""
    served = service.named(index)
    note(request, index=served.name)
    view = await service.view(served)
    document = await service.read(served, lambda: view.document(doc_id))
    if document is None or document.image is None:
        raise RequestError(404, "not_found", f'there is no document "{doc_id:.100}" with an image')
    try:
        made = await asyncio.wrap_future(_PICTURES.ask(document.image, size))
    except DataError as error:  # its message names a path
        LOG.warning("%s", error)
        raise RequestError(404, "not_found", f'the image of the document "{doc_id:.100}" cannot be read; the log of the server says why') from error
    headers = {"Cache-Control": "private, max-age=600", "Cross-Origin-Resource-Policy": "same-origin"}
    return _marked(request, Response(made.jpeg, media_type=MEDIA_TYPE, headers=headers), made.mark)


@router.get("/v1/reports/{index}", responses={**WRONG, 200: {"content": {"text/html": {}}}}, response_class=Response)
async def report(index: str, request: Request, service: Here, who: Searcher) -> Response:
    """Show the report of the experiment that an index belongs to."""
    served = service.named(index)
    note(request, index=served.name)
    path = await asyncio.to_thread(report_of, served)
    if path is None:
        raise RequestError(404, "not_found", f'beside "{served.name}" lies no report')
    return Response(await asyncio.to_thread(path.read_bytes), media_type="text/html; charset=utf-8", headers=REPORT_HEADERS)


def report_of(served: Served) -> Path | None:
    """The report of the experiment whose index or stages are served; None where there is none."""
    experiments = [served.folder.parent] if served.folder else [Path(path) for path in served.paths]
    reports = [experiment / "evaluate" / "report.html" for experiment in experiments]
    return next((path for path in reports if path.is_file() and path.with_suffix(".json").is_file()), None)


def _file(request: Request, name: str) -> Response:
    found = _files()[name]
    headers = {"Cache-Control": "no-cache", **(PAGE_HEADERS if name == PAGE else {})}
    return _marked(request, Response(found.content, media_type=f"{found.media_type}; charset=utf-8", headers=headers), found.mark)


def _marked(request: Request, whole: Response, mark: str) -> Response:
    """The answer with its mark, or only that the one which the browser has is still right."""
    whole.headers["ETag"] = f'"{mark}"'
    if request.headers.get("if-none-match") != f'"{mark}"':
        return whole
    kept = {name: value for name, value in whole.headers.items() if name not in ("content-length", "content-type")}
    return Response(status_code=304, headers=kept)
