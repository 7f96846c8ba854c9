"""Searches: from memory, or through the encoder's thread together with those of other requests."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from retriever.queries import reader_of
from retriever.serving.encoder_thread import Asked, Found
from retriever.serving.served import OpenView, Served
from retriever.serving.service import Service
from retriever.serving.snippets import marked_snippet
from retriever.serving.timing import Stopwatch
from retriever.types import Document, Query


@dataclasses.dataclass(frozen=True)
class Searched:
    """What was found for the queries of one request.

    Attributes:
        results: of each query, as they are sent.
        version: of the index.
        timings: stage -> milliseconds.
        cached: whether all was remembered.
    """

    results: list[list[dict[str, Any]]]
    version: int | None
    timings: Mapping[str, float]
    cached: bool


async def search(service: Service, served: Served, view: OpenView, asked: Sequence[Asked], whole: bool) -> Searched:
    """What is found for queries, with snippets.

    Raises:
        RequestError: the server has too much to do, or something of the queries is wrong.
    """
    watch = Stopwatch()
    found = [view.remembered(one) for one in asked]
    missing = [place for place, one in enumerate(found) if one is None]
    if missing:
        with service.told(served):
            futures = service.encoder.submit(view, [asked[place] for place in missing])
            waiting = [asyncio.wrap_future(future) for future in futures]
            try:
                answers = await asyncio.gather(*waiting)
            except BaseException:
                for future in futures:
                    future.cancel()
                raise
        for place, answer in zip(missing, answers, strict=True):
            found[place] = answer
    watch.lap("waited")
    together = [one for one in found if one is not None]
    results = await service.read(served, lambda: [_results(own, one.query, whole) for own, one in zip(together, asked, strict=True)])
    watch.lap("documents")
    _count(service, served, len(asked), len(missing))
    timings = {name: max(one.milliseconds.get(name, 0.0) for one in together) for one in together for name in one.milliseconds}
    timings["queue"] = max(0.0, watch.milliseconds["waited"] - sum(timings.values()))
    timings |= {"documents": watch.milliseconds["documents"], "total": watch.total}
    return Searched(results, view.version, {name: round(value, 3) for name, value in timings.items()}, not missing)


def read_of(view: OpenView, query: Query) -> dict[str, Any]:
    """What the student read of a conversation."""
    return dataclasses.asdict(view.encoder.do(lambda: reader_of(view.encoder.own).text(query)))


def shown(rank: int, score: float, document: Document, query: str, whole: bool) -> dict[str, Any]:
    """A document that was found, as it is sent."""
    text, marks = marked_snippet(document.text, query)
    result = {
        "rank": rank,
        "id": document.doc_id,
        "score": score,
        "title": document.title,
        "snippet": {"text": text, "marks": marks},
        "fields": dict(document.fields),
        "image": document.image is not None,
    }
    return {**result, "text": document.text} if whole else result


def _results(found: Found, query: Query, whole: bool) -> list[dict[str, Any]]:
    ranked = zip(found.scores, found.documents(), strict=True)
    return [shown(rank, float(score), document, query.text, whole) for rank, (score, document) in enumerate(ranked, 1)]


def _count(service: Service, served: Served, asked: int, missing: int) -> None:
    service.metrics.queries.labels(served.name, "no").inc(missing)
    service.metrics.queries.labels(served.name, "yes").inc(asked - missing)
