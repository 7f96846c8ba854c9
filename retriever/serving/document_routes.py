"""Documents that are added, replaced, deleted and looked at; and the care of indexes."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from retriever.index.changes import Changed
from retriever.serving import writing
from retriever.serving.answering import absent, document_answer
from retriever.serving.answers import ChangeAnswer, DocumentAnswer, PruneAnswer
from retriever.serving.faults import beyond
from retriever.serving.requests import AddRequest, DeleteRequest
from retriever.serving.routes import WRONG, Admin, Here, Searcher, Writer, answer, note
from retriever.serving.served import Served
from retriever.serving.served_index import ServedIndex
from retriever.serving.service import Service, check_writable
from retriever.types import Document

router = APIRouter(prefix="/v1", tags=["documents"], responses=WRONG)
Index = Annotated[str | None, Query(max_length=100, description="the index's name; the first one when left out")]


@router.post("/documents", response_model=ChangeAnswer)
async def add_documents(body: AddRequest, request: Request, service: Here, who: Writer) -> Response:
    """Add documents; one whose id is there already takes the place of the old one."""
    served = _writable(service, body.index, request)
    if len(body.documents) > service.limits.documents:
        raise beyond("documents", len(body.documents), service.limits.documents)
    longest = max(len(one.text) + len(one.title) for one in body.documents)
    if longest > service.limits.text_characters:
        raise beyond("documents: characters of one", longest, service.limits.text_characters)
    documents = [Document(one.id, one.text, one.title, fields=one.fields) for one in body.documents]
    return _changed(service, served, await service.write(served, lambda: writing.add(served, documents)))


@router.delete("/documents", response_model=ChangeAnswer)
async def delete_documents(body: DeleteRequest, request: Request, service: Here, who: Writer) -> Response:
    """Delete documents by their ids; nothing where one is not there."""
    served = _writable(service, body.index, request)
    if len(body.ids) > service.limits.documents:
        raise beyond("ids", len(body.ids), service.limits.documents)
    return _changed(service, served, await service.write(served, lambda: writing.delete(served, body.ids, body.ignore_missing)))


@router.delete("/documents/{doc_id:path}", response_model=ChangeAnswer)
async def delete_document(doc_id: str, request: Request, service: Here, who: Writer, index: Index = None) -> Response:
    """Delete a document."""
    served = _writable(service, index, request)
    done = await service.write(served, lambda: writing.delete(served, [doc_id], True))
    if not done.deleted:
        raise absent(doc_id)
    return _changed(service, served, done)


@router.get("/documents/{doc_id:path}", response_model=DocumentAnswer)
async def get_document(doc_id: str, request: Request, service: Here, who: Searcher, index: Index = None) -> Response:
    """Look at a document."""
    served = service.named(index)
    note(request, index=served.name)
    return answer(await document_answer(service, served, doc_id))


@router.post("/indexes/{index}/compact", response_model=ChangeAnswer)
async def compact(index: str, request: Request, service: Here, who: Admin) -> Response:
    """Put all segments of an index together into one without deleted documents."""
    served = _writable(service, index, request)
    return _changed(service, served, await service.write(served, lambda: writing.compact(served)))


@router.post("/indexes/{index}/prune", response_model=PruneAnswer)
async def prune(index: str, request: Request, service: Here, who: Admin) -> Response:
    """Remove all versions of an index but the current one: what was deleted or replaced is then gone from the disk too, once it is compacted."""
    served = _writable(service, index, request)
    return answer({"index": served.name, "freed_bytes": await service.write(served, lambda: writing.prune(served))})


def _writable(service: Service, name: str | None, request: Request) -> ServedIndex:
    served: Served = service.named(name)
    note(request, index=served.name)
    check_writable(service, served)
    return cast(ServedIndex, served)


def _changed(service: Service, served: Served, done: Changed) -> Response:
    for kind, count in {"added": done.added, "replaced": done.replaced, "deleted": done.deleted}.items():
        service.metrics.changes.labels(served.name, kind).inc(count)
    counts = {"added": done.added, "replaced": done.replaced, "deleted": done.deleted, "documents": done.documents}
    return answer({"index": served.name, "version": done.version, **counts})
